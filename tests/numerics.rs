//! How exact is f32? On every kind of data the gradient of the CPU path, and of the kernels, may be off by at most twice what
//! the definition evaluated directly in f32 is off by, both against f64. Prints what it measures:
//! `cargo test --test numerics -- --nocapture`.

mod common;

use common::compare::assert_same_bits;
#[cfg(feature = "emulator")]
use common::measured::Measured;
use common::measured::{Errors, assert_within_budget, mean_of};
use common::tolerances::naive;
use common::{Input, Random, cast, losses, shapes_of};
use relata::{
    Cpu, Device, Element, Evaluation, InfoNce, KdKl, Loss, Reference, RkdAngle, RkdDistance, Rrd,
    Shapes,
};

/// Errors are root mean squares over so many batches; fewer for the angle loss, whose reference takes
/// O(N³D).
const SEEDS: u64 = 12;
const ANGLE_SEEDS: u64 = 3;
#[derive(Clone, Copy, Debug)]
enum Student {
    Gaussian,
    /// Eight centres, and rows about them.
    Clusters {
        spread: f64,
    },
    /// So many times farther from the origin than from each other.
    Offset {
        ratio: f64,
    },
    /// The teacher's rows and a little noise.
    NearTeacher {
        noise: f64,
    },
    Scaled {
        factor: f64,
    },
}

const STUDENTS: [Student; 9] = [
    Student::Gaussian,
    Student::Clusters { spread: 5e-2 },
    Student::Clusters { spread: 1e-3 },
    Student::Clusters { spread: 1e-5 },
    Student::Offset { ratio: 1e4 },
    Student::NearTeacher { noise: 1e-3 },
    Student::NearTeacher { noise: 0.15 },
    Student::Scaled { factor: 1e-12 },
    Student::Scaled { factor: 1e12 },
];

impl Student {
    fn input(self, seed: u64, [n, dim, mut dim_t]: [usize; 3]) -> Input {
        if matches!(self, Student::NearTeacher { .. }) {
            dim_t = dim;
        }
        let mut input = Input::normal(seed, Shapes::new(n, dim, dim_t));
        let centres = Random::new(!seed).normals(8 * dim);
        let teacher = &input.teacher;
        for (at, x) in input.student.iter_mut().enumerate() {
            *x = match self {
                Student::Gaussian => *x,
                Student::Clusters { spread } => {
                    centres[at / dim % 8 * dim + at % dim] + spread * *x
                }
                Student::Offset { ratio } => *x + ratio * centres[at % dim],
                Student::NearTeacher { noise } => teacher[at] + noise * *x,
                Student::Scaled { factor } => factor * *x,
            };
        }
        input
    }
}

/// Both RKD losses on every kind of student.
fn rkd(device: &impl Device<f32, Gradient = f32>, shape: [usize; 3]) {
    type Direct = fn(&[f32], &[f32], [usize; 3]) -> (f32, Vec<f32>);
    let both: [(Loss, Direct); 2] = [
        (RkdDistance::default().into(), naive::rkd_distance),
        (RkdAngle::default().into(), naive::rkd_angle),
    ];
    let mut table = Vec::new();
    for (loss, direct) in both {
        for student in STUDENTS {
            let seeds = match loss {
                Loss::RkdAngle(_) => ANGLE_SEEDS,
                _ => SEEDS,
            };
            table.push(mean_of(format!("{loss} {student:?}"), seeds, |seed| {
                let input = student.input(seed, shape);
                let shapes = input.shapes;
                let right = input.evaluate::<f32, _>(&Reference, loss);
                let got = input.evaluate::<f32, _>(device, loss);
                let (naive, naive_gradient) = direct(
                    &cast::<f32>(&input.student),
                    &cast::<f32>(&input.teacher),
                    [shapes.rows, shapes.student_dim, shapes.teacher_dim],
                );
                (
                    Errors::of(got.loss, &got.gradient, &right),
                    Errors::of(f64::from(naive), &naive_gradient, &right),
                )
            }));
        }
    }
    assert_within_budget(
        &format!("{}: RKD, N, D, D_t = {shape:?}", device.name()),
        &table,
    );
}

/// The device's and a direct evaluation's errors on one batch.
fn compare(
    device: &impl Device<f32, Gradient = f32>,
    input: &Input,
    loss: Loss,
    direct: impl Fn(&[f32], &[f32], &[f32]) -> (f32, Vec<f32>),
) -> (Errors, Errors) {
    let right = input.evaluate::<f32, _>(&Reference, loss);
    let got = input.evaluate::<f32, _>(device, loss);
    // The very keys the device sees.
    let keys = input
        .queue::<f32>()
        .map_or(Vec::new(), |q| q.keys().to_vec());
    let (student, teacher) = (cast::<f32>(&input.student), cast::<f32>(&input.teacher));
    let (naive, gradient) = direct(&student, &teacher, &keys);
    (
        Errors::of(got.loss, &got.gradient, &right),
        Errors::of(f64::from(naive), &gradient, &right),
    )
}

/// Moves the student to its teacher and a little noise.
fn approach(input: &mut Input, noise: f64) {
    for (x, y) in input.student.iter_mut().zip(&input.teacher) {
        *x = y + noise * *x;
    }
}

/// A student so far from its teacher that KL(p‖q) is about `kl`, which is checked.
fn at_divergence(
    mut input: Input,
    kl: f64,
    noise: f64,
    divergence: impl Fn(&Input) -> f64,
) -> Input {
    approach(&mut input, noise);
    let got = divergence(&input);
    assert!(
        got > 0.4 * kl && got < 2.5 * kl,
        "noise {noise}: KL {got:e}, wanted {kl:e}"
    );
    input
}

fn rrd(device: &impl Device<f32, Gradient = f32>) {
    let mut table = Vec::new();
    for (n, dim, keys) in [(8, 128, 2048), (5, 40, 333)] {
        let shapes = Shapes::new(n, dim, dim).with_queue(keys);
        for (student_temperature, teacher_temperature) in [(0.1, 0.02), (0.04, 0.1), (0.02, 0.02)] {
            let loss = Rrd {
                student_temperature,
                teacher_temperature,
                ..Rrd::default()
            };
            let tau = [student_temperature as f32, teacher_temperature as f32];
            let name = format!("rrd {n}x{dim} K {keys} tau {tau:?}");
            table.push(mean_of(name, SEEDS, |seed| {
                let input = Input::normal(seed, shapes);
                compare(device, &input, loss.into(), |x, y, keys| {
                    naive::rrd(x, y, keys, dim, tau)
                })
            }));
        }
        // One temperature for both, so that the student converges as it comes near its teacher.
        let loss = Rrd {
            student_temperature: 0.1,
            teacher_temperature: 0.1,
            ..Rrd::default()
        };
        for (kl, noise) in [(0.2, 0.87), (4e-3, 0.103), (4e-5, 0.0103)] {
            // Normals of fewer dimensions are less alike: the same noise is a larger divergence.
            let noise = if dim == 40 { noise * 0.5 } else { noise };
            let name = format!("rrd {n}x{dim} K {keys} KL {kl}");
            table.push(mean_of(name, SEEDS, |seed| {
                let input = at_divergence(Input::normal(seed, shapes), kl, noise, |input| {
                    let evaluation = input.evaluate::<f32, _>(&Reference, loss);
                    evaluation.kl.expect("RRD's KL")
                });
                compare(device, &input, loss.into(), |x, y, keys| {
                    naive::rrd(x, y, keys, dim, [0.1, 0.1])
                })
            }));
        }
    }
    assert_within_budget(&format!("{}: RRD", device.name()), &table);
}

fn info_nce(device: &impl Device<f32, Gradient = f32>) {
    let mut table = Vec::new();
    for (n, dim, keys) in [(32, 128, None), (33, 40, None), (8, 128, Some(2048))] {
        let shapes = Shapes {
            queue: keys,
            ..Shapes::new(n, dim, dim)
        };
        // The second of each pair is the noise between student and teacher: none related, or so near
        // that the own key has most of the softmax, but not all of it.
        for (temperature, noise) in [
            (0.07, None),
            (0.07, Some(1.0)),
            (0.07, Some(0.3)),
            (0.02, None),
            (0.02, Some(3.0)),
        ] {
            let loss = InfoNce {
                temperature,
                ..InfoNce::default()
            };
            let name = format!("info-nce {n}x{dim} K {keys:?} tau {temperature} noise {noise:?}");
            table.push(mean_of(name, SEEDS, |seed| {
                let mut input = Input::normal(seed, shapes);
                if let Some(noise) = noise {
                    approach(&mut input, noise);
                }
                compare(device, &input, loss.into(), |x, y, keys| {
                    naive::info_nce(x, y, keys, dim, temperature as f32)
                })
            }));
        }
    }
    assert_within_budget(&format!("{}: InfoNCE", device.name()), &table);
}

fn kd_kl(device: &impl Device<f32, Gradient = f32>) {
    let mut table = Vec::new();
    for (n, classes) in [(8, 1000), (33, 37)] {
        // KL(p‖q) and the noise that gives it.
        for (temperature, near) in [
            (4.0, Some((0.2, 0.87))),
            (4.0, Some((4e-3, 0.12))),
            (4.0, Some((4e-5, 0.012))),
            (1.0, Some((0.2, 0.27))),
            (0.02, None),
        ] {
            let loss = KdKl { temperature };
            let name = format!("kd-kl {n}x{classes} T {temperature} KL, noise {near:?}");
            table.push(mean_of(name, SEEDS, |seed| {
                let mut input = Input::normal(seed, Shapes::new(n, classes, classes));
                // Logits of a trained classifier: a softmax neither flat nor saturated.
                for logit in input.student.iter_mut().chain(&mut input.teacher) {
                    *logit *= 3.0;
                }
                if let Some((kl, noise)) = near {
                    input = at_divergence(input, kl, noise, |input| {
                        let loss = input.evaluate::<f32, _>(&Reference, loss).loss;
                        loss / (temperature * temperature)
                    });
                }
                compare(device, &input, loss.into(), |x, y, _| {
                    naive::kd_kl(x, y, classes, temperature as f32)
                })
            }));
        }
    }
    assert_within_budget(&format!("{}: KD", device.name()), &table);
}

#[test]
fn the_cpu_is_as_exact_on_rkd_as_its_definition_in_f32() {
    rkd(&Cpu, [64, 128, 96]);
    rkd(&Cpu, [48, 40, 40]);
}

#[test]
fn the_cpu_is_as_exact_as_the_definitions_in_f32() {
    rrd(&Cpu);
    info_nce(&Cpu);
    kd_kl(&Cpu);
}

#[cfg(feature = "emulator")]
#[test]
fn the_kernels_are_as_exact_as_the_definitions_in_f32() {
    let emulator = relata::Emulator::new();
    rkd(&emulator, [64, 128, 96]);
    rkd(&emulator, [48, 40, 40]);
    kd_kl(&emulator);
}

/// A pair of rows so many times as far apart as the rest, near the origin, where f32 has numbers for it: how far the accurate
/// kernels carry, beside the definition in f32 (docs/decisions/0008).
#[cfg(feature = "emulator")]
#[test]
fn rkd_kernels_carry_to_a_spread_of_1e7() {
    let loss = RkdAngle::default();
    let shape @ [n, dim, _] = [33, 16, 16];
    println!("apart, in   loss off by   gradient   the definition in f32, loss   gradient");
    // With what the gradient may be off by where the definition is not the measure.
    for (apart, most) in [
        (1e-5, None),
        (1e-6, None),
        (1e-7, None),
        (1e-9, Some([3e-6, 3e-7])),
        (1e-12, Some([3e-3, 2e-5])),
        (1e-14, Some([0.3, 1e-3])),
        (1e-16, Some([10.0, 0.02])),
    ] {
        for (which, name) in ["student", "teacher"].into_iter().enumerate() {
            let mut input = Input::normal(3, Shapes::new(n, dim, dim));
            let rows = [&mut input.student, &mut input.teacher];
            for x in rows
                .into_iter()
                .nth(which)
                .into_iter()
                .flatten()
                .take(2 * dim)
            {
                *x *= apart;
            }
            let right = input.evaluate::<f32, _>(&Reference, loss);
            let got = input.evaluate::<f32, _>(&relata::Emulator::new(), loss);
            let (value, gradient) = naive::rkd_angle(
                &cast::<f32>(&input.student),
                &cast::<f32>(&input.teacher),
                shape,
            );
            let off = Errors::of(got.loss, &got.gradient, &right);
            let definition = Errors::of(f64::from(value), &gradient, &right);
            println!(
                "{apart:.0e} {name}   {:.1e}   {:.1e}   {:.1e}   {:.1e}",
                off.loss, off.gradient, definition.loss, definition.gradient
            );
            let most = most.map_or(2.0 * definition.gradient, |most| most[which]);
            let gradient = off.gradient;
            assert!(
                gradient <= most,
                "{apart:e}, {name}: {gradient:e}, at most {most:e}"
            );
        }
    }
}

/// More rows than go straight to the accurate kernels, with lengths so alike that the fast ones are
/// trusted, or not. The reference would take minutes: the CPU path in f64 stands in for it.
#[cfg(feature = "emulator")]
#[test]
fn rkd_kernels_for_many_rows_are_as_exact_as_its_definition_in_f32() {
    let rows = |values: &[f64]| cast::<f32>(values);
    let mut table = Vec::new();
    for (student, shape) in [
        (Student::Gaussian, [260, 192, 160]),
        (Student::Clusters { spread: 5e-2 }, [260, 24, 20]),
    ] {
        let input = student.input(7, shape);
        let (x, y) = (rows(&input.student), rows(&input.teacher));
        let rounded = Input {
            student: x.iter().map(|&x| f64::from(x)).collect(),
            teacher: y.iter().map(|&y| f64::from(y)).collect(),
            ..input.clone()
        };
        for loss in [RkdDistance::default().into(), RkdAngle::default().into()] {
            let right = rounded.evaluate::<f64, _>(&Cpu, loss);
            let got = input.evaluate::<f32, _>(&relata::Emulator::new(), loss);
            let (value, gradient) = match loss {
                Loss::RkdAngle(_) => naive::rkd_angle(&x, &y, shape),
                _ => naive::rkd_distance(&x, &y, shape),
            };
            table.push(Measured {
                name: format!("{loss} {student:?} {shape:?}"),
                device: Errors::of(got.loss, &got.gradient, &right),
                naive: Errors::of(f64::from(value), &gradient, &right),
            });
        }
    }
    assert_within_budget("RKD on the emulator, many rows", &table);
}

/// What a device makes of `input` rounded to `T`, taken as `T` and taken as f32.
fn in_both<T: Element<Real = f32>>(input: &Input, loss: Loss) -> [Evaluation<f32>; 2] {
    let rounded =
        |values: &[f64]| -> Vec<f64> { values.iter().map(|&v| T::from_f64(v).to_f64()).collect() };
    let same_values = Input {
        student: rounded(&input.student),
        teacher: rounded(&input.teacher),
        ..input.clone()
    };
    [
        input.evaluate::<T, _>(&Cpu, loss),
        same_values.evaluate::<f32, _>(&Cpu, loss),
    ]
}

#[test]
fn half_types_are_computed_in_f32() {
    fn check<T: Element<Real = f32>>() {
        for loss in losses() {
            for shapes in shapes_of(&loss, [19, 21, 5, 40]) {
                let [half, single] = in_both::<T>(&Input::normal(3, shapes), loss);
                let label = format!("{loss:?} on {shapes:?} in {}", T::DTYPE);
                assert_same_bits(&label, &half.gradient, &single.gradient);
                assert_same_bits(&label, &[half.loss], &[single.loss]);
                assert_eq!(half.kl, single.kl, "{label}");
                assert!(half.gradient_norm() > 0.0, "{label}: nothing was compared");
            }
        }
        assert_eq!(Device::<T>::name(&Cpu), "cpu");
    }
    check::<half::f16>();
    check::<half::bf16>();
}
