//! Groups of rows: the mean of the losses of single groups, and its gradient.

mod common;

use common::compare::{assert_same_bits, norm};
use common::{Input, Random, losses, on_every_device, order};
use rayon::ThreadPoolBuilder;
use relata::{
    Batch, Cpu, DType, Device, Element, Evaluation, Family, Gram, Loss, Order, Pkt, Problem, Real,
    Reference, RkdDistance, Rows, Shapes, check,
};

/// The losses that compare rows of a batch, with every option off its default at least once.
fn relational() -> impl Iterator<Item = Loss> {
    let clamped = Loss::from(Gram { clamp: true });
    let all = losses::losses().into_iter().chain([clamped]);
    all.filter(|loss| matches!(loss.spec().family, Family::Pairwise(_) | Family::Triplet(_)))
}

/// Groups, N of each, D and D_t: the smallest, odd ones, and more rows than the tiles of a kernel.
const CASES: [[usize; 4]; 7] = [
    [1, 5, 7, 3],
    [2, 1, 4, 3],
    [3, 2, 1, 5],
    [4, 9, 33, 7],
    [7, 5, 16, 16],
    [3, 17, 130, 33],
    [2, 66, 7, 40],
];

fn shapes([groups, rows, dim, teacher_dim]: [usize; 4]) -> Shapes {
    Shapes::new(groups * rows, dim, teacher_dim)
}

fn input(seed: u64, case: [usize; 4]) -> Input {
    Input::normal(seed, shapes(case))
}

/// The batches of the groups.
fn singles(input: &Input, groups: usize) -> Vec<Input> {
    let Shapes {
        rows,
        student_dim,
        teacher_dim,
        ..
    } = input.shapes;
    let rows = rows / groups;
    let students = input.student.chunks(rows * student_dim);
    let pairs = students.zip(input.teacher.chunks(rows * teacher_dim));
    pairs
        .map(|(student, teacher)| Input {
            shapes: Shapes::new(rows, student_dim, teacher_dim),
            student: student.to_vec(),
            teacher: teacher.to_vec(),
            keys: Vec::new(),
        })
        .collect()
}

/// One evaluation of all groups is what evaluations of single groups give: the gradient to the last
/// bit, the loss and its terms as their means, to the rounding of a number of the device.
#[track_caller]
fn assert_mean<T: Element, D: Device<T>>(
    label: &str,
    device: &D,
    input: &Input,
    groups: usize,
    problem_of: impl Fn(&Input) -> Problem,
) -> Evaluation<D::Gradient> {
    let label = format!("{label} on {} in {}", device.name(), T::DTYPE);
    let problem = problem_of(input).with_groups(groups).expect("groups");
    let got = input.run::<T, _>(device, &problem);
    let mut gradient = Vec::new();
    let mut sums = vec![0.0; 1 + got.terms.iter().count()];
    for single in singles(input, groups) {
        let problem = problem_of(&single);
        let problem = problem.with_upstream(problem.upstream() / groups as f64);
        let single = single.run::<T, _>(device, &problem);
        gradient.extend(single.gradient);
        let terms = single.terms.iter().map(|(_, term)| term);
        for (sum, value) in sums.iter_mut().zip([single.loss].into_iter().chain(terms)) {
            *sum += value;
        }
    }
    assert_same_bits(&label, &got.gradient, &gradient);
    let allowed = match device.name() {
        "reference" | "cpu" => 1e-15,
        _ => f64::from(f32::EPSILON),
    };
    let terms = got.terms.iter().map(|(_, term)| term);
    for (got, sum) in [got.loss].into_iter().chain(terms).zip(sums) {
        let mean = sum / groups as f64;
        assert!(
            (got - mean).abs() <= allowed * mean.abs(),
            "{label}: {got:e} is not {mean:e}"
        );
    }
    got
}

/// The reference takes O(N³D), or O(N⁴), and the emulator its time: the CPU alone has all cases.
#[test]
fn groups_give_the_mean_of_single_groups() {
    fn assert_right<T: Element, D: Device<T>>(device: &D) {
        for loss in relational() {
            let mut steepest = 0.0f64;
            for (seed, case) in (0..).zip(CASES) {
                let most = match (device.name(), T::DTYPE) {
                    ("cpu", _) => usize::MAX,
                    ("emulator", DType::F16 | DType::BF16) => 9,
                    _ => 20,
                };
                if case[1] > most {
                    continue;
                }
                let input = input(seed, case);
                let label = format!("{loss:?}, {case:?}");
                let got = assert_mean::<T, _>(&label, device, &input, case[0], |input| {
                    input.problem(loss).with_upstream(-0.7)
                });
                steepest = steepest.max(got.gradient_norm());
            }
            assert!(steepest > 1e-4, "{loss:?}: nothing to compare");
        }
    }
    on_every_device!(assert_right);
}

/// More groups than the threads of a block, and groups as large as those that are evaluated one by
/// one.
#[test]
fn groups_may_be_many_or_large() {
    fn assert_right<T: Element, D: Device<T>>(device: &D) {
        if device.name() == "emulator" && T::DTYPE != DType::F32 {
            return; // it takes its time
        }
        for loss in [Loss::from(Gram::default()), RkdDistance::default().into()] {
            let of = |input: &Input| input.problem(loss);
            let many = [300, 2, 3, 2];
            assert_mean::<T, _>("many", device, &input(1, many), many[0], of);
            if device.name() == "cpu" {
                let large = [2, 530, 5, 3];
                assert_mean::<T, _>("large", device, &input(2, large), large[0], of);
            }
        }
    }
    on_every_device!(assert_right);
}

#[test]
fn one_group_changes_no_bit() {
    fn assert_same<T: Element, D: Device<T>>(device: &D) {
        for loss in relational() {
            let input = input(3, [1, 11, 70, 20]);
            let whole = input.problem(loss).with_upstream(3.0);
            let group = whole.with_groups(1).expect("a group");
            assert_eq!(whole, group);
            let [whole, group] = [whole, group].map(|problem| input.run::<T, _>(device, &problem));
            assert_eq!(whole, group, "{loss} on {}", device.name());
        }
    }
    on_every_device!(assert_same);
}

#[test]
fn prefixes_apply_to_each_group() {
    fn assert_right<T: Element, D: Device<T>>(device: &D) {
        for loss in [
            Loss::from(Gram::default()),
            Pkt.into(),
            Order::default().into(),
        ] {
            let case = [3, 7, 40, 12];
            let input = input(4, case);
            for widths in [&[5, 16, 33][..], &[40], &[8, 40]] {
                let with = |input: &Input| {
                    let problem = input.problem(loss).with_upstream(2.5);
                    problem.with_prefixes(widths).expect("prefixes")
                };
                let label = format!("{loss}, {widths:?}");
                let got = assert_mean::<T, _>(&label, device, &input, case[0], with);
                // In whatever order they are set.
                let problem = input.problem(loss).with_groups(case[0]).expect("groups");
                let problem = problem.with_prefixes(widths).expect("prefixes");
                let again = input.run::<T, _>(device, &problem.with_upstream(2.5));
                assert_eq!(got, again, "{label}");
            }
        }
    }
    on_every_device!(assert_right);
}

/// Groups of which each is a hostile batch of its own: equal rows, rows of zeros, a row of another
/// size, and sizes of groups so far apart that some are computed in f64 and others in f32.
#[test]
fn groups_may_be_of_any_data() {
    fn assert_right<T: Element, D: Device<T>>(device: &D) {
        let [groups, rows, dim, _] = [6, 6, 9, 9];
        let mut input = input(5, [groups, rows, dim, dim]);
        let large = if T::DTYPE == DType::F16 { 1e2 } else { 1e9 };
        for (nth, group) in input.student.chunks_mut(rows * dim).enumerate() {
            match nth {
                0 => group.fill(0.0),
                1 => group.copy_from_slice(&[1.5; 6 * 9]),
                2 => group.iter_mut().for_each(|x| *x *= large),
                3 => group.iter_mut().for_each(|x| *x /= large),
                4 => group[..dim].iter_mut().for_each(|x| *x *= large),
                _ => {}
            }
        }
        for loss in relational() {
            // The squares of squares of 1e9, and its cube.
            if matches!(loss, Loss::Sp(_) | Loss::DarkRank(_)) && large > 1e3 {
                continue;
            }
            let of = |input: &Input| input.problem(loss);
            assert_mean::<T, _>(&format!("{loss:?}"), device, &input, groups, of);
        }
    }
    on_every_device!(assert_right);
}

/// The loss of all is NaN, and so is the gradient of that group. The others' gradients stay.
#[test]
fn a_nan_spoils_its_own_group() {
    fn assert_spoils<T: Element, D: Device<T>>(device: &D) {
        let [groups, rows, dim, teacher_dim] = [3, 5, 6, 4];
        let len = rows * dim;
        for loss in relational() {
            let clean = input(6, [groups, rows, dim, teacher_dim]);
            let problem = clean.problem(loss).with_groups(groups).expect("groups");
            let want = clean.run::<T, _>(device, &problem);
            for bad in [f64::NAN, f64::INFINITY] {
                let mut student = clean.clone();
                student.student[len + 7] = bad;
                let mut teacher = clean.clone();
                teacher.teacher[rows * teacher_dim + 7] = bad;
                for spoilt in [student, teacher] {
                    let got = spoilt.run::<T, _>(device, &problem);
                    let label = format!("{loss:?} on {} in {}", device.name(), T::DTYPE);
                    assert!(got.loss.is_nan(), "{label}");
                    assert!(got.terms.iter().all(|(_, term)| term.is_nan()), "{label}");
                    let (before, rest) = got.gradient.split_at(len);
                    let (spoilt, after) = rest.split_at(len);
                    assert!(spoilt.iter().any(|g| g.to_f64().is_nan()), "{label}");
                    assert_same_bits(&label, before, &want.gradient[..len]);
                    assert_same_bits(&label, after, &want.gradient[2 * len..]);
                }
            }
        }
    }
    on_every_device!(assert_spoils);
}

/// Independent normals of which no difference of the loss crosses a kink, in any group.
fn smooth_input(loss: &Loss, case: [usize; 4], step: f64) -> Input {
    let smooth = |input: &Input| {
        singles(input, case[0]).iter().all(|single| {
            order::margin(loss).is_none_or(|margin| {
                let (x, y) = (&single.student, &single.teacher);
                let shortest = x.chunks(case[2]).map(norm).fold(1.0, f64::min);
                let reach = [2.0 * step / shortest, 0.0];
                order::within_reach(margin, x, y, single.shapes, reach).gradient == 0.0
            })
        })
    };
    let mut inputs = (0..).map(|seed| {
        let mut input = input(seed, case);
        if order::length(loss).is_some() {
            // Powers of distances want distances of about 1.
            let unit = (2.0 * case[2] as f64).sqrt();
            input.student.iter_mut().for_each(|x| *x /= unit);
        }
        input
    });
    inputs.find(smooth).expect("a seed")
}

#[test]
fn gradients_are_those_of_differences() {
    const STEP: f64 = 1e-5;
    for loss in relational() {
        let case = [3, 4, 3, 5];
        let input = smooth_input(&loss, case, STEP);
        let problem = input.problem(loss).with_groups(case[0]).expect("groups");
        let problem = problem.with_upstream(1.5);
        let mut moved = input.clone();
        let mut want = Vec::new();
        for at in 0..input.student.len() {
            let mut loss_at = |t: f64| {
                moved.student[at] = input.student[at] + t;
                moved.run::<f64, _>(&Reference, &problem).loss
            };
            want.push(1.5 * (loss_at(STEP) - loss_at(-STEP)) / (2.0 * STEP));
            moved.student[at] = input.student[at];
        }
        for got in [
            input.run::<f64, _>(&Reference, &problem).gradient,
            input.run::<f64, _>(&Cpu, &problem).gradient,
        ] {
            let error: Vec<f64> = got.iter().zip(&want).map(|(g, w)| g - w).collect();
            let within = norm(&error) <= 1e-8 * norm(&want) + 1e-9;
            assert!(within, "{loss:?}: {:e} of {:e}", norm(&error), norm(&want));
        }
        assert!(norm(&want) > 1e-4, "{loss:?}: flat");
    }
}

/// `check` knows of groups: also where they lie so far apart that a step of all is long for each.
#[test]
fn check_passes_groups() {
    for loss in relational() {
        if order::margin(&loss).is_some() {
            continue; // its kinks: `gradients_are_those_of_differences`
        }
        let case = [3, 6, 5, 7];
        let mut input = input(9, case);
        if !losses::normalizes(&loss)
            && !matches!(loss, Loss::Pkt(_))
            && !matches!(loss, Loss::Sp(_))
        {
            let len = case[1] * case[2];
            for (nth, group) in input.student.chunks_mut(len).enumerate() {
                group.iter_mut().for_each(|x| *x += 100.0 * nth as f64);
            }
        }
        let problem = input.problem(loss).with_groups(case[0]).expect("groups");
        let rows = |data, dim| Rows::new(data, [18, dim]).expect("whole rows");
        let batch = Batch::new(rows(&input.student, 5), rows(&input.teacher, 7));
        for report in [
            check(&problem, &Cpu, batch).expect("a report"),
            check(&problem, &Reference, batch).expect("a report"),
        ] {
            assert!(report.passed(), "{loss:?}: {report}");
        }
    }
}

#[test]
fn the_bits_are_the_same_on_any_number_of_threads() {
    fn bits<R: Real>(evaluation: &Evaluation<R>) -> Vec<u64> {
        let gradient = evaluation.gradient.iter().map(|g| g.to_f64().to_bits());
        gradient.chain([evaluation.loss.to_bits()]).collect()
    }
    for loss in relational() {
        let input = input(10, [9, 33, 20, 12]);
        let problem = input.problem(loss).with_groups(9).expect("groups");
        let outside = input.run::<f32, _>(&Cpu, &problem);
        for threads in [1, 2, 3, 7] {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build();
            let inside = pool
                .expect("threads")
                .install(|| input.run::<f32, _>(&Cpu, &problem));
            assert!(
                bits(&inside) == bits(&outside),
                "{loss:?}, {threads} threads"
            );
        }
    }
}

/// Rows of a group may come in any order: the loss does not change, and the gradient follows. Rows
/// of two groups may not.
#[test]
fn rows_belong_to_their_group() {
    let case = [4, 5, 6, 3];
    let input = input(11, case);
    let problem = input.problem(Gram::default());
    let problem = problem.with_groups(case[0]).expect("groups");
    let loss = |input: &Input| input.run::<f64, _>(&Cpu, &problem).loss;
    let swapped = |a: usize, b: usize| {
        let mut swapped = input.clone();
        for d in 0..case[2] {
            swapped.student.swap(a * case[2] + d, b * case[2] + d);
        }
        for d in 0..case[3] {
            swapped.teacher.swap(a * case[3] + d, b * case[3] + d);
        }
        swapped
    };
    let of = loss(&input);
    let mut random = Random::new(1);
    for _ in 0..10 {
        let [a, b] = [0, 1].map(|_| (random.next() % 20) as usize);
        let change = (loss(&swapped(a, b)) - of).abs();
        if a / case[1] == b / case[1] {
            assert!(change <= 1e-14 * of, "{a} and {b}: {change:e}");
        } else {
            assert!(change > 1e-6 * of, "{a} and {b}: {change:e}");
        }
    }
}

#[test]
fn problems_tell_their_groups() {
    let problem = Problem::new(Gram::default(), Shapes::new(12, 8, 8)).expect("a problem");
    assert_eq!(problem.groups(), 1);
    let problem = problem.with_groups(4).expect("groups");
    assert_eq!((problem.groups(), problem.shapes().rows), (4, 12));
    assert_eq!(problem.with_groups(3).expect("groups").groups(), 3);
}
