//! The losses of two trained towers and of labels.

mod common;

use common::compare::{assert_gradient, assert_loss, assert_zero};
use common::{Input, cast};
use relata::{
    Batch, Clip, Cpu, DType, Device, Element, Error, Evaluation, Loss, Problem, Reference, Rows,
    Shapes, SigLip, SupCon, check,
};

/// n or N, D, and D_t: the smallest, odd ones, and both sides of what a strip and a chunk hold.
const SHAPES: [[usize; 3]; 9] = [
    [1, 1, 1],
    [1, 5, 3],
    [2, 3, 7],
    [5, 16, 4],
    [17, 33, 20],
    [64, 8, 8],
    [65, 7, 130],
    [130, 40, 3],
    [200, 5, 5],
];

/// A loss, its rows for n of a shape, whether it has a teacher, and its labels.
struct Case {
    loss: Loss,
    rows: usize,
    teacher: bool,
    labels: Option<Vec<u32>>,
}

fn cases(n: usize) -> Vec<Case> {
    let towers = |loss: Loss, teacher| Case {
        loss,
        rows: 2 * n,
        teacher,
        labels: None,
    };
    let labelled = |labels: Vec<u32>| Case {
        loss: SupCon { temperature: 0.2 }.into(),
        rows: labels.len(),
        teacher: false,
        labels: Some(labels),
    };
    let clip = Clip::default();
    let masked = |loss: Clip, teacher, labels: Option<fn(u32) -> u32>| Case {
        labels: labels.map(|label| (0..2 * n as u32).map(label).collect()),
        ..towers(loss.into(), teacher)
    };
    let one_way = Clip {
        both_ways: false,
        temperature: 0.05,
        ..clip
    };
    let guided = |guide_margin| Clip {
        guided: true,
        guide_margin,
        ..clip
    };
    vec![
        towers(clip.into(), true),
        towers(clip.into(), false),
        towers(
            Clip {
                hard_weight: 0.0,
                soft_weight: 0.75,
                teacher_temperature: 0.02,
                ..clip
            }
            .into(),
            true,
        ),
        towers(
            Clip {
                temperature: 0.01,
                hard_weight: 0.25,
                ..clip
            }
            .into(),
            true,
        ),
        towers(
            Clip {
                soft_weight: 0.0,
                ..clip
            }
            .into(),
            true,
        ),
        towers(SigLip::default().into(), false),
        towers(
            SigLip {
                scale: 3.0,
                bias: 0.5,
            }
            .into(),
            false,
        ),
        labelled((0..n as u32).map(|i| i % 3).collect()),
        labelled((0..n as u32).map(|i| i / 2).collect()),
        labelled((0..2 * n as u32).map(|i| i % n as u32).collect()),
        labelled((0..n as u32).map(|i| u32::MAX - i * i).collect()),
        masked(one_way, false, None),
        masked(one_way, true, None),
        masked(clip, false, Some(|i| i % 3)),
        masked(clip, true, Some(|i| u32::MAX - i / 3)),
        masked(guided(0.0), true, None),
        masked(
            Clip {
                soft_weight: 0.0,
                both_ways: false,
                ..guided(-0.2)
            },
            true,
            Some(|i| i / 2),
        ),
        // Few keys are left.
        masked(
            Clip {
                hard_weight: 0.0,
                ..guided(0.5)
            },
            true,
            Some(|i| i % 7),
        ),
    ]
}

struct Inputs<T> {
    student: Vec<T>,
    teacher: Vec<T>,
}

fn inputs<T: Element>(case: &Case, [_, dim, teacher_dim]: [usize; 3]) -> Inputs<T> {
    let shapes = Shapes::new(case.rows, dim, if case.teacher { teacher_dim } else { 0 });
    let input = Input::normal((case.rows * dim) as u64, shapes);
    Inputs {
        student: cast(&input.student),
        teacher: cast(&input.teacher),
    }
}

impl<T: Element> Inputs<T> {
    fn batch<'a>(&'a self, case: &'a Case) -> Batch<'a, T> {
        let rows = |data: &'a [T]| Rows::new(data, [case.rows, data.len() / case.rows]);
        let student = rows(&self.student).expect("whole rows");
        let mut batch = Batch::of_student(student);
        if case.teacher {
            batch.teacher = rows(&self.teacher).expect("whole rows");
        }
        batch.labels = case.labels.as_deref();
        batch
    }

    fn evaluate<D: Device<T>>(&self, device: &D, case: &Case) -> Evaluation<D::Gradient> {
        let batch = self.batch(case);
        let problem = Problem::new(case.loss, batch.shapes()).expect("accepted");
        let problem = problem.with_upstream(0.75);
        problem.evaluate(device, batch).expect("evaluates")
    }
}

fn assert_devices_agree<T: Element, D: Device<T>>(device: &D) {
    let within = match D::Gradient::DTYPE {
        DType::F64 => 1e-12,
        _ => 5e-6,
    };
    for shape in SHAPES {
        for case in cases(shape[0]) {
            let label = format!("{}, {:?}, {shape:?}", device.name(), case.loss);
            let inputs = inputs::<T>(&case, shape);
            let want = inputs.evaluate(&Reference, &case);
            let got = inputs.evaluate(device, &case);
            assert_loss(&label, got.loss, want.loss, within);
            for ((name, got), (_, want)) in got.terms.iter().zip(want.terms.iter()) {
                let unit = want.abs().max(1e-2);
                assert!(
                    (got - want).abs() <= 4.0 * within * unit,
                    "{label} {name}: {got} {want}"
                );
            }
            assert_gradient(&label, &got.gradient, &want.gradient, shape[1], within);
        }
    }
}

#[test]
fn every_device_agrees_with_the_reference() {
    fn on_the_host<T: Element>() {
        assert_devices_agree::<T, _>(&Cpu);
    }
    common::for_every_dtype!(on_the_host());
    #[cfg(feature = "emulator")]
    {
        assert_devices_agree::<f32, _>(&relata::Emulator::new());
        assert_devices_agree::<half::f16, _>(&relata::Emulator::new().seed(1));
        assert_devices_agree::<half::bf16, _>(&relata::Emulator::new().seed(2));
    }
}

/// So many rows that a block on the CPU has more than one chunk of keys.
#[test]
fn many_rows_are_right_on_the_cpu() {
    let shape = [4_300, 3, 2];
    let case = cases(shape[0]).swap_remove(0);
    let inputs = inputs::<f32>(&case, shape);
    let want = inputs.evaluate(&Reference, &case);
    let got = inputs.evaluate(&Cpu, &case);
    assert_loss("clip", got.loss, want.loss, 5e-6);
    assert_gradient("clip", &got.gradient, &want.gradient, shape[1], 5e-6);
}

/// The formulas as the papers print them, from nothing of this crate.
#[test]
fn losses_are_as_printed() {
    for shape in SHAPES {
        for case in cases(shape[0]) {
            let inputs = inputs::<f64>(&case, shape);
            let of = |data: &[f64]| -> Vec<Vec<f64>> {
                if data.is_empty() {
                    return Vec::new();
                }
                data.chunks(data.len() / case.rows).map(unit).collect()
            };
            let (x, y) = (of(&inputs.student), of(&inputs.teacher));
            let got = inputs.evaluate(&Reference, &case);
            let want = printed(&case, &x, &y);
            assert_loss(&format!("{:?}, {shape:?}", case.loss), got.loss, want, 1e-9);
        }
    }
}

fn unit(row: &[f64]) -> Vec<f64> {
    let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
    row.iter().map(|x| x / length).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let most = logits.iter().fold(f64::NEG_INFINITY, |m, &l| m.max(l));
    let sum: f64 = logits.iter().map(|l| (l - most).exp()).sum();
    logits.iter().map(|l| (l - most).exp() / sum).collect()
}

fn printed(case: &Case, x: &[Vec<f64>], y: &[Vec<f64>]) -> f64 {
    let n = case.rows / 2;
    let log_softmax = |logits: &[f64]| {
        let most = logits.iter().fold(f64::NEG_INFINITY, |m, &l| m.max(l));
        let sum: f64 = logits.iter().map(|l| (l - most).exp()).sum();
        logits
            .iter()
            .map(|l| l - most - sum.ln())
            .collect::<Vec<_>>()
    };
    match case.loss {
        Loss::Clip(clip) => {
            let logits =
                |rows: &[Vec<f64>], [from, to]: [usize; 2], i: usize, t: f64| -> Vec<f64> {
                    (0..n)
                        .map(|j| dot(&rows[from + i], &rows[to + j]) / t)
                        .collect()
                };
            let directions = match clip.both_ways {
                true => &[[0, n], [n, 0]][..],
                false => &[[0, n]],
            };
            let count = (directions.len() * n) as f64;
            let (mut hard, mut soft) = (0.0, 0.0);
            for &[from, to] in directions {
                for i in 0..n {
                    let is_key = |&k: &usize| {
                        let labels = case.labels.as_ref();
                        let by_label = labels.is_some_and(|l| l[from + i] == l[to + k]);
                        let guide = |k: usize| dot(&y[from + i], &y[to + k]);
                        let limit = |i: usize| guide(i) - clip.guide_margin + 1e-5;
                        let by_guide = clip.guided && guide(k) > limit(i);
                        k == i || !by_label && !by_guide
                    };
                    let keys: Vec<usize> = (0..n).filter(is_key).collect();
                    let of_keys = |rows: &[Vec<f64>], t: f64| -> Vec<f64> {
                        let all = logits(rows, [from, to], i, t);
                        keys.iter().map(|&k| all[k]).collect()
                    };
                    let own = keys.iter().position(|&k| k == i).expect("the own key");
                    let log_q = log_softmax(&of_keys(x, clip.temperature));
                    hard -= log_q[own] / count;
                    if case.teacher {
                        let p = softmax(&of_keys(y, clip.teacher_temperature));
                        soft -= dot(&p, &log_q) / count;
                    }
                }
            }
            clip.hard_weight * hard + clip.soft_weight * soft
        }
        Loss::SigLip(sig_lip) => {
            let term = |i: usize, j: usize| {
                let z = if i == j { 1.0 } else { -1.0 };
                let logit = z * (sig_lip.scale * dot(&x[i], &x[n + j]) + sig_lip.bias);
                -(1.0 / (1.0 + (-logit).exp())).ln()
            };
            (0..n * n).map(|at| term(at / n, at % n)).sum::<f64>() / n as f64
        }
        Loss::SupCon(sup_con) => {
            let labels = case.labels.as_ref().expect("labels");
            let mut losses = Vec::new();
            for i in 0..case.rows {
                let others: Vec<usize> = (0..case.rows).filter(|&k| k != i).collect();
                let logits: Vec<f64> = others
                    .iter()
                    .map(|&k| dot(&x[i], &x[k]) / sup_con.temperature)
                    .collect();
                let log_q = log_softmax(&logits);
                let of_label: Vec<f64> = others
                    .iter()
                    .zip(&log_q)
                    .filter(|&(&k, _)| labels[k] == labels[i])
                    .map(|(_, &log_q)| log_q)
                    .collect();
                if !of_label.is_empty() {
                    losses.push(-of_label.iter().sum::<f64>() / of_label.len() as f64);
                }
            }
            losses.iter().sum::<f64>() / losses.len().max(1) as f64
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn central_differences_agree() {
    for shape in [[1, 5, 3], [5, 16, 4], [17, 33, 20]] {
        for case in cases(shape[0]) {
            let inputs = inputs::<f64>(&case, shape);
            let batch = inputs.batch(&case);
            let problem = Problem::new(case.loss, batch.shapes()).expect("accepted");
            let report = check(&problem, &Cpu, batch).expect("evaluates");
            assert!(report.passed(), "{:?} {shape:?}: {report}", case.loss);
        }
    }
}

/// ∂L/∂(1/τ), ∂L/∂a and ∂L/∂b are differences of losses.
#[test]
fn parameters_have_gradients() {
    let shape = [17, 33, 20];
    for case in cases(shape[0]) {
        let inputs = inputs::<f64>(&case, shape);
        let at = |name: &str, step: f64| {
            let number = |loss: &Loss, name: &str| match loss.parameter(name) {
                Some(relata::ParameterValue::Number(number)) => number,
                _ => panic!("{name}"),
            };
            let (parameter, value) = match (name, case.loss) {
                ("bias_gradient", loss) => ("bias", number(&loss, "bias") + step),
                (_, Loss::SigLip(sig_lip)) => ("scale", sig_lip.scale + step),
                (_, loss) => (
                    "temperature",
                    1.0 / (1.0 / number(&loss, "temperature") + step),
                ),
            };
            let value = relata::ParameterValue::Number(value);
            let loss = case
                .loss
                .with_parameter(parameter, value)
                .expect("a parameter");
            let moved = Case {
                loss,
                rows: case.rows,
                teacher: case.teacher,
                labels: case.labels.clone(),
            };
            inputs.evaluate(&Reference, &moved).loss
        };
        for device in [true, false] {
            let got = if device {
                inputs.evaluate(&Cpu, &case)
            } else {
                inputs.evaluate(&Reference, &case)
            };
            for (name, got) in got
                .terms
                .iter()
                .filter(|(name, _)| name.ends_with("gradient"))
            {
                let want = (at(name, 1e-4) - at(name, -1e-4)) / 2e-4;
                assert!(
                    (got - want).abs() < 1e-7 * (1.0 + want.abs()),
                    "{:?} {name}: {got} {want}",
                    case.loss
                );
            }
        }
    }
}

/// Two texts that are equal to the guide are no nearer to one another than to themselves.
#[test]
fn rounding_does_not_mask_duplicates() {
    let shape = [65, 7, 130];
    let unguided = Case {
        loss: Clip {
            soft_weight: 0.0,
            ..Clip::default()
        }
        .into(),
        rows: 130,
        teacher: true,
        labels: None,
    };
    let guided = Case {
        loss: unguided
            .loss
            .with_parameter("guided", relata::ParameterValue::Flag(true))
            .expect("a parameter"),
        labels: None,
        ..unguided
    };
    fn assert_alike<T: Element, D: Device<T>>(device: &D, cases: [&Case; 2], shape: [usize; 3]) {
        let mut inputs = inputs::<T>(cases[0], shape);
        // All texts are one, and so are all images.
        let (images, texts) = inputs.teacher.split_at_mut(65 * 130);
        for rows in [images, texts] {
            let (first, others) = rows.split_at_mut(130);
            others
                .chunks_exact_mut(130)
                .for_each(|row| row.copy_from_slice(first));
        }
        let [without, with] = cases.map(|case| inputs.evaluate(device, case));
        assert_loss(device.name(), with.loss, without.loss, 1e-6);
    }
    assert_alike::<f64, _>(&Reference, [&unguided, &guided], shape);
    assert_alike::<f32, _>(&Cpu, [&unguided, &guided], shape);
    #[cfg(feature = "emulator")]
    assert_alike::<f32, _>(&relata::Emulator::new(), [&unguided, &guided], shape);
}

/// A masked key may be far nearer than all keys that are left: its exponential is beyond any float.
#[test]
fn a_masked_key_may_be_the_nearest() {
    fn assert_right<T: Element, D: Device<T>>(device: &D) {
        let case = Case {
            loss: Clip {
                temperature: 0.005,
                ..Clip::default()
            }
            .into(),
            rows: 6,
            teacher: false,
            labels: Some(vec![1, 1, 2, 1, 1, 3]),
        };
        // Row 0 is row 4, which has its label, and the opposite of row 5, which is the only key left.
        let rows: Vec<f64> = [
            [1.0, 0.0],
            [0.0, 1.0],
            [-1.0, 0.1],
            [-0.6, 0.8],
            [1.0, 0.0],
            [-1.0, 0.0],
        ]
        .concat();
        let inputs = Inputs::<T> {
            student: cast(&rows),
            teacher: Vec::new(),
        };
        let want = inputs.evaluate(&Reference, &case);
        let got = inputs.evaluate(device, &case);
        assert!(got.gradient.iter().all(|g| g.to_f64().is_finite()));
        assert_loss(device.name(), got.loss, want.loss, 5e-6);
        assert_gradient(device.name(), &got.gradient, &want.gradient, 2, 5e-6);
    }
    assert_right::<f32, _>(&Cpu);
    assert_right::<f64, _>(&Cpu);
    #[cfg(feature = "emulator")]
    assert_right::<f32, _>(&relata::Emulator::new());
}

#[test]
fn without_keys_there_is_no_loss() {
    for case in cases(5)
        .into_iter()
        .filter(|case| matches!(case.loss, Loss::Clip(_)))
    {
        let case = Case {
            labels: Some(vec![7; case.rows]),
            ..case
        };
        let inputs = inputs::<f32>(&case, [5, 16, 4]);
        let evaluations = [
            inputs.evaluate(&Cpu, &case),
            #[cfg(feature = "emulator")]
            inputs.evaluate(&relata::Emulator::new(), &case),
        ];
        for evaluation in evaluations {
            assert_eq!(evaluation.loss, 0.0, "{:?}", case.loss);
            assert_zero("gradient", &evaluation.gradient);
        }
    }
}

/// The mean of several teachers' softmaxes as the target: a cross-entropy is linear in its target, so
/// this is the mean of the losses with each of them.
#[test]
fn several_teachers_are_the_sum_of_their_losses() {
    let (n, dim) = (9, 6);
    let rows_of = |seed, width| Input::normal(seed, Shapes::new(2 * n, width, width)).student;
    let (student, teachers) = (rows_of(1, dim), [rows_of(2, 5), rows_of(3, 8)]);
    let parts = [0, 1].map(|m| {
        let case = Case {
            loss: Clip {
                // The hard term counts once.
                hard_weight: if m == 0 { 0.25 } else { 0.0 },
                soft_weight: 0.75 / 2.0,
                ..Clip::default()
            }
            .into(),
            rows: 2 * n,
            teacher: true,
            labels: None,
        };
        let inputs = Inputs::<f64> {
            student: cast(&student),
            teacher: cast(&teachers[m]),
        };
        inputs.evaluate(&Cpu, &case).loss
    });
    let of =
        |data: &[f64]| -> Vec<Vec<f64>> { data.chunks(data.len() / (2 * n)).map(unit).collect() };
    let (x, y) = (
        of(&cast(&student)),
        teachers.map(|teacher| of(&cast(&teacher))),
    );
    let mut want = 0.0;
    for [from, to] in [[0, n], [n, 0]] {
        for i in 0..n {
            let logits = |rows: &[Vec<f64>]| -> Vec<f64> {
                (0..n)
                    .map(|k| dot(&rows[from + i], &rows[to + k]) / 0.07)
                    .collect()
            };
            let q = softmax(&logits(&x));
            let p = [&y[0], &y[1]].map(|y| softmax(&logits(y)));
            want -= 0.25 * q[i].ln() / (2 * n) as f64;
            for k in 0..n {
                want -= 0.75 * 0.5 * (p[0][k] + p[1][k]) * q[k].ln() / (2 * n) as f64;
            }
        }
    }
    assert_loss("two teachers", parts[0] + parts[1], want, 1e-12);
}

/// Rows in the other order of towers have the other gradient.
#[test]
fn towers_can_be_exchanged() {
    let shape = [17, 8, 5];
    for case in cases(shape[0]).into_iter().take(7) {
        let there = inputs::<f32>(&case, shape);
        let exchanged = |rows: &[f32]| {
            let (first, second) = rows.split_at(rows.len() / 2);
            [second, first].concat()
        };
        let back = Inputs {
            student: exchanged(&there.student),
            teacher: exchanged(&there.teacher),
        };
        let (there, back) = (there.evaluate(&Cpu, &case), back.evaluate(&Cpu, &case));
        assert_loss("loss", back.loss, there.loss, 1e-6);
        let want: Vec<f64> = exchanged(&there.gradient)
            .iter()
            .map(|&g| f64::from(g))
            .collect();
        assert_gradient("gradient", &back.gradient, &want, 8, 1e-6);
    }
}

#[test]
fn rows_without_a_direction_have_no_gradient() {
    let shape = [5, 16, 4];
    for case in cases(shape[0]) {
        let mut inputs = inputs::<f32>(&case, shape);
        inputs.student[32..48].fill(0.0);
        if case.teacher {
            inputs.teacher[8..12].fill(0.0);
        }
        let want = inputs.evaluate(&Reference, &case);
        let got = inputs.evaluate(&Cpu, &case);
        assert_loss("loss", got.loss, want.loss, 5e-6);
        assert_gradient("gradient", &got.gradient, &want.gradient, 16, 5e-6);
        assert_zero("gradient", &got.gradient[32..48]);
    }
}

fn reads_teacher(case: &Case) -> bool {
    match case.loss {
        Loss::Clip(clip) => case.teacher && (clip.soft_weight > 0.0 || clip.guided),
        _ => case.teacher,
    }
}

/// Also where no key is left that could tell of it.
#[test]
fn what_is_not_finite_makes_all_nan() {
    fn assert_nan<T: Element, D: Device<T>>(device: &D) {
        for shape in [[1, 5, 3], [5, 16, 4]] {
            let alike = cases(shape[0]).into_iter().filter_map(|case| {
                let labels = Some(vec![7; case.rows]);
                matches!(case.loss, Loss::Clip(_)).then_some(Case { labels, ..case })
            });
            for case in cases(shape[0]).into_iter().chain(alike) {
                for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                    for (of_teacher, last) in
                        [(false, false), (false, true), (true, false), (true, true)]
                    {
                        if of_teacher && !reads_teacher(&case) {
                            continue;
                        }
                        let mut inputs = inputs::<T>(&case, shape);
                        let rows = if of_teacher {
                            &mut inputs.teacher
                        } else {
                            &mut inputs.student
                        };
                        let at = if last { rows.len() - 1 } else { 0 };
                        rows[at] = T::from_f64(bad);
                        let got = inputs.evaluate(device, &case);
                        let label = format!(
                            "{}, {:?}, {shape:?}, labels {:?}, {bad} at {at}, of teacher {of_teacher}",
                            device.name(),
                            case.loss,
                            case.labels
                        );
                        assert!(got.loss.is_nan(), "{label}: {}", got.loss);
                        let mut gradient = got.gradient.iter();
                        assert!(
                            gradient.all(|g| g.to_f64().is_nan()),
                            "{label}: the gradient"
                        );
                    }
                }
            }
        }
    }
    assert_nan::<f32, _>(&Reference);
    assert_nan::<f32, _>(&Cpu);
    assert_nan::<f64, _>(&Cpu);
    #[cfg(feature = "emulator")]
    {
        assert_nan::<f32, _>(&relata::Emulator::new());
        assert_nan::<half::bf16, _>(&relata::Emulator::new());
    }
}

#[test]
fn a_teacher_that_is_not_read_may_hold_anything() {
    fn assert_same<D: Device<f32>>(device: &D) {
        let shape = [5, 16, 4];
        let is_unread = |case: &Case| case.teacher && !reads_teacher(case);
        let unread: Vec<Case> = cases(shape[0]).into_iter().filter(is_unread).collect();
        assert!(!unread.is_empty());
        for case in unread {
            let want = inputs::<f32>(&case, shape).evaluate(device, &case);
            let mut inputs = inputs::<f32>(&case, shape);
            inputs.teacher.fill(f32::NAN);
            let got = inputs.evaluate(device, &case);
            assert_eq!(got.loss, want.loss, "{}", device.name());
            let bits = |of: &[D::Gradient]| -> Vec<u64> {
                of.iter().map(|g| g.to_f64().to_bits()).collect()
            };
            assert_eq!(
                bits(&got.gradient),
                bits(&want.gradient),
                "{}",
                device.name()
            );
            let batch = inputs.batch(&case);
            let problem = Problem::new(case.loss, batch.shapes()).expect("accepted");
            let checked = problem.with_checked(true).evaluate(device, batch);
            assert_eq!(
                checked.expect("accepted").loss,
                problem.evaluate(device, batch).expect("evaluates").loss
            );
        }
    }
    assert_same(&Reference);
    assert_same(&Cpu);
    #[cfg(feature = "emulator")]
    assert_same(&relata::Emulator::new());
}

/// At the lowest temperature a row without a softmax stays without.
#[test]
fn one_way_at_any_temperature() {
    fn assert_right<T: Element, D: Device<T>>(device: &D) {
        for temperature in [1e-30, 1e-20, 1e30] {
            let loss = Clip {
                temperature,
                teacher_temperature: temperature,
                both_ways: false,
                ..Clip::default()
            };
            for shape in [[5, 16, 4], [33, 2, 3]] {
                let case = Case {
                    loss: loss.into(),
                    rows: 2 * shape[0],
                    teacher: true,
                    labels: None,
                };
                let inputs = inputs::<T>(&case, shape);
                let want = inputs.evaluate(&Reference, &case);
                let got = inputs.evaluate(device, &case);
                let label = format!("{}, {temperature}, {shape:?}", device.name());
                assert_loss(&label, got.loss, want.loss, 1e-5);
                assert_gradient(&label, &got.gradient, &want.gradient, shape[1], 1e-5);
            }
        }
    }
    assert_right::<f32, _>(&Cpu);
    assert_right::<f64, _>(&Cpu);
    #[cfg(feature = "emulator")]
    assert_right::<f32, _>(&relata::Emulator::new());
}

#[test]
fn errors_name_the_argument() {
    let problem = |loss: Loss, shapes| Problem::new(loss, shapes).err();
    let (clip, sig_lip, sup_con) = (Clip::default(), SigLip::default(), SupCon::default());
    let odd = Error::Parameter {
        argument: "rows",
        expected: "an even number: two towers of as many rows each",
        got: 3.0,
    };
    assert_eq!(
        problem(clip.into(), Shapes::new(3, 2, 2)),
        Some(odd.clone())
    );
    assert_eq!(problem(sig_lip.into(), Shapes::new(3, 2, 0)), Some(odd));
    let unexpected = |argument, loss| Some(Error::Unexpected { argument, loss });
    assert_eq!(
        problem(sig_lip.into(), Shapes::new(4, 2, 2)),
        unexpected("teacher", "siglip")
    );
    let labelled = Shapes::new(4, 2, 2).with_labels();
    assert_eq!(
        problem(sup_con.into(), labelled),
        unexpected("teacher", "sup-con")
    );
    assert_eq!(problem(clip.into(), labelled), None);
    let labelled = Shapes::new(4, 2, 0).with_labels();
    assert_eq!(
        problem(sig_lip.into(), labelled),
        unexpected("labels", "siglip")
    );
    let guided = Clip {
        guided: true,
        ..clip
    };
    assert_eq!(
        problem(guided.into(), Shapes::new(4, 2, 0)),
        Some(Error::Empty {
            argument: "teacher_dim"
        })
    );
    assert_eq!(
        problem(sup_con.into(), Shapes::new(4, 2, 0)),
        Some(Error::Missing {
            argument: "labels",
            expected: "a label for each row"
        })
    );
    let soft = Clip {
        hard_weight: 0.0,
        ..clip
    };
    assert!(matches!(
        problem(soft.into(), Shapes::new(4, 2, 0)),
        Some(Error::Missing {
            argument: "teacher",
            ..
        })
    ));
    assert!(matches!(
        problem(relata::Gram::default().into(), Shapes::new(4, 2, 0)),
        Some(Error::Empty {
            argument: "teacher_dim"
        })
    ));
    let rows = Rows::new(&[1.0f32; 8], [4, 2]).expect("rows");
    let batch = Batch::of_student(rows).with_labels(&[1, 2, 1]);
    let problem = Problem::new(sup_con, batch.shapes()).expect("accepted");
    assert_eq!(
        problem.evaluate(&Cpu, batch).err(),
        Some(Error::Dimension {
            argument: "labels",
            expected: 4,
            got: 3
        })
    );
}
