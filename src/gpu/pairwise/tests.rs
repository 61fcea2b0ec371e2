//! The kernels against the family's formula, evaluated with plain loops.

use bytemuck::Pod;
use half::{bf16, f16};

use super::*;
use crate::gpu::element::GpuElement;
use crate::gpu::emulator::Emulator;
use crate::gpu::machine::Machine;
use crate::gpu::plan::QueueAddresses;
use crate::loss::{Loss, Normalizer, Relation};
use crate::rows::Rows;
use crate::{Reference, RkdDistance, Sp};

const HUBER: Penalty = Penalty::Huber { delta: 0.7 };

const fn pairwise(relation: Relation, normalizer: Normalizer, penalty: Penalty) -> Pairwise {
    Pairwise::new(relation, normalizer, penalty)
}

const SP: Pairwise = pairwise(Relation::Dot, Normalizer::RowL2, Penalty::Squared);
/// ε is so large that it counts.
const PKT: Pairwise = pairwise(
    Relation::ShiftedCosine,
    Normalizer::RowSum,
    Penalty::Divergence { epsilon: 1e-3 },
);
const INSTANCES: [Pairwise; 8] = [
    SP,
    PKT,
    pairwise(Relation::PositiveCosine, Normalizer::None, Penalty::Squared),
    pairwise(Relation::Cosine, Normalizer::RowL2, Penalty::Squared),
    pairwise(Relation::Distance, Normalizer::Mean, HUBER),
    pairwise(Relation::Dot, Normalizer::None, Penalty::Squared),
    pairwise(Relation::Cosine, Normalizer::None, Penalty::Squared),
    pairwise(Relation::SquaredDistance, Normalizer::Frobenius, HUBER),
];

/// What an evaluation gives: the loss and the gradient.
type Result<G> = (f64, Vec<G>);

/// The formula, with every operation rounded.
struct Formula {
    pairwise: Pairwise,
    round: fn(f64) -> f64,
    /// Whether the gradient adds up the sizes of its terms, so that none cancels another.
    sizes: bool,
}

impl Formula {
    const EXACT: fn(f64) -> f64 = |x| x;
    /// As a library in f32 would evaluate it.
    const IN_F32: fn(f64) -> f64 = |x| f64::from(x as f32);

    fn fma(&self, a: f64, b: f64, sum: f64) -> f64 {
        (self.round)(a * b + sum)
    }

    fn dot(&self, a: &[f64], b: &[f64]) -> f64 {
        a.iter()
            .zip(b)
            .fold(0.0, |sum, (&a, &b)| self.fma(a, b, sum))
    }

    /// Neighbours first: the order of sums that rounds least.
    fn sum(&self, x: &[f64]) -> f64 {
        match x {
            [] => 0.0,
            [x] => *x,
            _ => {
                let (a, b) = x.split_at(x.len() / 2);
                (self.round)(self.sum(a) + self.sum(b))
            }
        }
    }

    fn relations(&self, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let relation = |a: &[f64], b: &[f64]| {
            let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| (self.round)(a - b)).collect();
            match self.pairwise.relation {
                Relation::Distance => (self.round)(self.dot(&differences, &differences).sqrt()),
                Relation::SquaredDistance => self.dot(&differences, &differences),
                Relation::Dot | Relation::Cosine => self.dot(a, b),
                Relation::PositiveCosine => self.dot(a, b).max(0.0),
                Relation::ShiftedCosine => (self.round)(0.5 + 0.5 * self.dot(a, b)),
            }
        };
        let row = |a: &Vec<f64>| x.iter().map(|b| relation(a, b)).collect();
        x.iter().map(row).collect()
    }

    /// s of each row.
    fn scales(&self, r: &[Vec<f64>]) -> Vec<f64> {
        let n = r.len();
        let squares =
            |row: &[f64]| self.sum(&row.iter().map(|r| (self.round)(r * r)).collect::<Vec<_>>());
        match self.pairwise.normalizer {
            Normalizer::None => vec![1.0; n],
            Normalizer::RowL2 => r
                .iter()
                .map(|row| (self.round)(squares(row).sqrt()))
                .collect(),
            Normalizer::RowSum => r.iter().map(|row| self.sum(row)).collect(),
            Normalizer::Frobenius => {
                let rows: Vec<f64> = r.iter().map(|row| squares(row)).collect();
                vec![(self.round)(self.sum(&rows).sqrt()); n]
            }
            Normalizer::Mean => {
                let off_diagonal = |i: usize, row: &[f64]| {
                    let others: Vec<f64> = (0..n).filter(|&j| j != i).map(|j| row[j]).collect();
                    self.sum(&others)
                };
                let rows: Vec<f64> = r
                    .iter()
                    .enumerate()
                    .map(|(i, row)| off_diagonal(i, row))
                    .collect();
                vec![(self.round)(self.sum(&rows) / (n * (n - 1)).max(1) as f64); n]
            }
        }
    }

    fn scaled(&self, r: &[Vec<f64>], s: &[f64]) -> Vec<Vec<f64>> {
        let scaled = |r: f64, s: f64| if s == 0.0 { 0.0 } else { (self.round)(r / s) };
        r.iter()
            .zip(s)
            .map(|(row, &s)| row.iter().map(|&r| scaled(r, s)).collect())
            .collect()
    }

    /// The penalty and its slope.
    fn penalty(&self, u: f64, v: f64) -> (f64, f64) {
        let e = (self.round)(u - v);
        match self.pairwise.penalty {
            Penalty::Squared => ((self.round)(e * e), 2.0 * e),
            Penalty::Huber { delta } => {
                let w = e.clamp(-delta, delta);
                ((self.round)(w * (e - 0.5 * w)), w)
            }
            Penalty::Divergence { epsilon } => {
                let ratio = (self.round)((self.round)(v + epsilon) / (self.round)(u + epsilon));
                let log = (self.round)(ratio.ln());
                ((self.round)(v * log), (self.round)(-v / (u + epsilon)))
            }
            Penalty::Order { .. } | Penalty::Ranking { .. } => unreachable!("no sum over pairs"),
        }
    }

    /// Rows of norm 1, if the relation wants them, and 1/‖x‖.
    fn normalized(&self, x: &[Vec<f64>]) -> (Vec<Vec<f64>>, Option<Vec<f64>>) {
        if !self.pairwise.relation.is_of_directions() {
            return (x.to_vec(), None);
        }
        let inverses: Vec<f64> = x
            .iter()
            .map(|row| {
                let norm = (self.round)(self.dot(row, row).sqrt());
                if norm == 0.0 { 0.0 } else { 1.0 / norm }
            })
            .collect();
        let unit = |(row, inverse): (&Vec<f64>, &f64)| {
            row.iter().map(|x| (self.round)(x * inverse)).collect()
        };
        (x.iter().zip(&inverses).map(unit).collect(), Some(inverses))
    }

    fn evaluate(&self, x: &[Vec<f64>], y: &[Vec<f64>]) -> Result<f64> {
        let (n, dim) = (x.len(), x[0].len());
        let ((x, inverses), (y, _)) = (self.normalized(x), self.normalized(y));
        let (r, t) = (self.relations(&x), self.relations(&y));
        let (s, s_y) = (self.scales(&r), self.scales(&t));
        let (u, v) = (self.scaled(&r, &s), self.scaled(&t, &s_y));
        let each = |i: usize, j: usize| self.penalty(u[i][j], v[i][j]);
        let w: Vec<Vec<f64>> = (0..n)
            .map(|i| (0..n).map(|j| each(i, j).1).collect())
            .collect();
        let penalties: Vec<f64> = (0..n * n).map(|ij| each(ij / n, ij % n).0).collect();
        // Σ w u over the scope of each row.
        let mut through: Vec<f64> = (0..n).map(|i| self.dot(&w[i], &u[i])).collect();
        if matches!(
            self.pairwise.normalizer,
            Normalizer::Mean | Normalizer::Frobenius
        ) {
            through = vec![self.sum(&through); n];
        }
        let slope = |i: usize, j: usize| {
            let of_scale = match self.pairwise.normalizer {
                Normalizer::None => 0.0,
                Normalizer::Mean if i == j => 0.0,
                Normalizer::Mean => 1.0 / (n * (n - 1)) as f64,
                Normalizer::RowSum => 1.0,
                Normalizer::RowL2 | Normalizer::Frobenius => u[i][j],
            };
            if s[i] == 0.0 {
                return 0.0;
            }
            if self.sizes {
                return (w[i][j].abs() + (through[i] * of_scale).abs()) / s[i];
            }
            (self.round)(self.fma(-through[i], of_scale, w[i][j]) / s[i])
        };
        let mut gradient = vec![0.0; n * dim];
        for i in 0..n {
            for j in 0..n {
                let k = (self.round)(slope(i, j) + slope(j, i));
                let k = match self.pairwise.relation {
                    Relation::Distance if r[i][j] == 0.0 => 0.0,
                    Relation::Distance => (self.round)(k / r[i][j]),
                    Relation::SquaredDistance => 2.0 * k,
                    Relation::Dot | Relation::Cosine => k,
                    Relation::PositiveCosine if r[i][j] == 0.0 => 0.0,
                    Relation::PositiveCosine => k,
                    Relation::ShiftedCosine => 0.5 * k,
                };
                for d in 0..dim {
                    let along = match self.pairwise.relation {
                        Relation::Distance | Relation::SquaredDistance => {
                            (self.round)(x[i][d] - x[j][d])
                        }
                        _ => x[j][d],
                    };
                    let along = if self.sizes { along.abs() } else { along };
                    let g = &mut gradient[i * dim + d];
                    *g = self.fma(k, along, *g);
                }
            }
        }
        let n2 = (n * n) as f64;
        for (i, g) in gradient.chunks_mut(dim).enumerate() {
            if let Some(inverses) = &inverses {
                let along = if self.sizes { 0.0 } else { self.dot(g, &x[i]) };
                for (g, z) in g.iter_mut().zip(&x[i]) {
                    *g = (self.round)(self.fma(-along, *z, *g) * inverses[i]);
                }
            }
            g.iter_mut().for_each(|g| *g = (self.round)(*g / n2));
        }
        ((self.round)(self.sum(&penalties) / n2), gradient)
    }
}

/// Reproducible numbers, about normal.
fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    (0..count)
        .map(|_| (0..6).map(|_| uniform()).sum::<f64>() * 1.4)
        .collect()
}

fn split(x: &[f64], dim: usize) -> Vec<Vec<f64>> {
    x.chunks(dim).map(<[f64]>::to_vec).collect()
}

fn rounded<T: GpuElement>(x: &[f64]) -> (Vec<T>, Vec<f64>) {
    let elements: Vec<T> = x.iter().map(|&x| T::from_f64(x)).collect();
    let values = elements.iter().map(|x| x.to_f64()).collect();
    (elements, values)
}

/// By the kernels, under the schedule `seed`, on a GPU of so many multiprocessors.
struct Run {
    pairwise: Pairwise,
    seed: u64,
    multiprocessors: u32,
    upstream: f64,
}

impl Run {
    fn new(pairwise: Pairwise) -> Self {
        Run {
            pairwise,
            seed: 0,
            multiprocessors: 4,
            upstream: 1.0,
        }
    }

    fn evaluate<T: GpuElement + Pod>(&self, x: &[T], y: &[T], dims: [usize; 2]) -> Result<f32> {
        let n = x.len() / dims[0];
        let mut machine = Emulator::new().seed(self.seed).machine();
        let shapes = Shapes::new(n, dims[0], dims[1]);
        let problem = Problem::new(Sp, shapes)
            .unwrap()
            .with_upstream(self.upstream);
        let limits = Limits {
            multiprocessors: self.multiprocessors,
            ..machine.limits()
        };
        let mut layout = Layout::new();
        let plan = Plan::new(
            self.pairwise,
            &problem,
            GpuDType::of::<T>(),
            limits,
            &mut layout,
        )
        .unwrap();
        let [of_student, of_teacher] =
            ["student", "teacher"].map(|argument| machine.misalignment(argument) * size_of::<T>());
        let shifted = machine.misalignment("gradient") * size_of::<f32>();
        let mut memory = |skipped: usize, bytes: &[u8]| {
            let bytes = [&vec![0xFF; skipped], bytes].concat();
            let mut memory = machine.allocate("test", bytes.len()).unwrap();
            machine.write(&mut memory, &bytes).unwrap();
            let address = machine.address(&memory) + skipped as u64;
            (memory, address)
        };
        let (_student, student) = memory(of_student, bytemuck::cast_slice(x));
        let (_teacher, teacher) = memory(of_teacher, bytemuck::cast_slice(y));
        let (of_gradient, gradient) = memory(shifted, &vec![0xFF; 4 * x.len()]);
        let (of_value, value) = memory(0, &[0xFF; 4]);
        // NaN in all that is not written before it is read.
        let mut bytes = vec![0xFF; layout.bytes()];
        bytes[..Layout::COUNTERS].fill(0);
        let (of_workspace, workspace) = memory(0, &bytes);
        let addresses = Addresses {
            student,
            teacher,
            queue: QueueAddresses::default(),
            gradient,
            value,
            workspace,
            ..Addresses::default()
        };
        plan.launch(&mut machine, &addresses).unwrap();
        machine.read(&of_workspace, &mut bytes).unwrap();
        assert!(
            bytes[..Layout::COUNTERS].iter().all(|&byte| byte == 0),
            "counters"
        );
        let (mut value, mut bytes) = (0f32, vec![0u8; shifted + 4 * x.len()]);
        machine
            .read(&of_value, bytemuck::bytes_of_mut(&mut value))
            .unwrap();
        machine.read(&of_gradient, &mut bytes).unwrap();
        let gradient = bytemuck::pod_collect_to_vec(&bytes[shifted..]);
        (f64::from(value), gradient)
    }
}

fn length(x: impl IntoIterator<Item = f64>) -> f64 {
    x.into_iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// What is off: the loss, and the length of the gradient's error.
fn error<G: Copy + Into<f64>>(got: &Result<G>, want: &Result<f64>) -> [f64; 2] {
    let differences = got
        .1
        .iter()
        .zip(&want.1)
        .map(|(&got, want)| got.into() - want);
    [(got.0 - want.0).abs(), length(differences)]
}

/// The kernels' error is at most twice that of the formula in f32. Where that happens to be exact,
/// a few roundings of the result, and one of the terms that the gradient adds up, are allowed as
/// well.
fn assert_right<T: GpuElement + Pod>(
    title: &str,
    run: &Run,
    x: &[f64],
    y: &[f64],
    dims: [usize; 2],
) {
    let ((x, x_values), (y, y_values)) = (rounded::<T>(x), rounded::<T>(y));
    let evaluate = |round, sizes| {
        let formula = Formula {
            pairwise: run.pairwise,
            round,
            sizes,
        };
        formula.evaluate(&split(&x_values, dims[0]), &split(&y_values, dims[1]))
    };
    let want = evaluate(Formula::EXACT, false);
    let in_f32 = evaluate(Formula::IN_F32, false);
    let of_terms = length(evaluate(Formula::EXACT, true).1);
    let got = run.evaluate(&x, &y, dims);
    let (got_error, bar) = (error(&got, &want), error(&in_f32, &want));
    let size = [want.0, length(want.1.iter().copied())];
    // A cosine is rounded by 6e-8, so a squared difference e² by 2 e · 6e-8. That is one draw in N²,
    // and the formula's own draw may happen to be small.
    let of_cosines = if run.pairwise.relation.is_of_directions() {
        let n = (x_values.len() / dims[0]) as f64;
        6e-8 * 2.0 * want.0.abs().sqrt() / n
    } else {
        0.0
    };
    let floor = [1e-12 + of_cosines, 1e-12 + 6e-8 * of_terms];
    for (i, what) in ["loss", "gradient"].iter().enumerate() {
        let (got, bar, size) = (got_error[i], bar[i], size[i]);
        assert!(
            got <= 2.0 * bar + 4e-7 * size + floor[i],
            "{title}, {what} of {size:e}: off by {got:e}, the formula by {bar:e}"
        );
    }
}

/// `what` of the rows.
#[derive(Clone, Copy, Debug)]
enum Data {
    Normal,
    Duplicates,
    ZeroRow,
    Identical,
    NearTeacher,
    /// Squares leave f32's range.
    Scaled(f64),
}

fn rows(data: Data, n: usize, [dim, teacher_dim]: [usize; 2]) -> [Vec<f64>; 2] {
    let seed = (n * 131 + dim) as u64;
    let mut x = numbers(n * dim, seed + 1);
    let mut y = numbers(n * teacher_dim, seed + 2);
    match data {
        Data::Normal => {}
        Data::Duplicates => {
            for i in (1..n).step_by(2) {
                x.copy_within((i - 1) * dim..i * dim, i * dim);
            }
        }
        Data::ZeroRow => {
            x[n / 2 * dim..][..dim].fill(0.0);
            y[..teacher_dim].fill(0.0);
        }
        Data::Identical => {
            for i in 1..n {
                x.copy_within(..dim, i * dim);
            }
        }
        Data::NearTeacher if dim == teacher_dim => {
            x.iter_mut().zip(&y).for_each(|(x, y)| *x = y + 0.01 * *x);
        }
        Data::NearTeacher => {}
        Data::Scaled(factor) => {
            x.iter_mut().for_each(|x| *x *= factor);
            y.iter_mut().for_each(|y| *y /= factor);
        }
    }
    [x, y]
}

fn has_unit(pairwise: Pairwise) -> bool {
    pairwise.normalizer == Normalizer::None
}

#[test]
fn the_formula_has_the_gradient_of_its_loss() {
    let [n, dim] = [5, 3];
    for pairwise in INSTANCES {
        let formula = Formula {
            pairwise,
            round: Formula::EXACT,
            sizes: false,
        };
        let [x, y] = rows(Data::Normal, n, [dim, 4]);
        let y = split(&y, 4);
        let (_, gradient) = formula.evaluate(&split(&x, dim), &y);
        for at in 0..n * dim {
            let loss = |step: f64| {
                let mut x = x.clone();
                x[at] += step;
                formula.evaluate(&split(&x, dim), &y).0
            };
            let difference = (loss(1e-5) - loss(-1e-5)) / 2e-5;
            let error = (difference - gradient[at]).abs();
            assert!(error < 1e-8, "{pairwise:?} at {at}: {error:e}");
        }
    }
}

#[test]
fn the_formula_is_the_reference_of_sp() {
    let dims = [16, 7];
    let [x, y] = rows(Data::ZeroRow, 9, dims);
    let formula = Formula {
        pairwise: SP,
        round: Formula::EXACT,
        sizes: false,
    };
    let want = formula.evaluate(&split(&x, dims[0]), &split(&y, dims[1]));
    let [student, teacher] =
        [(&x, dims[0]), (&y, dims[1])].map(|(x, dim)| Rows::new(x, [9, dim]).unwrap());
    let got = Sp.evaluate(&Reference, student, teacher).unwrap();
    let [loss, gradient] = error(&(got.loss, got.gradient), &want);
    assert!(loss < 1e-14 && gradient < 1e-14, "{loss:e}, {gradient:e}");
}

#[test]
fn every_pairwise_loss_has_kernels() {
    for loss in Loss::all() {
        if let crate::loss::Family::Pairwise(pairwise) = loss.spec().family {
            assert!(
                pairwise.as_triplet().is_some() || Instance::of(pairwise).is_some(),
                "{loss}"
            );
        }
    }
}

/// Each pair is compared with each pair: a limit of its own, and a typed error.
#[test]
fn the_order_of_pairs_takes_so_many_rows_and_no_more() {
    let plan = |rows| {
        let problem = Problem::new(crate::Order::default(), Shapes::new(rows, 8, 8)).unwrap();
        crate::gpu::plan::Plan::new(&problem, GpuDType::F32, Limits::HOPPER)
    };
    assert!(plan(4096).is_ok());
    let error = crate::Error::TooLarge {
        argument: "rows",
        most: 4096,
        got: 4097,
    };
    assert_eq!(plan(4097), Err(error));
}

/// Every instance, shape and kind of data, and of one kind every type.
#[test]
fn kernels_compute_the_formula() {
    let shapes = [
        (1, [16, 3]),
        (2, [1, 1]),
        (2, [16, 16]),
        (17, [1, 4]),
        (17, [130, 130]),
        (65, [16, 130]),
        (65, [130, 16]),
    ];
    for pairwise in INSTANCES {
        for (n, dims) in shapes {
            for data in [
                Data::Normal,
                Data::Duplicates,
                Data::ZeroRow,
                Data::Identical,
                Data::NearTeacher,
            ] {
                let [x, y] = rows(data, n, dims);
                let title = format!("{pairwise:?}, {n} x {dims:?}, {data:?}");
                let mut run = Run::new(pairwise);
                assert_right::<f32>(&format!("{title}, f32"), &run, &x, &y, dims);
                // What depends on the type does not depend on the values.
                if !matches!(data, Data::Normal) {
                    continue;
                }
                // Inputs that are not aligned to 16 bytes.
                run.seed = 1;
                assert_right::<f16>(&format!("{title}, f16"), &run, &x, &y, dims);
                run.seed = 2;
                assert_right::<bf16>(&format!("{title}, bf16"), &run, &x, &y, dims);
            }
        }
    }
}

/// Rows so large and so small that their products leave f32's range.
#[test]
fn rows_of_any_size_stay_in_range() {
    for pairwise in INSTANCES
        .into_iter()
        .filter(|&pairwise| !has_unit(pairwise))
    {
        for (n, dims) in [(17, [130, 16]), (65, [16, 130])] {
            let run = Run::new(pairwise);
            let [x, y] = rows(Data::Normal, n, dims);
            let (want, want_gradient) =
                run.evaluate(&rounded::<f32>(&x).0, &rounded::<f32>(&y).0, dims);
            // Powers of two: the same bits, but for the gradient's scale.
            for exponent in [-100, -40, 40, 100] {
                let factor = 2f64.powi(exponent);
                let [x, y] = rows(Data::Scaled(factor), n, dims);
                let (loss, gradient) =
                    run.evaluate(&rounded::<f32>(&x).0, &rounded::<f32>(&y).0, dims);
                let title = format!("{pairwise:?}, {n} x {dims:?}, 2^{exponent}");
                assert!(
                    (loss - want).abs() <= 1e-6 * want,
                    "{title}: {loss} for {want}"
                );
                let scaled: Vec<f64> = gradient.iter().map(|&g| f64::from(g) * factor).collect();
                let off = scaled
                    .iter()
                    .zip(&want_gradient)
                    .map(|(g, &w)| g - f64::from(w));
                let off = length(off) / length(want_gradient.iter().map(|&w| f64::from(w)));
                assert!(off < 1e-6, "{title}: {off:e}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_gives_nan() {
    for pairwise in INSTANCES {
        for n in [1, 2, 65] {
            for (bad, in_teacher) in [
                (f32::NAN, false),
                (f32::INFINITY, false),
                (f32::NAN, true),
                (f32::NEG_INFINITY, true),
            ] {
                let dims = [16, 16];
                let [x, y] = rows(Data::Normal, n, dims);
                let ((mut x, _), (mut y, _)) = (rounded::<f32>(&x), rounded::<f32>(&y));
                let target = if in_teacher { &mut y } else { &mut x };
                target[n / 2 * 16 + 3] = bad;
                let (loss, gradient) = Run::new(pairwise).evaluate(&x, &y, dims);
                let title = format!("{pairwise:?}, {n} rows, {bad} in_teacher: {in_teacher}");
                assert!(loss.is_nan(), "{title}: {loss}");
                assert!(gradient.iter().all(|g| g.is_nan()), "{title}: gradient");
            }
        }
    }
}

/// A student that equals its teacher has no loss and no gradient, to the bit.
#[test]
fn equal_rows_cost_nothing() {
    for pairwise in INSTANCES {
        let [x, _] = rows(Data::Normal, 65, [130, 130]);
        let x = rounded::<f32>(&x).0;
        let (loss, gradient) = Run::new(pairwise).evaluate(&x, &x, [130, 130]);
        assert_eq!(loss, 0.0, "{pairwise:?}");
        // The ε of a divergence gives its slope at 0 a small value.
        let has_slope = matches!(pairwise.penalty, Penalty::Divergence { .. });
        assert!(
            has_slope || gradient.iter().all(|&g| g == 0.0),
            "{pairwise:?}"
        );
    }
}

#[test]
fn schedules_do_not_show_in_a_bit() {
    fn check<T: GpuElement + Pod>(pairwise: Pairwise) {
        let dims = [130, 70];
        let [x, y] = rows(Data::Normal, 65, dims).map(|x| rounded::<T>(&x).0);
        let evaluate = |seed| {
            let run = Run {
                seed,
                ..Run::new(pairwise)
            };
            let (loss, gradient) = run.evaluate(&x, &y, dims);
            let bits: Vec<u32> = gradient.into_iter().map(f32::to_bits).collect();
            (loss.to_bits(), bits)
        };
        let first = evaluate(0);
        for seed in [1, 2, 4] {
            assert!(
                evaluate(seed) == first,
                "{pairwise:?} in {}, seed {seed}",
                T::DTYPE
            );
        }
    }
    for pairwise in INSTANCES {
        check::<f32>(pairwise);
        check::<f16>(pairwise);
        check::<bf16>(pairwise);
    }
}

/// Slices of the dimensions, and tiles of 64 and of 16 rows, differ by rounding only.
#[test]
fn the_gpu_does_not_show() {
    for (n, dims) in [(17, [1000, 130]), (65, [130, 1000]), (130, [130, 70])] {
        let [x, y] = rows(Data::Normal, n, dims);
        for pairwise in INSTANCES {
            for multiprocessors in [1, 4, 132] {
                let title = format!("{pairwise:?}, {n} x {dims:?} on {multiprocessors}");
                let run = Run {
                    multiprocessors,
                    ..Run::new(pairwise)
                };
                assert_right::<f32>(&title, &run, &x, &y, dims);
            }
        }
    }
}

#[test]
fn the_upstream_factor_scales_the_gradient_only() {
    let dims = [16, 16];
    let [x, y] = rows(Data::Normal, 17, dims).map(|x| rounded::<f32>(&x).0);
    let (loss, gradient) = Run::new(SP).evaluate(&x, &y, dims);
    let run = Run {
        upstream: 4.0,
        ..Run::new(SP)
    };
    let (scaled_loss, scaled) = run.evaluate(&x, &y, dims);
    assert_eq!(scaled_loss, loss);
    let quadrupled: Vec<f32> = gradient.iter().map(|g| 4.0 * g).collect();
    assert_eq!(scaled, quadrupled);
}

/// RKD's distance, by these kernels and by its own. Two rows have one distance, so their loss is 0.
#[test]
fn agrees_with_the_kernels_of_rkd() {
    for (n, dims) in [
        (3, [16, 16]),
        (17, [130, 16]),
        (65, [16, 130]),
        (130, [70, 70]),
    ] {
        for data in [Data::Normal, Data::Duplicates, Data::Identical] {
            let [x, y] = rows(data, n, dims).map(|x| rounded::<f32>(&x).0);
            let loss = RkdDistance {
                delta: 0.7,
                ..RkdDistance::default()
            };
            let [student, teacher] =
                [(&x, dims[0]), (&y, dims[1])].map(|(x, dim)| Rows::new(x, [n, dim]).unwrap());
            let want = loss.evaluate(&Emulator::new(), student, teacher).unwrap();
            let pairwise = pairwise(Relation::Distance, Normalizer::Mean, HUBER);
            let (got, gradient) = Run::new(pairwise).evaluate(&x, &y, dims);
            let title = format!("{n} x {dims:?}, {data:?}");
            assert!((got - want.loss).abs() <= 1e-6 * want.loss, "{title}: loss");
            let off = gradient.iter().zip(&want.gradient);
            let off = length(off.map(|(&g, &w)| f64::from(g) - f64::from(w)));
            let size = length(want.gradient.iter().map(|&w| f64::from(w)));
            assert!(off <= 2e-6 * size, "{title}: {off:e} of {size:e}");
        }
    }
}

#[test]
fn slices_cover_the_dimensions() {
    for dim in [1, 16, 64, 130, 512, 4096, 100_000] {
        for pairs in [1, 3, 10, 2080] {
            for multiprocessors in [1, 4, 132] {
                let Slices { count, dims } = Slices::new(dim, pairs, multiprocessors);
                assert!(dims.is_multiple_of(DEPTH), "{dim}, {pairs}");
                assert!(
                    (count - 1) * dims < dim && dim <= count * dims,
                    "{dim}, {pairs}"
                );
            }
        }
    }
    // 64 rows of 16 384 elements keep an H200 busy.
    assert_eq!(
        Slices::new(16_384, 1, 132),
        Slices {
            count: 128,
            dims: 128
        }
    );
}
