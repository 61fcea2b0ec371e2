//! CRD and RRD with a bank: formulas, devices, gradients, what is refused.

use relata::{
    Bank, Batch, Cpu, Crd, DType, Device, Element, Error, Evaluation, KdKl, Loss, NegativeSampler,
    Problem, Reference, Rows, RrdBank, Shapes, check,
};

use crate::common::compare::{assert_gradient, assert_loss, assert_zero};
use crate::common::{Random, cast, for_every_dtype};

/// N, D, n_data, K + 1: the smallest, odd ones, and both sides of what a warp and a block hold.
const SHAPES: [[usize; 4]; 7] = [
    [1, 1, 2, 2],
    [2, 3, 7, 4],
    [5, 16, 9, 3],
    [3, 33, 300, 257],
    [9, 128, 40, 32],
    [4, 130, 60, 33],
    [2, 64, 700, 600],
];

fn losses() -> Vec<Loss> {
    let rrd = RrdBank::default();
    let plain = RrdBank {
        double_exponential: false,
        ..rrd
    };
    vec![
        Crd::default().into(),
        Crd { temperature: 0.5 }.into(),
        rrd.into(),
        RrdBank {
            student_temperature: 0.5,
            teacher_temperature: 0.5,
            score_temperature: 0.2,
            ..rrd
        }
        .into(),
        plain.into(),
        RrdBank {
            student_temperature: 0.3,
            teacher_temperature: 0.3,
            ..plain
        }
        .into(),
    ]
}

/// A batch, its keys, and the weights of its rows.
struct Inputs<T: Element> {
    rows: [Vec<T>; 2],
    banks: [Bank<T::Real>; 2],
    indices: Vec<u32>,
    weights: Option<Vec<T::Real>>,
    shape: [usize; 4],
}

impl<T: Element> Inputs<T> {
    /// Banks are calibrated for the loss.
    fn new(loss: &Loss, shape: [usize; 4]) -> Self {
        let [n, dim, samples, keys] = shape;
        let mut random = Random::new((n * dim) as u64);
        let rows = [0, 1].map(|_| cast::<T>(&random.normals(n * dim)));
        let temperature = match loss {
            Loss::Crd(crd) => crd.temperature,
            Loss::RrdBank(rrd) => rrd.score_temperature,
            other => panic!("{other:?}"),
        };
        let bank = |seed| Bank::<T::Real>::new(samples, dim, seed).expect("a bank");
        let mut banks = [bank(1), bank(2)];
        let sampler = NegativeSampler::of_others(samples, keys - 1).expect("a sampler");
        let of_batch: Vec<u32> = (0..n).map(|i| (i * i % samples) as u32).collect();
        let indices = sampler.sample(&of_batch, 3).expect("keys");
        for (bank, rows) in banks.iter_mut().zip(&rows) {
            let rows = Rows::new(rows, [n, dim]).expect("rows");
            bank.update(&of_batch, rows, 0.5).expect("updates");
            bank.calibrate(rows, &indices, temperature)
                .expect("calibrates");
        }
        Inputs {
            rows,
            banks,
            indices,
            weights: None,
            shape,
        }
    }

    fn rows(&self, side: usize) -> Rows<'_, T> {
        Rows::new(&self.rows[side], [self.shape[0], self.shape[1]]).expect("rows")
    }

    /// The student meets the teacher's bank, and the teacher, if there is one, the student's.
    fn batch(&self, loss: &Loss) -> Batch<'_, T> {
        let [students, teachers] = &self.banks;
        let mut batch = match loss {
            Loss::Crd(_) => Batch::of_student(self.rows(0)).with_bank(teachers, &self.indices),
            _ => Batch::new(self.rows(0), self.rows(1))
                .with_bank(teachers, &self.indices)
                .with_teacher_bank(students),
        };
        batch.row_weights = self.weights.as_deref();
        batch
    }

    fn evaluate<D: Device<T>>(&self, device: &D, loss: Loss) -> Evaluation<D::Gradient> {
        self.evaluate_batch(device, loss, self.batch(&loss))
    }

    fn evaluate_batch<D: Device<T>>(
        &self,
        device: &D,
        loss: Loss,
        batch: Batch<'_, T>,
    ) -> Evaluation<D::Gradient> {
        let problem = Problem::new(loss, batch.shapes())
            .expect("accepted")
            .with_upstream(0.75);
        problem.evaluate_rows(device, batch).expect("evaluates")
    }
}

fn assert_agree<G: relata::Real>(
    label: &str,
    got: &Evaluation<G>,
    want: &Evaluation<f64>,
    dim: usize,
) {
    let within = match G::DTYPE {
        DType::F64 => 1e-11,
        _ => 1e-6,
    };
    let assert_near = |what: &str, got: f64, want: f64| {
        let unit = want.abs().max(1e-4);
        assert!(
            (got - want).abs() <= within * unit,
            "{label} {what}: {got} {want}"
        );
    };
    assert_near("loss", got.loss, want.loss);
    for ((name, got), (_, want)) in got.terms.iter().zip(want.terms.iter()) {
        assert_near(name, got, want);
    }
    for (got, want) in got.row_losses.iter().zip(&want.row_losses) {
        assert_near("row", *got, *want);
    }
    assert_eq!(got.row_losses.len(), want.row_losses.len());
    assert_gradient(label, &got.gradient, &want.gradient, dim, within);
}

fn assert_devices_agree<T: Element, D: Device<T>>(device: &D) {
    for shape in SHAPES {
        for loss in losses() {
            let mut inputs = Inputs::<T>::new(&loss, shape);
            for weighted in [false, true] {
                if weighted {
                    let weights = (0..shape[0]).map(|i| (i % 3) as f64 + 0.5 * f64::from(i == 0));
                    inputs.weights = Some(cast(&weights.collect::<Vec<_>>()));
                }
                let label = format!("{}, {loss:?}, {shape:?}", device.name());
                let want = inputs.evaluate(&Reference, loss);
                assert_agree(&label, &inputs.evaluate(device, loss), &want, shape[1]);
            }
        }
    }
}

#[test]
fn every_device_agrees_with_the_reference() {
    fn on_the_host<T: Element>() {
        assert_devices_agree::<T, _>(&Cpu);
    }
    for_every_dtype!(on_the_host());
    #[cfg(feature = "emulator")]
    {
        assert_devices_agree::<f32, _>(&relata::Emulator::new());
        assert_devices_agree::<half::f16, _>(&relata::Emulator::new().seed(1));
        assert_devices_agree::<half::bf16, _>(&relata::Emulator::new().seed(2));
    }
}

/// The formulas as the code has them, from nothing of this crate.
#[test]
fn losses_are_as_printed() {
    for shape in SHAPES {
        for loss in losses() {
            let inputs = Inputs::<f64>::new(&loss, shape);
            let got = inputs.evaluate(&Reference, loss).loss;
            let want = printed(&inputs, loss);
            let within = 1e-11 * want.abs().max(1e-4);
            assert!(
                (got - want).abs() <= within,
                "{loss:?}, {shape:?}: {got} {want}"
            );
        }
    }
}

fn printed(inputs: &Inputs<f64>, loss: Loss) -> f64 {
    let [n, dim, samples, keys] = inputs.shape;
    let products = |side: usize, i: usize| -> Vec<f64> {
        let row = &inputs.rows[side][i * dim..][..dim];
        let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        let bank = inputs.banks[1 - side].rows();
        let of_row = inputs.indices[i * keys..][..keys].iter();
        let product = |&k: &u32| -> f64 {
            let key = bank.row(k as usize).iter();
            key.zip(row).map(|(k, x)| k * x / length).sum()
        };
        of_row.map(product).collect()
    };
    let scores = |side: usize, i: usize, t: f64| -> Vec<f64> {
        let z = inputs.banks[1 - side].normalizer().expect("calibrated");
        products(side, i)
            .iter()
            .map(|s| (s / t).exp() / z)
            .collect()
    };
    let softmax = |x: Vec<f64>, t: f64| -> Vec<f64> {
        let sum: f64 = x.iter().map(|x| (x / t).exp()).sum();
        x.iter().map(|x| (x / t).exp() / sum).collect()
    };
    let of_row = |i: usize| -> f64 {
        match loss {
            Loss::Crd(crd) => {
                let m = (keys - 1) as f64;
                let noise = m / samples as f64;
                let p = scores(0, i, crd.temperature);
                let own = (p[0] / (p[0] + noise + 1e-7)).ln();
                let others = p[1..].iter().map(|p| (noise / (p + noise + 1e-7)).ln());
                -own - others.sum::<f64>()
            }
            Loss::RrdBank(rrd) => {
                let of = |side| match rrd.double_exponential {
                    true => scores(side, i, rrd.score_temperature),
                    false => products(side, i),
                };
                let p = softmax(of(1), rrd.teacher_temperature);
                let q = softmax(of(0), rrd.student_temperature);
                -p.iter().zip(q).map(|(p, q)| p * q.ln()).sum::<f64>()
            }
            other => panic!("{other:?}"),
        }
    };
    (0..n).map(of_row).sum::<f64>() / n as f64
}

#[test]
fn central_differences_agree() {
    for shape in SHAPES {
        for loss in losses() {
            let inputs = Inputs::<f64>::new(&loss, shape);
            let batch = inputs.batch(&loss);
            let problem = Problem::new(loss, batch.shapes()).expect("accepted");
            let report = check(&problem, &Cpu, batch).expect("evaluates");
            assert!(report.passed(), "{loss:?} {shape:?}: {report}");
        }
    }
}

/// A student that is its teacher, with the same keys, has learned all of it; and one that is nearly
/// there has a divergence that is as exact as any.
#[test]
fn a_student_near_its_teacher_has_an_exact_divergence() {
    let mut inputs = Inputs::<f64>::new(&RrdBank::default().into(), [4, 24, 60, 33]);
    let evaluate = |inputs: &Inputs<f64>, loss: Loss, reference: bool| {
        let batch =
            Batch::new(inputs.rows(0), inputs.rows(1)).with_bank(&inputs.banks[1], &inputs.indices);
        match reference {
            true => inputs.evaluate_batch(&Reference, loss, batch),
            false => inputs.evaluate_batch(&Cpu, loss, batch),
        }
    };
    for double_exponential in [true, false] {
        let loss = Loss::from(RrdBank {
            student_temperature: 0.1,
            teacher_temperature: 0.1,
            double_exponential,
            ..RrdBank::default()
        });
        inputs.rows[0] = inputs.rows[1].clone();
        let same = evaluate(&inputs, loss, false);
        assert!(same.term("kl").expect("kl").abs() < 1e-30);
        assert_zero("gradient", &same.gradient);
        inputs.rows[0]
            .iter_mut()
            .step_by(5)
            .for_each(|x| *x *= 1.0 + 1e-6);
        let want = evaluate(&inputs, loss, true);
        let got = evaluate(&inputs, loss, false);
        let kl = want.term("kl").expect("kl");
        assert!(kl > 0.0 && kl < 1e-8, "{kl}");
        assert_loss("kl", got.term("kl").expect("kl"), kl, 1e-7);
        assert_gradient("gradient", &got.gradient, &want.gradient, 24, 1e-7);
    }
}

#[test]
fn rows_without_a_direction_have_no_gradient() {
    for loss in losses() {
        let mut inputs = Inputs::<f32>::new(&loss, [4, 130, 60, 33]);
        inputs.rows[0][130..260].fill(0.0);
        inputs.rows[1][260..390].fill(0.0);
        let got = inputs.evaluate(&Cpu, loss);
        assert_agree("zeros", &got, &inputs.evaluate(&Reference, loss), 130);
        assert_zero("gradient", &got.gradient[130..260]);
    }
}

#[test]
fn what_is_not_finite_makes_the_loss_nan_unless_it_does_not_count() {
    for loss in losses() {
        let mut inputs = Inputs::<f32>::new(&loss, [5, 16, 9, 3]);
        inputs.rows[0][20] = f32::NAN;
        assert!(inputs.evaluate(&Reference, loss).loss.is_nan());
        assert!(inputs.evaluate(&Cpu, loss).loss.is_nan());
        let batch = inputs.batch(&loss);
        let problem = Problem::new(loss, batch.shapes())
            .expect("accepted")
            .with_checked(true);
        let refused = problem.evaluate(&Cpu, batch).err();
        assert!(matches!(
            refused,
            Some(Error::NotFinite {
                argument: "student",
                row: 1,
                column: 4,
                ..
            })
        ));
        inputs.weights = Some(vec![1.0, 0.0, 2.0, 1.0, 1.0]);
        let got = inputs.evaluate(&Cpu, loss);
        assert_agree("weights", &got, &inputs.evaluate(&Reference, loss), 16);
        assert_zero("gradient", &got.gradient[16..32]);
        assert!(got.loss.is_finite());
    }
}

#[test]
fn evaluations_repeat_and_leave_the_bank_alone() {
    for loss in losses() {
        let inputs = Inputs::<f32>::new(&loss, [9, 128, 40, 32]);
        let before = inputs.banks.clone();
        assert_eq!(inputs.evaluate(&Cpu, loss), inputs.evaluate(&Cpu, loss));
        assert_eq!(inputs.banks, before);
    }
}

#[test]
fn errors_name_the_argument() {
    let problem = |loss: Loss, shapes: Shapes| Problem::new(loss, shapes).err();
    let (crd, rrd) = (Loss::from(Crd::default()), Loss::from(RrdBank::default()));
    let missing = Error::Missing {
        argument: "bank",
        expected: "a bank, and the indices of each row's keys",
    };
    assert_eq!(problem(crd, Shapes::new(4, 2, 0)), Some(missing.clone()));
    assert_eq!(problem(rrd, Shapes::new(4, 2, 2)), Some(missing));
    let unexpected = |argument, loss| Some(Error::Unexpected { argument, loss });
    let shapes = |teacher_dim| Shapes::new(4, 2, teacher_dim).with_bank(10, 3);
    assert_eq!(problem(crd, shapes(2)), unexpected("teacher", "crd"));
    assert_eq!(
        problem(KdKl::default().into(), shapes(2)),
        unexpected("bank", "kd-kl")
    );
    let dimension = |argument, expected, got| {
        Some(Error::Dimension {
            argument,
            expected,
            got,
        })
    };
    assert_eq!(problem(rrd, shapes(3)), dimension("teacher_dim", 2, 3));
    let empty = |argument| Some(Error::Empty { argument });
    let with_bank = |samples, keys| Shapes::new(4, 2, 0).with_bank(samples, keys);
    assert_eq!(problem(crd, with_bank(10, 1)), empty("negatives"));
    assert_eq!(problem(crd, with_bank(10, 0)), empty("indices"));
    assert_eq!(problem(crd, with_bank(0, 2)), empty("bank samples"));

    let bank = |samples, dim| Bank::<f32>::new(samples, dim, 0).expect("a bank");
    let calibrated = |samples, dim| bank(samples, dim).with_normalizer(Some(20.0)).expect("Z");
    let rows = [1.0f32; 8];
    let rows = Rows::new(&rows, [4, 2]).expect("rows");
    let evaluate = |loss: Loss, batch: Batch<'_, f32>, keys| {
        let shapes = Shapes::new(4, 2, batch.teacher.dim()).with_bank(10, keys);
        let problem = Problem::new(loss, shapes).expect("accepted");
        problem.evaluate(&Cpu, batch).err()
    };
    let alone = Batch::of_student(rows);
    let pair = Batch::new(rows, rows);
    let good = calibrated(10, 2);
    let indices = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1];
    assert_eq!(evaluate(crd, alone.with_bank(&good, &indices), 3), None);
    assert!(matches!(
        evaluate(crd, alone, 3),
        Some(Error::Missing {
            argument: "bank",
            ..
        })
    ));
    let wide = calibrated(10, 3);
    assert_eq!(
        evaluate(crd, alone.with_bank(&wide, &indices), 3),
        dimension("bank_dim", 2, 3)
    );
    let short = calibrated(9, 2);
    assert_eq!(
        evaluate(crd, alone.with_bank(&short, &indices), 3),
        dimension("bank samples", 10, 9)
    );
    let wrong = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 0, 1];
    assert_eq!(
        evaluate(crd, alone.with_bank(&good, &wrong), 3),
        Some(Error::TooLarge {
            argument: "indices",
            most: 9,
            got: 10
        })
    );
    assert!(matches!(
        evaluate(crd, alone.with_bank(&good, &indices[..11]), 3),
        Some(Error::Length {
            argument: "indices",
            ..
        })
    ));
    assert_eq!(
        evaluate(crd, alone.with_bank(&good, &indices[..8]), 3),
        dimension("indices of a row", 3, 2)
    );
    let fresh = bank(10, 2);
    for (loss, batch) in [
        (crd, alone.with_bank(&fresh, &indices)),
        (rrd, pair.with_bank(&fresh, &indices)),
        (
            rrd,
            pair.with_bank(&good, &indices).with_teacher_bank(&fresh),
        ),
    ] {
        assert!(matches!(
            evaluate(loss, batch, 3),
            Some(Error::Missing {
                argument: "normalizer",
                ..
            })
        ));
    }
    let plain = RrdBank {
        double_exponential: false,
        ..RrdBank::default()
    };
    assert_eq!(
        evaluate(plain.into(), pair.with_bank(&fresh, &indices), 3),
        None
    );
    let teachers = |bank| pair.with_bank(&good, &indices).with_teacher_bank(bank);
    assert_eq!(
        evaluate(rrd, teachers(&wide), 3),
        dimension("teacher_bank_dim", 2, 3)
    );
    assert_eq!(
        evaluate(rrd, teachers(&short), 3),
        dimension("teacher_bank samples", 10, 9)
    );
    assert_eq!(
        evaluate(
            crd,
            alone.with_bank(&good, &indices).with_teacher_bank(&good),
            3
        ),
        unexpected("teacher_bank", "crd")
    );
    let problem = Problem::new(KdKl::default(), Shapes::new(4, 2, 2)).expect("accepted");
    assert_eq!(
        problem
            .evaluate(&Cpu, pair.with_bank(&good, &indices))
            .err(),
        unexpected("bank", "kd-kl")
    );
}
