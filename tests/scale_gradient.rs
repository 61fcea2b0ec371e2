//! The gradient of a learned temperature in RRD and InfoNCE.

mod common;

use common::{Input, cast};
use relata::{
    Batch, Cpu, Device, Element, Error, Evaluation, InfoNce, Loss, ParameterValue, Problem, Queue,
    Reference, Rows, Rrd, Shapes,
};

const TERM: &str = "scale_gradient";

/// N, D and K: the smallest, odd ones, and rows too long for tensor cores.
const SHAPES: [[usize; 3]; 5] = [
    [1, 1, 1],
    [2, 3, 5],
    [17, 33, 70],
    [66, 16, 9],
    [5, 300, 130],
];

fn losses() -> Vec<(Loss, bool)> {
    let raw = InfoNce {
        normalize: false,
        temperature: 2.0,
        ..InfoNce::default()
    };
    let rrd = Rrd {
        student_temperature: 0.2,
        ..Rrd::default()
    };
    vec![
        (Rrd::default().into(), true),
        (rrd.into(), true),
        (InfoNce::default().into(), true),
        (InfoNce::default().into(), false),
        (raw.into(), true),
        (raw.into(), false),
    ]
}

struct Case<T: Element> {
    loss: Loss,
    student: Vec<T>,
    teacher: Vec<T>,
    queue: Option<Queue<T::Real>>,
    weights: Option<Vec<T::Real>>,
    rows: usize,
}

impl<T: Element> Case<T> {
    fn new((loss, queued): (Loss, bool), [n, d, k]: [usize; 3], weighted: bool) -> Self {
        let input = Input::normal((n * d) as u64, Shapes::new(n, d, d).with_queue(k));
        let queue = input.queue::<T>().filter(|_| queued);
        let weights = (0..n).map(|row| [1.0, 0.0, 2.5][row % 3]);
        Case {
            loss,
            student: cast(&input.student),
            teacher: cast(&input.teacher),
            queue: queue.map(|queue| queue.with_normalize(loss.spec().normalize)),
            weights: weighted.then(|| cast(&weights.collect::<Vec<f64>>())),
            rows: n,
        }
    }

    fn batch(&self) -> Batch<'_, T> {
        let rows = |data| Rows::new(data, [self.rows, self.student.len() / self.rows]);
        let [student, teacher] =
            [&self.student, &self.teacher].map(|data| rows(data).expect("rows"));
        Batch {
            queue: self.queue.as_ref(),
            row_weights: self.weights.as_deref(),
            ..Batch::new(student, teacher)
        }
    }

    fn problem(&self, loss: Loss) -> Problem {
        let problem = Problem::new(loss, self.batch().shapes()).expect("accepted");
        problem.with_scale_gradient().expect("a learned scale")
    }

    fn evaluate<D: Device<T>>(&self, device: &D, loss: Loss) -> Evaluation<D::Gradient> {
        let problem = self.problem(loss).with_upstream(0.5);
        problem.evaluate(device, self.batch()).expect("evaluates")
    }

    fn term<D: Device<T>>(&self, device: &D) -> f64 {
        let evaluation = self.evaluate(device, self.loss);
        evaluation.term(TERM).expect("the term asked for")
    }
}

#[test]
fn it_is_the_difference_of_losses() {
    for loss in losses() {
        for weighted in [false, true] {
            let case = Case::<f64>::new(loss, [5, 8, 12], weighted);
            let name = match case.loss {
                Loss::Rrd(_) => "student_temperature",
                _ => "temperature",
            };
            let Some(ParameterValue::Number(tau)) = case.loss.parameter(name) else {
                panic!("{name}");
            };
            let loss_at = |step: f64| {
                let tau = ParameterValue::Number(1.0 / (1.0 / tau + step));
                let moved = case.loss.with_parameter(name, tau).expect("a parameter");
                case.evaluate(&Reference, moved).loss
            };
            let want = (loss_at(1e-4) - loss_at(-1e-4)) / 2e-4;
            assert!(want.abs() > 1e-3, "{:?}: flat", case.loss);
            for got in [case.term(&Reference), case.term(&Cpu)] {
                let off = (got - want).abs();
                assert!(off < 1e-7 * (1.0 + want.abs()), "{loss:?}: {got} {want}");
            }
        }
    }
}

#[test]
fn devices_agree() {
    fn agree<T: Element, D: Device<T>>(device: &D, within: f64) {
        for loss in losses() {
            for shape in SHAPES {
                for weighted in [false, true] {
                    let case = Case::<T>::new(loss, shape, weighted);
                    let (got, want) = (case.term(device), case.term(&Reference));
                    let label = format!("{} {loss:?} {shape:?} {weighted}", device.name());
                    assert!((got - want).abs() <= within, "{label}: {got} {want}");
                }
            }
        }
    }
    agree::<f64, _>(&Cpu, 1e-13);
    agree::<f32, _>(&Cpu, 2e-6);
    agree::<half::f16, _>(&Cpu, 2e-6);
    #[cfg(feature = "emulator")]
    {
        agree::<f32, _>(&relata::Emulator::new(), 5e-6);
        // A queue on a GPU rounds its keys to f16.
        agree::<half::f16, _>(&relata::Emulator::new().seed(1), 5e-4);
        agree::<half::bf16, _>(&relata::Emulator::new().seed(2), 5e-4);
    }
}

#[test]
fn it_changes_nothing_else() {
    fn same<D: Device<f32>>(device: &D)
    where
        D::Gradient: PartialEq,
    {
        for loss in losses() {
            for weighted in [false, true] {
                let case = Case::<f32>::new(loss, [17, 33, 70], weighted);
                let with = case.evaluate(device, case.loss);
                let problem = Problem::new(case.loss, case.batch().shapes()).expect("accepted");
                let problem = problem.with_upstream(0.5);
                let without = problem.evaluate(device, case.batch()).expect("evaluates");
                assert_eq!(without.term(TERM), None);
                assert_eq!(with.loss.to_bits(), without.loss.to_bits(), "{loss:?}");
                assert_eq!(with.term("kl"), without.term("kl"), "{loss:?}");
                assert!(with.gradient == without.gradient, "{loss:?}");
            }
        }
    }
    same(&Cpu);
    #[cfg(feature = "emulator")]
    same(&relata::Emulator::new());
}

#[test]
fn other_losses_refuse_it() {
    for loss in Loss::all() {
        let shapes = common::losses::shapes_of(&loss, [4, 3, 3, 5])[0];
        let problem = Problem::new(loss, shapes).expect("accepted");
        let want = Error::Unexpected {
            argument: "scale_gradient",
            loss: loss.name(),
        };
        match problem.with_scale_gradient() {
            Ok(_) => assert!(matches!(loss, Loss::Rrd(_) | Loss::InfoNce(_)), "{loss}"),
            Err(error) => assert_eq!(error, want),
        }
    }
}
