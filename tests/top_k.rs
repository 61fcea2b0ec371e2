//! A teacher that is a list of its most likely classes.

mod common;

use common::compare::{assert_gradient, assert_loss};
use common::losses::divergences;
use common::{Input, on_every_device};
use relata::{
    Batch, Cpu, DType, Device, Divergence, Element, Error, Evaluation, KdKl, Problem, Reference,
    Rows, Shapes, TopK, check,
};

/// What a device may be off by.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-13,
        _ => 2e-6,
    }
}

fn cast<T: Element>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&value| T::from_f64(value)).collect()
}

fn losses() -> Vec<KdKl> {
    let forward = KdKl::new(2.0);
    let others = divergences(forward).into_iter().map(|(_, loss)| loss);
    let all = std::iter::once(forward).chain(others);
    all.flat_map(|loss| {
        [
            loss,
            KdKl {
                tail: false,
                ..loss
            },
        ]
    })
    .collect()
}

/// A student's logits, and a list of the teacher's classes for each row.
struct Listed<T: Element> {
    shape: [usize; 2],
    k: usize,
    student: Vec<T>,
    classes: Vec<u32>,
    logarithms: Vec<T::Real>,
}

impl<T: Element> Listed<T> {
    /// Normals, and the k most likely classes of a softmax of others.
    fn normal(seed: u64, [rows, classes]: [usize; 2], k: usize) -> Self {
        let input = Input::normal(seed, Shapes::new(rows, classes, classes));
        let (mut ids, mut logarithms) = (Vec::new(), Vec::new());
        for row in input.teacher.chunks(classes) {
            let log_sum = row.iter().map(|y| (2.0 * y).exp()).sum::<f64>().ln();
            let mut order: Vec<usize> = (0..classes).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            for &class in &order[..k] {
                ids.push(class as u32);
                logarithms.push(T::Real::from_f64(2.0 * row[class] - log_sum));
            }
        }
        Listed {
            shape: [rows, classes],
            k,
            student: cast(&input.student),
            classes: ids,
            logarithms,
        }
    }

    fn batch(&self) -> Batch<'_, T> {
        let top_k = TopK::new(&self.classes, &self.logarithms, [self.shape[0], self.k]);
        let student = Rows::new(&self.student, self.shape).expect("whole rows");
        Batch::of_top_k(student, top_k.expect("lists of k classes"))
    }

    fn evaluate<D: Device<T>>(&self, device: &D, loss: KdKl) -> Evaluation<D::Gradient> {
        let problem = Problem::new(loss, self.batch().shapes()).expect("accepted");
        let problem = problem.with_upstream(0.75);
        problem
            .evaluate_rows(device, self.batch())
            .expect("evaluates")
    }
}

/// D of two distributions, from its definition.
fn definition(divergence: Divergence, p: &[f64], q: &[f64]) -> f64 {
    let kl = |v: &[f64], w: &[f64]| -> f64 {
        let terms = v.iter().zip(w).filter(|(v, _)| **v > 0.0);
        terms.map(|(v, w)| v * (v / w).ln()).sum()
    };
    let mix = |a: f64| -> Vec<f64> {
        let both = p.iter().zip(q);
        both.map(|(p, q)| a * p + (1.0 - a) * q).collect()
    };
    match divergence {
        Divergence::Forward => kl(p, q),
        Divergence::Reverse => kl(q, p),
        Divergence::Js { beta } => {
            let m = mix(beta);
            beta * kl(p, &m) + (1.0 - beta) * kl(q, &m)
        }
        Divergence::Skew { alpha } => kl(p, &mix(alpha)),
        Divergence::SkewReverse { alpha } => kl(q, &mix(1.0 - alpha)),
    }
}

#[test]
fn the_reference_is_the_definition() {
    for (shape, k) in [([3, 8], 3), ([1, 2], 1), ([4, 50], 10)] {
        let listed = Listed::<f64>::normal(7, shape, k);
        for loss in losses() {
            let mut want = 0.0;
            for row in 0..shape[0] {
                let x = &listed.student[row * shape[1]..][..shape[1]];
                let scaled: Vec<f64> = x.iter().map(|x| x / loss.student_temperature).collect();
                let sum: f64 = scaled.iter().map(|x| x.exp()).sum();
                let entries = row * k..(row + 1) * k;
                let ids = &listed.classes[entries.clone()];
                let mut q: Vec<f64> = ids
                    .iter()
                    .map(|&id| scaled[id as usize].exp() / sum)
                    .collect();
                let mut p: Vec<f64> = listed.logarithms[entries].iter().map(|l| l.exp()).collect();
                if loss.tail {
                    q.push(1.0 - q.iter().sum::<f64>());
                    p.push(1.0 - p.iter().sum::<f64>());
                }
                let d = definition(loss.divergence, &p, &q);
                want += loss.student_temperature.powi(2) * d / shape[0] as f64;
            }
            let got = listed.evaluate(&Reference, loss);
            assert_loss(&format!("{loss:?}"), got.loss, want, 1e-11);
        }
    }
}

#[test]
fn central_differences_agree() {
    let listed = Listed::<f64>::normal(3, [4, 19], 6);
    let weights = [1.0, 0.0, 0.5, 2.0];
    for loss in losses() {
        for classes in [0, 19] {
            let batch = listed.batch().with_row_weights(&weights);
            let loss = KdKl { classes, ..loss };
            let problem = Problem::new(loss, batch.shapes()).expect("accepted");
            let report = check(&problem, &Cpu, batch).expect("evaluates");
            assert!(report.passed(), "{loss:?}: {report}");
        }
    }
}

fn assert_agreement<T: Element, D: Device<T>>(device: &D) {
    for (shape, k) in [
        ([1, 1], 1),
        ([2, 3], 1),
        ([3, 5], 5),
        ([5, 67], 8),
        ([2, 1031], 64),
        ([2, 9001], 700),
    ] {
        let listed = Listed::<T>::normal(k as u64, shape, k);
        for loss in losses() {
            let label = format!("{}, {shape:?}, {k}, {loss:?}", device.name());
            let want = listed.evaluate(&Reference, loss);
            let got = listed.evaluate(device, loss);
            let within = tolerance(D::Gradient::DTYPE);
            // Of one class the divergence is a rounding error.
            if shape[1] > 1 {
                assert_loss(&label, got.loss, want.loss, within);
                assert_gradient(&label, &got.gradient, &want.gradient, shape[1], within);
            }
            for (got, want) in got.row_losses.iter().zip(&want.row_losses) {
                assert!(
                    (got - want).abs() <= within * want.abs().max(1e-6),
                    "{label}"
                );
            }
        }
    }
}

/// A student whose softmax is the teacher's but for rounding, and one that is near it.
fn assert_exact_near_the_teacher<T: Element, D: Device<T>>(device: &D) {
    for step in [0.0, 1e-3] {
        let mut listed = Listed::<T>::normal(9, [3, 200], 20);
        let t = 2.0;
        for row in 0..3 {
            let entries = row * 20..(row + 1) * 20;
            let of_listed: f64 = listed.logarithms[entries.clone()]
                .iter()
                .map(|l| l.to_f64().exp())
                .sum();
            // The others share the rest alike.
            let other = t * ((1.0 - of_listed) / 180.0).ln();
            let x = &mut listed.student[row * 200..][..200];
            x.fill(T::from_f64(other));
            for entry in entries {
                let logit = t * listed.logarithms[entry].to_f64();
                x[listed.classes[entry] as usize] = T::from_f64(logit + step);
            }
        }
        for loss in losses().into_iter().filter(|loss| loss.tail) {
            let label = format!("{}, {step}, {loss:?}", device.name());
            let want = listed.evaluate(&Reference, loss);
            let got = listed.evaluate(device, loss);
            assert!(got.loss >= 0.0, "{label}: {:e}", got.loss);
            // The tail's sum is rounded, which counts as much as student and teacher differ.
            let [of_difference, rounding] = match D::Gradient::DTYPE {
                DType::F64 => [1e-14, 1e-20],
                _ => [3e-7, 3e-13],
            };
            let off = (got.loss - want.loss).abs();
            let allowed = of_difference * want.loss.sqrt() + rounding;
            assert!(off <= allowed, "{label}: off by {off:e} of {:e}", want.loss);
        }
    }
}

/// Students that give all but a billionth of their mass to listed classes, or so much that the rest
/// is no number of f32, or of f64.
fn assert_small_tails_keep_their_digits<T: Element, D: Device<T>>(device: &D) {
    for gap in [50.0, 300.0, 3000.0] {
        assert_a_small_tail_keeps_its_digits(device, gap);
    }
}

fn assert_a_small_tail_keeps_its_digits<T: Element, D: Device<T>>(device: &D, gap: f64) {
    let mut listed = Listed::<T>::normal(5, [2, 120], 4);
    for row in 0..2 {
        for entry in 0..4 {
            let class = listed.classes[row * 4 + entry] as usize;
            listed.student[row * 120 + class] = T::from_f64(gap + entry as f64);
        }
    }
    for loss in losses() {
        let label = format!("{}, {gap}, {loss:?}", device.name());
        let want = listed.evaluate(&Reference, loss);
        let got = listed.evaluate(device, loss);
        let within = tolerance(D::Gradient::DTYPE);
        assert_loss(&label, got.loss, want.loss, within);
        assert_gradient(&label, &got.gradient, &want.gradient, 120, within);
    }
}

fn assert_entries_of_no_probability_do_not_count<T: Element, D: Device<T>>(device: &D) {
    let full = Listed::<T>::normal(2, [3, 40], 6);
    let mut padded = Listed::<T>::normal(2, [3, 40], 6);
    let mut shorter = Listed::<T>::normal(2, [3, 40], 4);
    for row in 0..3 {
        for entry in [4, 5] {
            // The class is one that is listed, or one that does not exist.
            padded.classes[row * 6 + entry] = [padded.classes[row * 6], u32::MAX][entry - 4];
            padded.logarithms[row * 6 + entry] = T::Real::from_f64(f64::NEG_INFINITY);
        }
        let entries = |k: usize| row * k..row * k + 4;
        assert_eq!(full.classes[entries(6)], shorter.classes[entries(4)]);
        shorter.logarithms[entries(4)].copy_from_slice(&full.logarithms[entries(6)]);
    }
    for loss in losses() {
        let [a, b] = [&padded, &shorter].map(|listed| listed.evaluate(device, loss));
        assert_eq!(a.loss, b.loss, "{loss:?}");
        assert_eq!(a.gradient, b.gradient, "{loss:?}");
    }
}

/// What infinities and NaN do: the loss, and whether the gradient is finite.
fn assert_rules_of_infinities<T: Element, D: Device<T>>(device: &D) {
    let infinity = f64::INFINITY;
    let listed_of = |student: [f64; 4], log_p: f64| Listed::<T> {
        shape: [1, 4],
        k: 1,
        student: cast(&student),
        classes: vec![2],
        logarithms: cast(&[log_p]),
    };
    let half = 0.5f64.ln();
    for loss in losses() {
        let forward = loss.divergence == Divergence::Forward;
        let value = |student, log_p| {
            let got = listed_of(student, log_p).evaluate(device, loss);
            let finite = got.gradient.iter().all(|g| g.to_f64().is_finite());
            assert_eq!(
                finite,
                got.loss.is_finite(),
                "{}, {student:?}, {log_p}, {loss:?}: {got:?}",
                device.name()
            );
            assert!(finite || got.gradient.iter().all(|g| g.to_f64().is_nan()));
            got.loss
        };
        // Classes that neither list nor student have.
        assert!(value([-infinity, 0.0, 1.0, -infinity], half).is_finite());
        // A listed class that the student excludes.
        let excluded = value([0.0, 0.0, -infinity, 0.0], half);
        assert_eq!(excluded.is_finite(), !forward, "{loss:?}: {excluded}");
        assert!(!forward || excluded == infinity);
        // No tail of the student, and one of the teacher.
        let no_tail = value([-infinity, -infinity, 0.0, -infinity], half);
        assert_eq!(
            no_tail == infinity,
            forward && loss.tail,
            "{loss:?}: {no_tail}"
        );
        // A tail that is lost in rounding.
        assert!(value([0.0; 4], 0.0).is_finite(), "{loss:?}");
        for bad in [infinity, f64::NAN] {
            assert!(value([bad, 0.0, 0.0, 0.0], half).is_nan(), "{loss:?}");
            assert!(value([0.0, 0.0, bad, 0.0], half).is_nan(), "{loss:?}");
        }
        assert!(value([0.0; 4], f64::NAN).is_nan(), "{loss:?}");
        let none = value([-infinity; 4], half);
        assert!(
            if forward {
                none == infinity
            } else {
                none.is_nan()
            },
            "{loss:?}: {none}"
        );
    }
}

/// Weights of rows, and columns that are not compared, with a list.
fn assert_right_with_weights_and_columns<T: Element, D: Device<T>>(device: &D) {
    let [rows, classes, columns, k] = [4, 37, 41, 5];
    let narrow = Listed::<T>::normal(6, [rows, classes], k);
    // What is left out may hold anything.
    let mut student = vec![T::from_f64(f64::NAN); rows * columns];
    for (to, from) in student
        .chunks_mut(columns)
        .zip(narrow.student.chunks(classes))
    {
        to[..classes].copy_from_slice(from);
    }
    student[columns] = T::from_f64(f64::NAN);
    let weights: Vec<T::Real> = cast(&[1.0, 0.0, 0.5, 2.5]);
    let student = Rows::new(&student, [rows, columns]).expect("whole rows");
    let top_k = TopK::new(&narrow.classes, &narrow.logarithms, [rows, k]).expect("lists");
    let batch = Batch::of_top_k(student, top_k).with_row_weights(&weights);
    for loss in losses() {
        let label = format!("{}, {loss:?}", device.name());
        let problem = Problem::new(KdKl { classes, ..loss }, batch.shapes()).expect("accepted");
        let problem = problem.with_upstream(0.75);
        let got = problem.evaluate_rows(device, batch).expect("evaluates");
        // The reference's single rows, with 1/N of the factor.
        let single = narrow.evaluate(&Reference, loss);
        let (mut value, mut gradient) = (0.0, Vec::new());
        for (row, share) in [0.25, 0.0, 0.125, 0.625].into_iter().enumerate() {
            value += share * single.row_losses[row];
            let of_row = &single.gradient[row * classes..][..classes];
            gradient.extend(of_row.iter().map(|g| share * rows as f64 * g));
            gradient.extend([0.0; 4]);
        }
        let within = tolerance(D::Gradient::DTYPE);
        assert_loss(&label, got.loss, value, within);
        assert_gradient(&label, &got.gradient, &gradient, columns, within);
        assert_eq!(got.row_losses[1], 0.0);
    }
}

#[test]
fn lists_go_with_weights_and_columns() {
    on_every_device!(assert_right_with_weights_and_columns);
}

#[test]
fn devices_agree_with_the_reference() {
    on_every_device!(assert_agreement);
}

#[test]
fn a_divergence_is_exact_near_the_teacher() {
    on_every_device!(assert_exact_near_the_teacher);
}

#[test]
fn small_tails_keep_their_digits() {
    on_every_device!(assert_small_tails_keep_their_digits);
}

#[test]
fn entries_of_no_probability_do_not_count() {
    on_every_device!(assert_entries_of_no_probability_do_not_count);
}

#[test]
fn infinities_follow_the_rules() {
    on_every_device!(assert_rules_of_infinities);
}

#[test]
fn a_whole_list_is_the_teacher() {
    // All classes listed, at the student's temperature: the loss of two rows of logits.
    let [rows, classes] = [3, 12];
    let listed = Listed::<f64>::normal(4, [rows, classes], classes);
    let mut teacher = vec![0.0; rows * classes];
    for (entry, (&id, log_p)) in listed.classes.iter().zip(&listed.logarithms).enumerate() {
        teacher[entry / classes * classes + id as usize] = 2.0 * log_p;
    }
    let of = |data| Rows::new(data, [rows, classes]).expect("whole rows");
    let same_temperature = |loss: &KdKl| loss.teacher_temperature == loss.student_temperature;
    for loss in losses().into_iter().filter(same_temperature) {
        let want = loss.evaluate(&Reference, of(&listed.student[..]), of(&teacher[..]));
        let want = want.expect("evaluates");
        let got = listed.evaluate(&Cpu, loss);
        assert_loss("loss", got.loss, want.loss, 1e-12);
        let scaled: Vec<f64> = want.gradient.iter().map(|g| 0.75 * g).collect();
        assert_gradient("gradient", &got.gradient, &scaled, classes, 1e-12);
    }
}

#[test]
fn errors_name_the_argument() {
    let student = Rows::new(&[0.0f32; 8], [2, 4]).expect("rows");
    let loss = KdKl::default();
    let evaluate = |classes: &[u32; 4], logarithms: &[f32; 4]| {
        let top_k = TopK::new(classes, logarithms, [2, 2]).expect("lists");
        let batch = Batch::of_top_k(student, top_k);
        let problem = Problem::new(loss, batch.shapes()).expect("accepted");
        problem.evaluate(&Cpu, batch).err()
    };
    let fine = [-1.0f32; 4];
    assert_eq!(evaluate(&[0, 1, 3, 2], &fine), None);
    // The field is public: a list of other rows than the student's may be put there.
    for rows in [1, 3] {
        let lists = (vec![0; 2 * rows], vec![-1.0f32; 2 * rows]);
        let right = TopK::new(&[0, 1, 3, 2], &fine, [2, 2]).expect("lists");
        let mut batch = Batch::of_top_k(student, right);
        let problem = Problem::new(loss, batch.shapes()).expect("accepted");
        batch.top_k = Some(TopK::new(&lists.0, &lists.1, [rows, 2]).expect("lists"));
        let error = problem.evaluate(&Cpu, batch).err();
        let shown = error.expect("refused").to_string();
        assert_eq!(shown, format!("teacher rows: expected 2, got {rows}"));
    }
    assert_eq!(
        evaluate(&[0, 1, 4, 2], &fine),
        Some(Error::TooLarge {
            argument: "teacher classes",
            most: 3,
            got: 4
        })
    );
    assert_eq!(
        evaluate(&[0, 1, 2, 2], &fine),
        Some(Error::Parameter {
            argument: "teacher classes",
            expected: "each class once in a row",
            got: 2.0
        })
    );
    assert!(matches!(
        evaluate(&[0, 1, 3, 2], &[-0.1; 4]),
        Some(Error::Parameter {
            argument: "teacher log_probabilities",
            ..
        })
    ));
    for (classes, logarithms, argument) in [
        (&[0u32; 3][..], &[0.0f32; 4][..], "teacher classes"),
        (&[0; 4], &[0.0; 5], "teacher log_probabilities"),
    ] {
        let error = TopK::new(classes, logarithms, [2, 2]).err();
        assert!(matches!(error, Some(Error::Length { argument: got, .. }) if got == argument));
    }
    let top_k = TopK::new(&[0, 1, 3, 2], &fine, [2, 2]).expect("lists");
    let batch = Batch::of_top_k(student, top_k);
    for loss in common::losses::against_teachers() {
        let mut shapes = batch.shapes();
        shapes.queue = (loss.spec().queue == relata::QueueUse::Required).then_some(4);
        let result = Problem::new(loss, shapes);
        assert_eq!(result.is_ok(), loss.name() == "kd-kl", "{loss}: {result:?}");
    }
    let rows = Problem::new(loss, Shapes::new(2, 4, 4)).expect("accepted");
    assert!(matches!(
        rows.evaluate(&Cpu, batch),
        Err(Error::Dimension {
            argument: "teacher_dim",
            ..
        })
    ));
    let checked = Problem::new(loss, batch.shapes()).expect("accepted");
    let infinite = [f32::NAN, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let bad = Batch::of_top_k(Rows::new(&infinite, [2, 4]).expect("rows"), top_k);
    let refused = checked.with_checked(true).evaluate(&Cpu, bad);
    assert!(matches!(
        refused,
        Err(Error::NotFinite {
            argument: "student",
            row: 0,
            column: 0,
            ..
        })
    ));
}
