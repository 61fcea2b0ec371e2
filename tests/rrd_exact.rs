//! RRD's divergence where its formula cancels: near the teacher. The expected values were computed
//! from the definition with 60 digits (mpmath).

#[cfg(feature = "emulator")]
mod common;

use relata::{Batch, Cpu, Device, Element, Problem, Queue, Real, Reference, Rows, Rrd};

/// Two rows. The keys are the axes and their negatives, so normalisation does not round them.
const TEACHER: [f64; 8] = [0.5, -1.25, 2.0, 0.75, 3.0, 0.25, -0.5, 1.0];
const DIM: usize = 4;

/// The teacher's rows, moved by multiples of `step`.
fn student(step: f64) -> [f64; 8] {
    let mut rows = TEACHER;
    rows[0] += step;
    rows[2] -= step;
    rows[5] += 2.0 * step;
    rows[7] -= step;
    rows
}

/// The step as a power of two, both temperatures, the divergence.
const CASES: [(i32, [f64; 2], f64); 13] = [
    (-20, [0.1, 0.1], 1.5150158565455747e-13),
    (-20, [0.05, 0.05], 2.5971053551112966e-14),
    (-20, [1.0, 1.0], 3.854_075_987_660_861e-14),
    (-20, [100.0, 100.0], 4.211263775149701e-18),
    (-14, [0.1, 0.1], 6.206_142_308_343_197e-10),
    (-14, [1.0, 1.0], 1.5786530047374484e-10),
    (-10, [0.1, 0.1], 1.5912620090350513e-7),
    (-10, [0.05, 0.05], 2.7309306618010863e-8),
    (-10, [100.0, 100.0], 4.416_808_194_702_19e-12),
    (-6, [0.1, 0.1], 4.177_770_575_152_959e-5),
    (-6, [1.0, 1.0], 1.0385271608324318e-5),
    (-6, [0.5, 0.4], 0.021233772135026362),
    (-20, [0.5, 0.4], 0.02104828589038286),
];

fn queue<R: Real>() -> Queue<R> {
    let mut keys = vec![R::ZERO; 2 * DIM * DIM];
    for d in 0..DIM {
        keys[2 * d * DIM + d] = R::ONE;
        keys[(2 * d + 1) * DIM + d] = -R::ONE;
    }
    let mut queue = Queue::new(2 * DIM, DIM).unwrap();
    queue
        .enqueue(Rows::new(&keys, [2 * DIM, DIM]).unwrap())
        .unwrap();
    queue
}

fn kl<T: Element, D: Device<T>>(
    device: &D,
    student: &[f64],
    [student_temperature, teacher_temperature]: [f64; 2],
    queue: &Queue<T::Real>,
) -> f64 {
    let [x, y] =
        [student, &TEACHER].map(|rows| rows.iter().map(|&x| T::from_f64(x)).collect::<Vec<_>>());
    let [x, y] = [&x, &y].map(|rows| Rows::new(rows, [2, DIM]).unwrap());
    let loss = Rrd {
        student_temperature,
        teacher_temperature,
        ..Rrd::default()
    };
    let batch = Batch::new(x, y).with_queue(queue);
    let problem = Problem::new(loss, batch.shapes()).unwrap();
    let evaluation = problem.evaluate(device, batch).unwrap();
    evaluation.term("kl").expect("RRD's divergence")
}

/// Asserts errors of at most so much of the divergence.
#[track_caller]
fn assert_exact<T: Element, D: Device<T>>(device: &D, relative: f64) {
    let queue = queue::<T::Real>();
    for (step, temperatures, want) in CASES {
        let got = kl(
            device,
            &student(f64::exp2(step.into())),
            temperatures,
            &queue,
        );
        let off = (got - want).abs() / want;
        let text = format!(
            "{} in {}, step 2^{step}, temperatures {temperatures:?}: {got:e}, off by {off:.1e}",
            device.name(),
            T::DTYPE
        );
        println!("{text}");
        assert!(off <= relative, "{text}");
    }
    for temperature in [0.02, 0.1, 1.0, 1e6] {
        // Twice the teacher's rows have the same directions.
        let twice = TEACHER.map(|x| 2.0 * x);
        for student in [TEACHER, twice] {
            let got = kl(device, &student, [temperature; 2], &queue);
            assert!((0.0..1e-15).contains(&got), "{}: {got:e}", device.name());
        }
    }
}

#[test]
fn the_reference_is_exact() {
    assert_exact::<f64, _>(&Reference, 1e-8);
    assert_exact::<f32, _>(&Reference, 1e-8);
}

#[test]
fn the_cpu_is_exact() {
    assert_exact::<f64, _>(&Cpu, 1e-8);
    assert_exact::<f32, _>(&Cpu, 1e-5);
}

#[cfg(feature = "emulator")]
#[test]
fn the_kernels_are_exact() {
    assert_exact::<f32, _>(&relata::Emulator::new(), 5e-6);
}

/// The divergence of one row of two elements, with these rows and axes of these lengths as keys.
fn kl_of_two<T: Element, D: Device<T>>(
    device: &D,
    rows: [[f64; 2]; 2],
    key: f64,
    loss: Rrd,
) -> f64 {
    let cast = |x: &[f64]| x.iter().map(|&x| T::from_f64(x)).collect::<Vec<_>>();
    let [student, teacher] = rows.map(|row| cast(&row));
    let keys = cast(&[key, 0.0, 0.0, key]);
    let mut queue = Queue::new(2, 2).unwrap().with_normalize(loss.normalize);
    queue.enqueue(Rows::new(&keys, [2, 2]).unwrap()).unwrap();
    let [x, y] = [&student, &teacher].map(|row| Rows::new(row, [1, 2]).unwrap());
    let batch = Batch::new(x, y).with_queue(&queue);
    let problem = Problem::new(loss, batch.shapes()).unwrap();
    let evaluation = problem.evaluate(device, batch).unwrap();
    evaluation.term("kl").expect("RRD's divergence")
}

/// A row is near its teacher as a whole, but for one key they differ by e^12: the series of small
/// differences is far off there.
#[test]
fn a_key_that_a_near_row_weighs_otherwise_counts() {
    fn assert_exact<T: Element, D: Device<T>>(device: &D, relative: f64) {
        let loss = Rrd {
            student_temperature: 0.05,
            teacher_temperature: 0.05,
            ..Rrd::default()
        };
        for angle in [0.4f64, 0.5, 0.51] {
            let (sin, cos) = angle.sin_cos();
            let got = kl_of_two::<T, D>(device, [[cos, sin], [1.0, 0.0]], 1.0, loss);
            // The odds of the second key, of teacher and student. The student's row is rounded.
            let [cos, sin] = [cos, sin].map(|x| T::from_f64(x).to_f64());
            let log_odds = [-20.0, (sin - cos) / cos.hypot(sin) / 0.05];
            let [p, q] = log_odds.map(f64::exp);
            let first = q.ln_1p() - p.ln_1p();
            let second = log_odds[0] - log_odds[1] + first;
            let want = (first + p * second) / (1.0 + p);
            let off = (got - want).abs() / want;
            let text = format!("{}, {angle}: {got:e} for {want:e}", device.name());
            println!("{text}, off by {off:.1e}");
            assert!(want < 1e-3 && off <= relative, "{text}");
        }
    }
    assert_exact::<f64, _>(&Reference, 1e-8);
    assert_exact::<f64, _>(&Cpu, 1e-8);
    assert_exact::<f32, _>(&Cpu, 1e-5);
    #[cfg(feature = "emulator")]
    assert_exact::<f32, _>(&relata::Emulator::new(), 1e-5);
}

/// The products of both rows with the keys are numbers of f32, and their difference at the second
/// key is not. The first key has all of the weight.
#[test]
fn a_difference_that_overflows_leaves_the_divergence_as_it_is() {
    fn assert_zero<T: Element, D: Device<T>>(device: &D) {
        let loss = Rrd {
            student_temperature: 1.0,
            teacher_temperature: 1.0,
            normalize: false,
            ..Rrd::default()
        };
        let rows = [[1.4e19, -1.25e19], [1.4e19, 1.25e19]];
        let got = kl_of_two::<T, D>(device, rows, 1.4e19, loss);
        assert!(got == 0.0, "{}: {got:e}", device.name());
    }
    assert_zero::<f32, _>(&Reference);
    assert_zero::<f32, _>(&Cpu);
    #[cfg(feature = "emulator")]
    assert_zero::<f32, _>(&relata::Emulator::new());
}

/// Many rows and keys, of which some rows are near their teacher: several tiles and splits. The
/// queue of a GPU rounds keys of half types to f16.
#[cfg(feature = "emulator")]
#[test]
fn the_kernels_find_the_rows_that_are_near() {
    use common::Input;
    use half::{bf16, f16};

    fn assert_close<T: Element<Real = f32>>(dim: usize, tolerance: f64)
    where
        relata::Emulator: Device<T>,
        Reference: Device<T>,
    {
        let (n, keys) = (70, 300);
        let shapes = relata::Shapes::new(n, dim, dim).with_queue(keys);
        for noise in [1e-4, 1e-3, 0.03, 1.0] {
            let mut input = Input::normal(5, shapes);
            for (at, x) in input.student.iter_mut().enumerate() {
                // Every third row is farther from its teacher.
                let times = if at / dim % 3 == 1 { 20.0 } else { 1.0 };
                *x = input.teacher[at] + times * noise * *x;
            }
            let loss = Rrd {
                student_temperature: 0.2,
                teacher_temperature: 0.2,
                ..Rrd::default()
            };
            let want = input.evaluate::<T, _>(&Reference, loss);
            let got = input.evaluate::<T, _>(&relata::Emulator::new(), loss);
            let [got, want] = [got.term("kl").unwrap(), want.term("kl").unwrap()];
            let off = (got - want).abs() / want;
            let text = format!("{} D {dim}, noise {noise}: {got:e} {want:e}", T::DTYPE);
            println!("{text}, off by {off:.1e}");
            assert!(off <= tolerance, "{text}");
        }
    }
    for dim in [5, 40, 130] {
        assert_close::<f32>(dim, 1e-5);
        assert_close::<f16>(dim, 2e-4);
        assert_close::<bf16>(dim, 2e-4);
    }
}
