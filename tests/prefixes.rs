//! Prefixes of the student's rows: the mean of the losses of cut rows, and its gradient.

mod common;

use common::cases::Data;
use common::compare::{assert_gradient, norm, relative_error};
use common::{Input, cast, naive, on_every_device};
use relata::{
    Batch, Cpu, DType, Device, Element, Evaluation, Gram, Loss, Order, Pkt, Problem, Reference,
    Rows, Shapes, check,
};

fn losses() -> [Loss; 4] {
    [
        Gram::default().into(),
        Gram { clamp: true }.into(),
        Pkt.into(),
        Order::default().into(),
    ]
}

/// N, D, D_t and prefixes: the smallest, and some that are no multiple of any block.
const CASES: [([usize; 3], &[usize]); 7] = [
    ([1, 1, 1], &[1]),
    ([2, 3, 4], &[1, 3]),
    ([5, 7, 3], &[2, 3, 5]),
    ([13, 40, 21], &[1, 8, 9, 33, 40]),
    ([33, 150, 70], &[16, 64, 130]),
    ([66, 100, 300], &[7, 50, 100]),
    (
        [9, 16, 5],
        &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
    ),
];

/// Batches so small that some of them have no terms of `order` that rounding decides.
const FEW_ROWS: usize = 20;

/// The first `width` elements of each row.
fn cut(rows: &[f64], dim: usize, width: usize) -> Vec<f64> {
    let rows = rows.chunks(dim).flat_map(|row| &row[..width]);
    rows.copied().collect()
}

/// The mean of the reference's single evaluations of cut rows, put together here.
fn mean_of_singles(loss: Loss, input: &Input, widths: &[usize], upstream: f64) -> (f64, Vec<f64>) {
    let dim = input.shapes.student_dim;
    let mut value = 0.0;
    let mut gradient = vec![0.0; input.student.len()];
    for &width in widths {
        let of_prefix = Input {
            shapes: Shapes {
                student_dim: width,
                ..input.shapes
            },
            student: cut(&input.student, dim, width),
            ..input.clone()
        };
        let single = of_prefix.evaluate::<f64, _>(&Reference, loss);
        let share = 1.0 / widths.len() as f64;
        value += share * single.loss;
        for (sums, row) in gradient.chunks_mut(dim).zip(single.gradient.chunks(width)) {
            for (sum, g) in sums.iter_mut().zip(row) {
                *sum += upstream * share * g;
            }
        }
    }
    (value, gradient)
}

/// Numbers of which `T` makes the same terms of `order` positive, whatever it rounds.
fn input(loss: Loss, shape: [usize; 3], widths: &[usize], seed: u64) -> Input {
    let [rows, dim, teacher_dim] = shape;
    let shapes = Shapes::new(rows, dim, teacher_dim);
    let Some(margin) = common::order::margin(&loss) else {
        return Input::normal(seed, shapes);
    };
    if rows > FEW_ROWS {
        return Input::normal(seed, shapes);
    }
    let decided = |input: &Input| {
        widths.iter().all(|&width| {
            let student = cut(&input.student, dim, width);
            let of_prefix = Shapes::new(rows, width, teacher_dim);
            let reach = [1e-6, 1e-6];
            let terms =
                common::order::within_reach(margin, &student, &input.teacher, of_prefix, reach);
            terms.gradient == 0.0
        })
    };
    let inputs =
        (0..20).map(|more| Input::normal(seed + 1000 * more, shapes).rounded::<half::f16>());
    let mut fallback = None;
    for input in inputs {
        if decided(&input) {
            return input;
        }
        fallback.get_or_insert(input);
    }
    fallback.expect("an input")
}

/// The widths, without those where rows of `pkt` lie opposite to one another: the logarithm of a
/// probability near 0 magnifies rounding, in single evaluations too.
fn distinct(loss: Loss, rows: usize, widths: &[usize]) -> Vec<usize> {
    let magnifies = matches!(loss, Loss::Pkt(_)) && rows > 1;
    let last = widths[widths.len() - 1];
    let widths = widths.iter().copied();
    widths
        .filter(|&width| !magnifies || width >= 4 || width == last)
        .collect()
}

fn tolerance(loss: Loss, rows: usize, gradient: DType) -> f64 {
    match gradient {
        DType::F64 => 1e-11,
        // Some terms of many pairs are decided by rounding.
        _ if matches!(loss, Loss::Order(_)) && rows > FEW_ROWS => 1e-3,
        _ => 5e-6,
    }
}

#[test]
fn prefixes_give_the_mean_of_cut_rows() {
    fn assert_mean<T: Element, D: Device<T>>(device: &D) {
        for loss in losses() {
            for (seed, (shape, widths)) in (0..).zip(CASES) {
                // The reference of `order` takes O(N⁴), and the emulator its time.
                let slow = device.name() == "emulator" && T::DTYPE != DType::F32;
                if shape[0] > 40 && (slow || matches!(loss, Loss::Order(_))) {
                    continue;
                }
                let widths = distinct(loss, shape[0], widths);
                let input = input(loss, shape, &widths, seed).rounded::<T>();
                let problem = input
                    .problem(loss)
                    .with_prefixes(&widths)
                    .expect("prefixes");
                let got = input.run::<T, _>(device, &problem.with_upstream(-0.7));
                let (value, gradient) = mean_of_singles(loss, &input, &widths, -0.7);
                let label = format!("{loss} on {} in {}, {shape:?}", device.name(), T::DTYPE);
                let allowed = tolerance(loss, shape[0], D::Gradient::DTYPE);
                assert!(
                    (got.loss - value).abs() <= allowed * value.abs().max(1e-3),
                    "{label}: {} is not {value}",
                    got.loss
                );
                // A gradient of cosines of ±1 is the rounding of nothing.
                if norm(&gradient) < 1e-9 {
                    let got: Vec<f64> = got.gradient.iter().map(|g| g.to_f64()).collect();
                    assert!(norm(&got) < 1e-5, "{label}");
                } else {
                    assert_gradient(&label, &got.gradient, &gradient, shape[1], allowed);
                }
                for row in got.gradient.chunks(shape[1]) {
                    let beyond = &row[widths[widths.len() - 1]..];
                    assert!(beyond.iter().all(|g| g.to_f64() == 0.0), "{label}");
                }
            }
        }
    }
    on_every_device!(assert_mean);
}

#[test]
fn one_prefix_of_whole_rows_changes_no_bit() {
    fn assert_same<T: Element, D: Device<T>>(device: &D) {
        for loss in losses() {
            let input = Input::normal(3, Shapes::new(11, 70, 20));
            let whole = input.problem(loss).with_upstream(3.0);
            let prefix = whole.with_prefixes(&[70]).expect("a prefix");
            let bits = |evaluation: Evaluation<D::Gradient>| {
                let gradient = evaluation.gradient.iter();
                let bits: Vec<u64> = gradient.map(|g| g.to_f64().to_bits()).collect();
                (evaluation.loss.to_bits(), bits)
            };
            let [whole, prefix] =
                [whole, prefix].map(|problem| bits(input.run::<T, _>(device, &problem)));
            assert_eq!(whole, prefix, "{loss} on {} in {}", device.name(), T::DTYPE);
        }
    }
    on_every_device!(assert_same);
}

#[test]
fn evaluations_repeat_to_the_bit() {
    fn assert_same<T: Element, D: Device<T>>(device: &D) {
        for loss in losses() {
            let input = Input::normal(5, Shapes::new(19, 90, 20));
            let problem = input
                .problem(loss)
                .with_prefixes(&[8, 32, 64])
                .expect("prefixes");
            let [a, b] = [0, 1].map(|_| input.run::<T, _>(device, &problem));
            assert_eq!(a, b, "{loss} on {}", device.name());
        }
    }
    on_every_device!(assert_same);
}

#[test]
fn gradients_are_those_of_differences() {
    for loss in losses() {
        let widths = [3, 5, 11];
        let input = input(loss, [8, 12, 9], &widths, 40);
        let problem = input
            .problem(loss)
            .with_prefixes(&widths)
            .expect("prefixes");
        let shapes = input.shapes;
        let batch = Batch::new(
            Rows::new(&input.student, [shapes.rows, shapes.student_dim]).expect("rows"),
            Rows::new(&input.teacher, [shapes.rows, shapes.teacher_dim]).expect("rows"),
        );
        let report = check(&problem.with_upstream(2.5), &Cpu, batch).expect("a report");
        assert!(report.passed(), "{loss}: {report}");
        let report = check(&problem, &Reference, batch).expect("a report");
        assert!(report.passed(), "{loss}: {report}");
    }
}

/// Lengths of prefixes, of rows and of elements far apart, and rows that begin with zeros.
#[test]
fn rows_of_any_length_count_by_their_direction() {
    fn assert_mean<T: Element, D: Device<T>>(device: &D) {
        for loss in [Loss::from(Gram::default()), Pkt.into()] {
            let widths = [4, 9, 20];
            let mut input = Input::normal(8, Shapes::new(10, 24, 6));
            for (i, row) in input.student.chunks_mut(24).enumerate() {
                match i {
                    0 => row.fill(0.0),
                    1 => row[..4].fill(0.0),
                    2 => row[..9].fill(0.0),
                    3 => row.iter_mut().for_each(|x| *x *= 1024.0),
                    4 => row.iter_mut().for_each(|x| *x /= 1024.0),
                    5 => row[..4].iter_mut().for_each(|x| *x /= 4096.0),
                    _ => {}
                }
                if i == 6 && matches!(T::DTYPE, DType::F64 | DType::F32 | DType::BF16) {
                    row[..4].iter_mut().for_each(|x| *x *= 1e-25);
                }
                if i == 7 && T::DTYPE == DType::F64 {
                    row[..9].iter_mut().for_each(|x| *x *= 1e-140);
                }
            }
            let input = input.rounded::<T>();
            let problem = input
                .problem(loss)
                .with_prefixes(&widths)
                .expect("prefixes");
            let got = input.run::<T, _>(device, &problem);
            let (value, gradient) = mean_of_singles(loss, &input, &widths, 1.0);
            let label = format!("{loss} on {} in {}", device.name(), T::DTYPE);
            let allowed = tolerance(loss, 10, D::Gradient::DTYPE);
            assert!((got.loss - value).abs() <= allowed * value, "{label}");
            // Each row by itself: their gradients are as far apart as the rows.
            for i in 0..10 {
                let row = |of: &[D::Gradient]| of[i * 24..][..24].to_vec();
                let want = &gradient[i * 24..][..24];
                assert_gradient(
                    &format!("{label}, row {i}"),
                    &row(&got.gradient),
                    want,
                    24,
                    4.0 * allowed,
                );
            }
        }
    }
    on_every_device!(assert_mean);
}

/// NaN within the prefixes is NaN in all of them that reach it; beyond the last one it counts for
/// nothing.
#[test]
fn what_no_prefix_reaches_counts_for_nothing() {
    fn assert_rules<T: Element, D: Device<T>>(device: &D) {
        for loss in losses() {
            let mut input = Input::normal(9, Shapes::new(7, 10, 6));
            let problem = input
                .problem(loss)
                .with_prefixes(&[3, 8])
                .expect("prefixes");
            let clean = input.run::<T, _>(device, &problem);
            input.student[9] = f64::NAN;
            assert_eq!(
                input.run::<T, _>(device, &problem),
                clean,
                "{loss} on {}",
                device.name()
            );
            input.student[5] = f64::INFINITY;
            let poisoned = input.run::<T, _>(device, &problem);
            assert!(poisoned.loss.is_nan(), "{loss} on {}", device.name());
            for row in poisoned.gradient.chunks(10) {
                assert!(
                    row[..8].iter().all(|g| g.to_f64().is_nan()),
                    "{loss} on {}",
                    device.name()
                );
                assert!(
                    row[8..].iter().all(|g| g.to_f64() == 0.0),
                    "{loss} on {}",
                    device.name()
                );
            }
        }
    }
    on_every_device!(assert_rules);
}

#[test]
fn problems_tell_their_prefixes() {
    let problem = Problem::new(Gram::default(), Shapes::new(4, 8, 8)).expect("a problem");
    assert_eq!(problem.prefix_widths(), [0; 0]);
    let problem = problem.with_prefixes(&[2, 8]).expect("prefixes");
    assert_eq!(problem.prefix_widths(), [2, 8]);
}

/// On every kind of data the gradient is off by at most twice the error of the definition in f32.
#[test]
fn gradients_are_as_exact_as_the_definition_in_f32() {
    const SEEDS: u64 = 6;
    let (shape, widths) = ([24, 96, 40], [16, 40, 96]);
    let [rows, dim, teacher_dim] = shape;
    let students = [
        Data::Gaussian,
        Data::Clusters { spread: 5e-2 },
        Data::Clusters { spread: 1e-3 },
        Data::Translated { distance: 1e2 },
        Data::Scaled { factor: 1e-12 },
        Data::Scaled { factor: 1e12 },
    ];
    let losses: [(Loss, naive::Direct); 2] = [
        (Gram::default().into(), naive::gram),
        (Pkt.into(), naive::pkt),
    ];
    for (loss, direct) in losses {
        for student in students {
            let mut squares = [0.0; 2];
            for seed in 0..SEEDS {
                let shapes = Shapes::new(rows, dim, teacher_dim);
                let input = Input::of_data(seed, shapes, student).rounded::<f32>();
                let problem = input
                    .problem(loss)
                    .with_prefixes(&widths)
                    .expect("prefixes");
                let (_, want) = mean_of_singles(loss, &input, &widths, 1.0);
                let got = input.run::<f32, _>(&Cpu, &problem).gradient;
                let mut plain = vec![0.0f32; rows * dim];
                let teacher = cast::<f32>(&input.teacher);
                for width in widths {
                    let student = cast::<f32>(&cut(&input.student, dim, width));
                    let (_, part) = direct(&student, &teacher, [rows, width, teacher_dim]);
                    for (sums, row) in plain.chunks_mut(dim).zip(part.chunks(width)) {
                        for (sum, g) in sums.iter_mut().zip(row) {
                            *sum += g / 3.0;
                        }
                    }
                }
                for (sum, gradient) in squares.iter_mut().zip([&got, &plain]) {
                    *sum += relative_error(gradient, &want).powi(2) / SEEDS as f64;
                }
            }
            let [got, plain] = squares.map(f64::sqrt);
            println!("{loss}, {student:?}: {got:.2e}, directly {plain:.2e}");
            assert!(
                got <= 2.0 * plain,
                "{loss}, {student:?}: {got:e}, directly {plain:e}"
            );
        }
    }
}
