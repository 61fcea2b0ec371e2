//! The plans in the emulator: which path the data choose, and that results do not depend on the
//! partition, the GPU or the type.

use bytemuck::Pod;
use half::{bf16, f16};

use super::triple_partition::Split;
use super::workspace::SCALARS;
use super::*;
use crate::gpu::element::GpuElement;
use crate::gpu::emulator::Emulator;
use crate::gpu::machine::{Limits, Machine};
use crate::gpu::plan::QueueAddresses;
use crate::loss::{Family, Rkd};

/// Whether the result for these rows is that of the accurate path.
fn ends_accurate(student: &[f32], teacher: &[f32], shape: [usize; 2], loss: Rkd) -> bool {
    evaluate(student, teacher, shape, loss, None).0
}

/// Whether the accurate path ran, the loss and the gradient. With this partition of the triples, or
/// with the plan's choice.
fn evaluate(
    student: &[f32],
    teacher: &[f32],
    shape: [usize; 2],
    loss: Rkd,
    partition: Option<AnglePartition>,
) -> (bool, f32, Vec<f32>) {
    let limits = Emulator::new().machine().limits();
    // Under an odd seed a missing fence shows. In the fast angle kernel it shows as an accurate path
    // that need not run.
    let seed = u64::from(partition.is_none());
    evaluate_for(limits, seed, student, teacher, shape, loss, partition)
}

/// The same, planned for this GPU, under this seed of the emulator.
fn evaluate_for<T: GpuElement + Pod>(
    limits: Limits,
    seed: u64,
    student: &[T],
    teacher: &[T],
    [n, dim]: [usize; 2],
    loss: Rkd,
    partition: Option<AnglePartition>,
) -> (bool, f32, Vec<f32>) {
    let mut machine = Emulator::new().seed(seed).machine();
    let problem = Problem::new(loss, Shapes::new(n, dim, dim)).unwrap();
    let mut layout = Layout::new();
    let dtype = GpuDType::of::<T>();
    let Family::Triplet(triplet) = problem.spec().family else {
        panic!("{loss:?} is not of the family");
    };
    let plan = match partition {
        None => Plan::new(triplet, &problem, dtype, limits, &mut layout),
        Some(_) => Plan::partitioned(triplet, &problem, dtype, limits, partition, &mut layout),
    };
    let plan = plan.unwrap();
    let mut memory = |bytes: &[u8]| {
        let mut memory = machine.allocate("test", bytes.len()).unwrap();
        machine.write(&mut memory, bytes).unwrap();
        let address = machine.address(&memory);
        (memory, address)
    };
    let (_student, student) = memory(bytemuck::cast_slice(student));
    let (_teacher, teacher) = memory(bytemuck::cast_slice(teacher));
    let (of_gradient, gradient) = memory(&vec![0; 4 * n * dim]);
    // The loss and its two parts.
    let (of_value, value) = memory(&[0; 12]);
    // Memory that is read before it is written gives NaN.
    let (workspace, at) = memory(&vec![0xFF; layout.bytes()]);
    let mut workspace = workspace;
    machine
        .write(&mut workspace, &[0; Layout::COUNTERS])
        .unwrap();
    let addresses = Addresses {
        student,
        teacher,
        queue: QueueAddresses::default(),
        gradient,
        value,
        workspace: at,
        ..Addresses::default()
    };
    plan.launch(&mut machine, &addresses).unwrap();
    let mut bytes = vec![0; layout.bytes()];
    machine.read(&workspace, &mut bytes).unwrap();
    assert!(
        bytes[..Layout::COUNTERS].iter().all(|&byte| byte == 0),
        "counters"
    );
    let accurate = bytes[plan.at.scalars.at(0) as usize + SCALARS - 8] != 0;
    let (mut value, mut gradient) = ([0f32; 3], vec![0f32; n * dim]);
    machine
        .read(&of_value, bytemuck::bytes_of_mut(&mut value))
        .unwrap();
    machine
        .read(&of_gradient, bytemuck::cast_slice_mut(&mut gradient))
        .unwrap();
    let [value, distance, angle] = value;
    let sum = loss.distance_weight * f64::from(distance) + loss.angle_weight * f64::from(angle);
    assert!(
        (sum - f64::from(value)).abs() <= 1e-6 * sum,
        "{sum} of {distance} and {angle}, {value}"
    );
    (accurate, value, gradient)
}

/// ‖a − b‖/‖b‖
fn difference(a: &[f32], b: &[f32]) -> f64 {
    let squares =
        |of: &dyn Fn(usize) -> f32| (0..b.len()).map(|i| f64::from(of(i)).powi(2)).sum::<f64>();
    (squares(&|i| a[i] - b[i]) / squares(&|i| b[i])).sqrt()
}

/// Rows that are all about as far apart from one another, with noise.
fn alike([n, dim]: [usize; 2], noise: f32, seed: f32) -> Vec<f32> {
    let wave = |at: usize| (at as f32 * 12.9898 + seed).sin() * noise;
    (0..n * dim)
        .map(|at| wave(at) + f32::from(u8::from(at / dim % dim == at % dim)))
        .collect()
}

#[test]
fn the_data_choose_the_path() {
    let shape @ [n, dim] = [260, 260];
    let angle = Rkd::from(crate::RkdAngle::default());
    let (x, y) = (alike(shape, 0.02, 1.0), alike(shape, 0.005, 2.0));
    // Lengths alike, angles not: f32 suffices.
    let loud = alike(shape, 0.05, 3.0);
    assert!(!ends_accurate(&loud, &y, shape, angle));
    // Angles alike as well.
    assert!(ends_accurate(&x, &x, shape, angle));
    // Two rows close together.
    let mut close = loud.clone();
    close.copy_within(0..dim, dim);
    close[dim] += 0.01;
    assert!(ends_accurate(&close, &y, shape, angle));
    assert!(ends_accurate(&y, &close, shape, angle));
    // Distances alone do not need f64 for this. They need it for squares out of range.
    let distance = Rkd::from(crate::RkdDistance::default());
    assert!(!ends_accurate(&close, &y, shape, distance));
    let tiny: Vec<f32> = close.iter().map(|x| x * 1e-25).collect();
    assert!(ends_accurate(&tiny, &y, shape, distance));
    // A small batch takes the accurate path directly.
    assert!(ends_accurate(&y[..3 * dim], &y[..3 * dim], [3, dim], angle));
    assert_eq!(n, dim);
}

/// The longest distance over the shortest.
fn spread(rows: &[f32], dim: usize) -> f32 {
    let mut squares = Vec::new();
    for (i, x) in rows.chunks_exact(dim).enumerate() {
        for y in rows[..i * dim].chunks_exact(dim) {
            squares.push(x.iter().zip(y).map(|(x, y)| (x - y).powi(2)).sum::<f32>());
        }
    }
    let longest = squares.iter().copied().fold(0.0, f32::max);
    (longest / squares.into_iter().fold(longest, f32::min)).sqrt()
}

/// Angles in f32 are trusted up to a spread of 1.75, in student and teacher.
#[test]
fn the_spread_chooses_the_path() {
    let shape @ [_, dim] = [260, 260];
    let angle = Rkd::from(crate::RkdAngle::default());
    let (x, y) = (alike(shape, 0.05, 3.0), alike(shape, 0.03, 2.0));
    for (drawn, accurate, spreads) in [(0.35, false, 1.5..1.75), (0.5, true, 1.75..2.3)] {
        // The second row is drawn to the first.
        let draw = |rows: &[f32]| {
            let mut rows = rows.to_vec();
            let (first, second) = rows[..2 * dim].split_at_mut(dim);
            for (x, to) in second.iter_mut().zip(first) {
                *x += drawn * (*to - *x);
            }
            let spread = spread(&rows, dim);
            assert!(spreads.contains(&spread), "{spread}");
            rows
        };
        assert_eq!(ends_accurate(&draw(&x), &y, shape, angle), accurate);
        assert_eq!(ends_accurate(&x, &draw(&y), shape, angle), accurate);
    }
}

/// Results do not depend on the partition: groups of several tiles, where the last group is not
/// full; parts that differ by overlap, so that each of the three overlaps starts first; parts of
/// which the last are empty; ranges that end within a tile, and within the vertices that are loaded
/// at a time; all paths.
#[test]
fn results_do_not_depend_on_the_partition() {
    let loss = Rkd::from(crate::RkdAngle::default());
    let groups = |tiles_per_group, groups, splits: [(usize, usize); 3]| {
        AnglePartition::Groups(TriplePartition {
            tiles_per_group,
            groups,
            splits: splits.map(|(count, len)| Split { count, len }),
        })
    };
    let small_batch = |tiles, ranges, vertices_per_range| {
        AnglePartition::SmallBatch(VertexSplit {
            tiles,
            ranges,
            vertices_per_range,
        })
    };
    let close = |rows| {
        let mut rows = alike(rows, 0.05, 3.0);
        rows.copy_within(0..260, 260);
        rows[260] += 0.01;
        rows
    };
    // Of the small batch's partitions, one has ranges that are no multiple of the vertices that are
    // loaded at a time, and one has a single range.
    let partitions = [
        small_batch(7, 3, 68),
        small_batch(7, 1, 200),
        small_batch(7, 17, 12),
        groups(2, 2, [(1, 128), (5, 28), (2, 64)]),
        groups(4, 1, [(1, 200), (1, 200), (2, 100)]),
    ];
    let more = [
        groups(1, 5, [(3, 24), (1, 64), (2, 32)]),
        groups(1, 5, [(16, 4), (3, 24), (1, 64)]),
        groups(2, 3, [(2, 64), (5, 28), (1, 128)]),
    ];
    for (rows, accurate, partitions) in [
        (200, true, &partitions[..]),
        (260, true, &more),
        (260, false, &more),
    ] {
        let shape = [rows, 260];
        let x = if accurate {
            close(shape)
        } else {
            alike(shape, 0.05, 3.0)
        };
        let y = alike(shape, 0.005, 2.0);
        let (path, loss_of_plan, gradient) = evaluate(&x, &y, shape, loss, None);
        assert_eq!(path, accurate);
        for &partition in partitions {
            let (path, other, others) = evaluate(&x, &y, shape, loss, Some(partition));
            assert_eq!(path, accurate);
            assert!(
                (other - loss_of_plan).abs() <= 1e-6 * loss_of_plan,
                "{rows}, {partition:?}"
            );
            let difference = difference(&others, &gradient);
            assert!(difference < 1e-6, "{rows}, {partition:?}: {difference:e}");
        }
    }
}

/// Results do not depend on the GPU. One with many multiprocessors has smaller tiles and other
/// partitions: tiles of the relation of 16 and 32 rows, in small batches of 8 and 12, and
/// coefficients of 16.
#[test]
fn results_do_not_depend_on_the_gpu() {
    let (distance, angle) = (crate::RkdDistance::default(), crate::RkdAngle::default());
    for (rows, loss) in [
        (260, Rkd::from(distance)),
        (260, Rkd::default()),
        (100, Rkd::default()),
        (100, Rkd::from(angle)),
        (30, Rkd::from(distance)),
        (30, Rkd::default()),
    ] {
        let shape = [rows, 70];
        let (x, y) = (alike(shape, 0.3, 3.0), alike(shape, 0.05, 2.0));
        let (path, value, gradient) = evaluate(&x, &y, shape, loss, None);
        for multiprocessors in [1, 60, 132] {
            let limits = Limits {
                multiprocessors,
                ..Emulator::new().machine().limits()
            };
            let title = format!("{rows}, {loss:?} on {multiprocessors}");
            let (other_path, other, others) = evaluate_for(limits, 0, &x, &y, shape, loss, None);
            assert_eq!(other_path, path, "{title}");
            assert!((other - value).abs() <= 1e-6 * value, "{title}");
            let difference = difference(&others, &gradient);
            assert!(difference < 1e-6, "{title}: {difference:e}");
        }
    }
}

/// A small batch on a GPU whose f64 is slow takes f64 if the data need it, and f32 otherwise.
#[test]
fn slow_f64_is_used_only_if_needed() {
    let shape @ [n, dim] = [100, 150];
    let slow = Limits {
        multiprocessors: 20,
        f32_over_f64: 64,
        ..Emulator::new().machine().limits()
    };
    let y = alike(shape, 0.02, 2.0);
    let loud = alike(shape, 0.05, 3.0);
    let mut close = loud.clone();
    close.copy_within(0..dim, dim);
    close[dim] += 0.01;
    for (x, needed) in [(&loud, false), (&close, true)] {
        for loss in [
            Rkd::default(),
            Rkd::from(crate::RkdDistance::default()),
            Rkd::from(crate::RkdAngle::default()),
        ] {
            let (at_once, value, gradient) = evaluate(x, &y, shape, loss, None);
            let (accurate, other, others) = evaluate_for(slow, 0, x, &y, shape, loss, None);
            let title = format!("{n} rows, {loss:?}");
            assert!(at_once, "{title}");
            // Distances do not need f64 for a close pair.
            assert_eq!(accurate, needed && loss.angle_weight > 0.0, "{title}");
            assert!((other - value).abs() <= 1e-6 * value, "{title}");
            let difference = difference(&others, &gradient);
            assert!(difference < 2e-6, "{title}: {difference:e}");
        }
    }
}

/// Rows in half types give the same results as the same numbers in f32, with small-batch relations
/// in tiles of 8 and of 12.
#[test]
fn results_do_not_depend_on_the_type() {
    fn check<T: GpuElement + Pod>(rows: usize, of: fn(f32) -> T, back: fn(T) -> f32) {
        let shape @ [n, dim] = [rows, 137];
        let limits = Limits {
            multiprocessors: 132,
            ..Emulator::new().machine().limits()
        };
        let [x, y] = [(0.3, 3.0), (0.05, 2.0)].map(|(noise, seed)| {
            let rows = alike(shape, noise, seed);
            rows.into_iter().map(of).collect::<Vec<T>>()
        });
        let wide = |rows: &[T]| rows.iter().map(|&x| back(x)).collect::<Vec<f32>>();
        let loss = Rkd::default();
        let (_, value, gradient) = evaluate_for(limits, 0, &wide(&x), &wide(&y), shape, loss, None);
        let (_, other, others) = evaluate_for(limits, 0, &x, &y, shape, loss, None);
        let title = format!("{n} x {dim} in {}", T::DTYPE);
        assert!((other - value).abs() <= 1e-6 * value, "{title}");
        let difference = difference(&others, &gradient);
        assert!(difference < 1e-6, "{title}: {difference:e}");
    }
    for rows in [30, 100] {
        check(rows, f16::from_f32, f16::to_f32);
        check(rows, bf16::from_f32, bf16::to_f32);
    }
}
