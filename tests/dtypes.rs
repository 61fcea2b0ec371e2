//! The CPU path against the reference on every case of the table in every element type; and the
//! parts that this comparison needs: the comparers, the tolerances, the conversions, and `check`.

mod common;

use std::panic::catch_unwind;

use common::cases::{self, Case};
use common::compare::{
    assert_finite, assert_gradient, assert_loss, assert_same_bits, assert_zero, relative_error,
};
use common::compare_to_reference::{Comparison, assert_right};
use common::tolerances::{Tolerance, tolerance};
use common::{Input, for_every_dtype};
use half::{bf16, f16};
use relata::{
    Batch, Cpu, DType, Element, InfoNce, Problem, Queue, QueueUse, Reference, Relation, RkdAngle,
    RkdDistance, Rows, Shapes, check, relation_matrix,
};

#[test]
fn cpu_agrees_with_the_reference_on_every_case_in_every_dtype() {
    fn assert_cpu_right<T: Element>(case: &Case) -> bool {
        assert_right::<T, _>(&Cpu, case)
    }
    let mut meaningful = 0;
    let mut all = 0;
    for case in cases::tests() {
        let with_gradient = for_every_dtype!(assert_cpu_right(&case));
        all += with_gradient.len();
        meaningful += with_gradient.iter().filter(|&&is| is).count();
    }
    // N = 1, identical rows and a student at its teacher have no gradient; most other cases have
    // one.
    assert!(meaningful > all * 3 / 4, "{meaningful} of {all}");
}

#[test]
fn tolerances_cover_every_loss_and_dtype() {
    for loss in common::losses::against_teachers() {
        for dtype in DType::ALL {
            let Tolerance { loss: a, gradient } = tolerance(&loss, dtype);
            // At least one rounding of the type of the computation, and small enough to mean
            // something.
            let (least, most) = match dtype {
                DType::F64 => (f64::EPSILON, 1e-11),
                _ => (f64::from(f32::EPSILON), 1e-5),
            };
            for tolerance in [a, gradient] {
                assert!((least..most).contains(&tolerance), "{loss} {dtype}");
            }
        }
    }
}

#[test]
fn comparers_refuse_nan_and_errors_beyond_their_budget() {
    let refuses = |compare: fn()| catch_unwind(compare).is_err();
    let nan = f64::NAN;
    assert!(relative_error(&[nan], &[1.0]).is_nan());
    assert!(relative_error(&[1.0], &[nan]).is_nan());
    assert!(!relative_error(&[f64::INFINITY], &[1.0]).is_finite());
    assert_eq!(relative_error(&[3e200, 0.0], &[0.0, 4e200]), 1.25);
    assert!(refuses(|| assert_gradient(
        "",
        &[f64::NAN, 1.0],
        &[1.0, 1.0],
        1,
        1.0
    )));
    assert!(refuses(|| assert_gradient(
        "",
        &[1.0, 1.0],
        &[1.0, f64::NAN],
        1,
        1.0
    )));
    assert!(refuses(|| assert_gradient(
        "",
        &[f64::NAN],
        &[f64::NAN],
        1,
        1.0
    )));
    assert!(refuses(|| assert_gradient("", &[1.0], &[1.1], 1, 0.05)));
    assert!(refuses(|| assert_gradient("", &[1e-3], &[0.0], 1, 1e-4)));
    assert!(refuses(|| assert_gradient("", &[1.0], &[1.0, 2.0], 1, 1.0)));
    assert!(refuses(|| assert_loss("", f64::NAN, 1.0, 1.0)));
    assert!(refuses(|| assert_loss("", f64::NAN, f64::NAN, 1.0)));
    assert!(refuses(|| assert_loss(
        "",
        f64::INFINITY,
        f64::INFINITY,
        1.0
    )));
    assert!(refuses(|| assert_loss("", 1.0, 1.1, 0.05)));
    assert!(refuses(|| assert_zero("", &[0.0, f64::NAN])));
    assert!(refuses(|| assert_zero("", &[5e-324])));
    assert!(refuses(|| assert_finite("", &[1.0, f64::INFINITY])));
    assert!(refuses(|| assert_same_bits("", &[0.0], &[-0.0])));
    assert!(refuses(|| assert_same_bits(
        "",
        &[1.0f32],
        &[f32::from_bits(1.0f32.to_bits() + 1)]
    )));
    assert_gradient("", &[1.0, 2.0f64], &[1.0, 2.0 + 1e-9], 1, 1e-9);
    assert_loss("", 1.0 + 1e-9, 1.0, 1e-8);
    assert_same_bits("", &[f64::NAN, -0.0], &[f64::NAN, -0.0]);
}

#[test]
fn elements_widen_exactly_and_round_to_the_nearest() {
    fn assert_round_trips<T: Element>() {
        for value in [0.0, -0.0, 1.0, -2.5, 0.15625, 448.0, 2f64.powi(-14)] {
            let element = T::from_f64(value);
            assert_eq!(element.to_f64().to_bits(), value.to_bits(), "{}", T::DTYPE);
            let mut wide = [T::Real::from_f64(f64::NAN)];
            T::widen(&[element], &mut wide);
            assert_eq!(wide[0].to_f64().to_bits(), value.to_bits(), "{}", T::DTYPE);
        }
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let got = T::from_f64(value).to_f64();
            assert!(
                got == value || got.is_nan() && value.is_nan(),
                "{}",
                T::DTYPE
            );
        }
    }
    for_every_dtype!(assert_round_trips());
    // To the nearest, ties to even: 1 + 2⁻¹¹ lies between two f16, 1 + 2⁻⁸ between two bf16.
    assert_eq!(
        <f16 as Element>::from_f64(1.0 + 2f64.powi(-11)),
        f16::from_f32(1.0)
    );
    assert_eq!(
        <bf16 as Element>::from_f64(1.0 + 2f64.powi(-8)),
        bf16::from_f32(1.0)
    );
    let above = 1.0 + 2f64.powi(-11) + 2f64.powi(-30);
    assert_eq!(
        <f16 as Element>::from_f64(above).to_f32(),
        1.0 + 2f32.powi(-10)
    );
    // Subnormals of f16 are numbers too.
    let least = f16::from_bits(1);
    assert_eq!(<f16 as Element>::to_f64(least), 2f64.powi(-24));
    let names = DType::ALL.map(|dtype| dtype.to_string());
    assert_eq!(names, ["f64", "f32", "f16", "bf16"]);
}

#[test]
fn every_f16_and_bf16_widens_to_its_value() {
    for bits in 0..=u16::MAX {
        let (half, brain) = (f16::from_bits(bits), bf16::from_bits(bits));
        let mut wide = [0.0f32; 2];
        f16::widen(&[half], &mut wide[..1]);
        bf16::widen(&[brain], &mut wide[1..]);
        for (wide, value) in wide
            .iter()
            .zip([Element::to_f64(half), Element::to_f64(brain)])
        {
            let same = f64::from(*wide) == value || wide.is_nan() && value.is_nan();
            assert!(same, "{bits:#06x}: {wide}, want {value}");
        }
    }
}

#[test]
fn check_passes_the_cpu_on_ordinary_cases() {
    fn assert_passes<T: Element>(case: &Case) {
        let inputs = case.inputs::<T>();
        let report = check(&inputs.problem, &Cpu, inputs.batch()).expect("a case that fits");
        assert!(report.passed(), "{} in {}: {report}", case.name, T::DTYPE);
        assert!(report.to_string().starts_with("passed"), "{report}");
        assert!(report.gradient_error <= report.tolerance);
        assert!(report.loss.is_finite() && report.reference_loss.is_finite());
    }
    // Ordinary cases: 3 to 19 rows, no degenerate data.
    let ordinary = |case: &Case| {
        case.data == cases::Data::Gaussian && (3..20).contains(&case.rows) && case.student_dim > 2
    };
    let mut checked = 0;
    for case in cases::tests().filter(ordinary) {
        for_every_dtype!(assert_passes(&case));
        checked += 1;
    }
    assert!(checked > 10, "{checked}");
}

/// The reference is right on any data. So `check` must pass it even if the data make differences of
/// the loss inexact.
#[test]
fn check_passes_the_reference_on_any_data() {
    const DIM: usize = 6;
    fn assert_passes(what: &str, student: &[f64], teacher: &[f64]) {
        let [student, teacher] =
            [student, teacher].map(|rows| Rows::new(rows, [20, DIM]).expect("whole rows"));
        let mut queue = Queue::new(20, DIM).expect("a queue");
        queue.enqueue(teacher).expect("finite keys");
        let raw = InfoNce {
            normalize: false,
            ..InfoNce::default()
        };
        let sharp = InfoNce {
            temperature: 1e-3,
            ..InfoNce::default()
        };
        for loss in common::losses::against_teachers()
            .into_iter()
            .chain([raw.into(), sharp.into()])
        {
            let mut batch = Batch::new(student, teacher);
            if loss.spec().queue == QueueUse::Required {
                batch = batch.with_queue(&queue);
            }
            let problem = Problem::new(loss, batch.shapes())
                .expect("shapes that fit")
                .with_upstream(0.5);
            let report = check(&problem, &Reference, batch).expect("a result");
            assert!(report.passed(), "{what}, {loss:?}: {report}");
        }
    }
    let noise = |seed: f64| -> Vec<f64> {
        let at = |i: usize| (i as f64 + seed).powi(2);
        (0..20 * DIM).map(|i| (at(i) * 12.9898).sin()).collect()
    };
    let (x, y) = (noise(1.0), noise(2.0));
    let changed = |by: &dyn Fn(f64) -> f64| -> Vec<f64> { x.iter().map(|&x| by(x)).collect() };
    assert_passes("a student like any other", &x, &y);
    assert_passes("far from the origin", &changed(&|x| 1e3 + x * 1e-2), &y);
    assert_passes("short rows", &changed(&|x| x * 1e-6), &y);
    assert_passes("shorter rows", &changed(&|x| x * 1e-30), &y);
    for length in [1e2, 1e3, 1e4, 1e30] {
        assert_passes("long rows", &changed(&|x| x * length), &y);
    }
    assert_passes("rows all the same", &x[..DIM].repeat(20), &y);
    assert_passes("no length", &vec![0.0; 20 * DIM], &y);
    assert_passes("a student that has converged", &y, &y);
}

#[test]
fn check_fails_a_loss_that_is_nan() {
    let mut student = [0.0f32, 0.5, 1.0, 0.25, -1.0, 0.75];
    let teacher = [1.0f32, 0.0, 0.0, 1.0, 0.5, 0.5];
    student[3] = f32::NAN;
    let batch = Batch::new(
        Rows::new(&student, [3, 2]).expect("whole rows"),
        Rows::new(&teacher, [3, 2]).expect("whole rows"),
    );
    let problem = RkdAngle::default()
        .problem(batch.shapes())
        .expect("shapes that fit");
    let report = check(&problem, &Cpu, batch).expect("no error: a NaN is a result");
    assert!(!report.passed());
    assert!(report.to_string().starts_with("FAILED"), "{report}");
    // Each error by itself says so.
    assert!(report.loss_error.is_nan(), "{report}");
    assert!(report.gradient_error.is_nan(), "{report}");
    assert!(report.difference_error.is_nan(), "{report}");
}

#[test]
fn check_does_not_divide_by_a_loss_near_0() {
    let near = cases::Data::NearTeacher { noise: 1e-4 };
    let input = Input::of_data(1, Shapes::new(12, 8, 8), near);
    let problem = input.problem(RkdDistance::default());
    let inputs = input.inputs::<f32>(&problem);
    let report = check(&problem, &Cpu, inputs.batch()).expect("a batch that fits");
    let reference = report.reference_loss;
    assert!((1e-12..1e-6).contains(&reference), "{report}");
    // f32 has rounded what the two losses are made of.
    assert_ne!(report.loss, reference, "nothing to divide");
    assert_eq!(report.loss_error, (report.loss - reference).abs());
}

/// The keys of a large batch have several parts. Here rows from 4096 on have their own key in the
/// second one, and the student is so near its teacher that the own key is the largest.
#[test]
fn cpu_leaves_out_the_own_key_of_every_row_of_a_large_batch() {
    const ROWS: usize = 4100;
    const DIM: usize = 4;
    let near = cases::Data::NearTeacher { noise: 0.1 };
    let input = Input::of_data(5, Shapes::new(ROWS, DIM, DIM), near);
    let loss = InfoNce {
        temperature: 0.02,
        ..InfoNce::default()
    };
    let got = input.evaluate::<f64, _>(&Cpu, loss);
    let want = input.evaluate::<f64, _>(&Reference, loss);
    let within = tolerance(&loss.into(), DType::F64);
    assert_loss("info-nce", got.loss, want.loss, within.loss);
    let of_last_rows = 4096 * DIM..ROWS * DIM;
    assert_gradient(
        "rows from 4096 on",
        &got.gradient[of_last_rows.clone()],
        &want.gradient[of_last_rows],
        DIM,
        1e-12,
    );
    assert_gradient("all", &got.gradient, &want.gradient, DIM, within.gradient);
}

/// If all distances are alike, the CPU path leaves out the clamp of slopes to δ where δ is at least
/// 1. It must not where δ is less.
#[test]
fn cpu_clamps_slopes_of_rows_that_are_equally_far_apart() {
    const N: usize = 16;
    fn assert_clamped<T: Element>(input: &Input) {
        let of = |delta| RkdAngle {
            delta,
            ..RkdAngle::default()
        };
        let problem = input.problem(of(0.05));
        let inputs = input.inputs::<T>(&problem);
        for data in [&inputs.student, &inputs.teacher] {
            let rows = Rows::new(data, [N, N]).expect("whole rows");
            let matrix = relation_matrix(&Reference, Relation::Distance, rows).expect("distances");
            let longest = matrix.iter().fold(0.0f64, |a, &b| a.max(b));
            let apart = matrix.iter().filter(|&&d| d > 0.0);
            let spread = longest / apart.fold(longest, |a, &b| a.min(b));
            assert!(spread < 1.41, "{spread}");
        }
        let clamped = Comparison::new(&Cpu, "alike", inputs).assert();
        let other = input.run::<T, _>(&Reference, &input.problem(of(1.0)));
        assert!(clamped.loss < 0.9 * other.loss, "nothing to clamp");
    }
    let mut input = Input::normal(3, Shapes::new(N, N, N));
    for rows in [&mut input.student, &mut input.teacher] {
        for (at, x) in rows.iter_mut().enumerate() {
            *x = 0.05 * *x + f64::from(u8::from(at / N == at % N));
        }
    }
    for_every_dtype!(assert_clamped(&input));
}
