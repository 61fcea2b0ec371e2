//! How exact is f32? On every kind of data the gradient of the CPU path, and of the kernels, may be
//! off by at most twice the error of the definition evaluated directly in f32. Both errors are
//! against f64.
//! `cargo test --test numerics -- --nocapture` prints what is measured.

mod common;

use common::cases::Data;
use common::compare::{assert_gradient, assert_same_bits};
#[cfg(feature = "emulator")]
use common::measured::Measured;
use common::measured::{Errors, assert_within_budget, mean_of};
use common::{Input, cast, losses, naive, order};
use relata::{
    Cpu, DarkRank, Device, Divergence, Element, Evaluation, Family, Gram, InfoNce, KdKl, Loss,
    Order, Pkt, Reference, Relation, RkdAngle, RkdDistance, Rows, Rrd, Shapes, Sp, relation_matrix,
};

/// Errors are root mean squares over so many batches. The angle loss has fewer, because its
/// reference takes O(N³D).
const SEEDS: u64 = 12;
const ANGLE_SEEDS: u64 = 3;

const STUDENTS: [Data; 9] = [
    Data::Gaussian,
    Data::Clusters { spread: 5e-2 },
    Data::Clusters { spread: 1e-3 },
    Data::Clusters { spread: 1e-5 },
    Data::Translated { distance: 1e4 },
    Data::NearTeacher { noise: 1e-3 },
    Data::NearTeacher { noise: 0.15 },
    Data::Scaled { factor: 1e-12 },
    Data::Scaled { factor: 1e12 },
];

/// A batch of N, D, D_t. A student near its teacher has the teacher's width.
fn input_of(student: Data, seed: u64, [n, dim, mut dim_t]: [usize; 3]) -> Input {
    if matches!(student, Data::NearTeacher { .. }) {
        dim_t = dim;
    }
    Input::of_data(seed, Shapes::new(n, dim, dim_t), student)
}

/// The same without comparisons that f32 may turn over: each changes the gradient by 1e-4 of its
/// length, on a device and in the definition, and which of the two has more of them is chance.
fn clear_input_of(loss: &Loss, student: Data, seed: u64, shape: [usize; 3]) -> Input {
    let mut inputs = (0..).map(|draw| input_of(student, seed + 1000 * draw, shape));
    let is_clear = |input: &Input| {
        let input = input.rounded::<f32>();
        order::is_clear(loss, &input.student, &input.teacher, input.shapes)
    };
    inputs.find(is_clear).expect("a seed")
}

/// The losses of relations, each with its direct evaluation.
const RELATIONAL: [(Loss, naive::Direct); 9] = [
    (
        Loss::RkdDistance(RkdDistance {
            delta: 1.0,
            normalize: false,
        }),
        naive::rkd_distance,
    ),
    (
        Loss::RkdAngle(RkdAngle {
            delta: 1.0,
            normalize: false,
        }),
        naive::rkd_angle,
    ),
    (
        Loss::RkdDistance(RkdDistance {
            delta: 1.0,
            normalize: true,
        }),
        naive::rkd_distance_of_unit_rows,
    ),
    (
        Loss::RkdAngle(RkdAngle {
            delta: 1.0,
            normalize: true,
        }),
        naive::rkd_angle_of_unit_rows,
    ),
    (Loss::Sp(Sp), naive::sp),
    (Loss::Gram(Gram { clamp: false }), naive::gram),
    (Loss::Pkt(Pkt), naive::pkt),
    (Loss::Order(Order { margin: 0.015 }), naive::order),
    (
        Loss::DarkRank(DarkRank {
            alpha: 3.0,
            beta: 3.0,
            length: 4,
        }),
        naive::dark_rank,
    ),
];

/// Whether the direct evaluation stays within the range of f32, where SP takes squares of squares,
/// and whether the case is of its own kind: rows at unit length lose their scale.
fn is_measured(loss: Loss, student: Data) -> bool {
    match student {
        // The cube of 1e12 is beyond it, and that of 1e-12 below.
        Data::Scaled { .. } => {
            let grows = matches!(loss, Loss::Sp(_) | Loss::DarkRank(_));
            !(grows || loss.spec().normalize)
        }
        Data::Gaussian | Data::Clusters { .. } => true,
        _ => !loss.spec().normalize,
    }
}

/// The losses of relations on every kind of student.
fn relational(device: &impl Device<f32, Gradient = f32>, shape: [usize; 3]) {
    let mut table = Vec::new();
    for (loss, direct) in RELATIONAL {
        for student in STUDENTS {
            if !is_measured(loss, student) {
                continue;
            }
            let seeds = match loss.spec().family {
                Family::Triplet(_) => ANGLE_SEEDS,
                Family::Pairwise(_)
                | Family::Contrastive(_)
                | Family::Logits(_)
                | Family::Towers(_)
                | Family::Sampled(_) => SEEDS,
            };
            let unit = if loss.spec().normalize {
                " of unit rows"
            } else {
                ""
            };
            let name = format!("{loss}{unit} {student:?}");
            table.push(mean_of(name, seeds, |seed| {
                let input = clear_input_of(&loss, student, seed, shape);
                let shapes = input.shapes;
                let shape = [shapes.rows, shapes.student_dim, shapes.teacher_dim];
                measure(device, &input, loss, |x, y, _| direct(x, y, shape))
            }));
        }
    }
    assert_within_budget(
        &format!("{}: RKD and SP, N, D, D_t = {shape:?}", device.name()),
        &table,
    );
}

/// The device's and a direct evaluation's errors on one batch.
fn measure(
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

/// Moves the student to its teacher, plus a little noise.
fn approach(input: &mut Input, noise: f64) {
    for (x, y) in input.student.iter_mut().zip(&input.teacher) {
        *x = y + noise * *x;
    }
}

/// A student near its teacher. Asserts that KL(p‖q) is about `kl`.
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
                measure(device, &input, loss.into(), |x, y, keys| {
                    naive::rrd(x, y, keys, dim, tau)
                })
            }));
        }
        // Both have one temperature, so that a student near its teacher has converged.
        let loss = Rrd {
            student_temperature: 0.1,
            teacher_temperature: 0.1,
            ..Rrd::default()
        };
        for (kl, noise) in [(0.2, 0.87), (4e-3, 0.103), (4e-5, 0.0103)] {
            // Normals of fewer dimensions are less alike: the same noise gives a larger divergence.
            let noise = if dim == 40 { noise * 0.5 } else { noise };
            let name = format!("rrd {n}x{dim} K {keys} KL {kl}");
            table.push(mean_of(name, SEEDS, |seed| {
                let input = at_divergence(Input::normal(seed, shapes), kl, noise, |input| {
                    let evaluation = input.evaluate::<f32, _>(&Reference, loss);
                    evaluation.term("kl").expect("RRD's KL")
                });
                measure(device, &input, loss.into(), |x, y, keys| {
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
        // The second of each pair is the noise between student and teacher. `None`: they are not
        // related. Otherwise they are so near that the own key has most of the softmax, but not
        // all.
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
                measure(device, &input, loss.into(), |x, y, keys| {
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
            let loss = KdKl::new(temperature);
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
                measure(device, &input, loss.into(), |x, y, _| {
                    naive::kd_kl(x, y, classes, temperature as f32)
                })
            }));
        }
    }
    assert_within_budget(&format!("{}: KD", device.name()), &table);
}

fn kd_divergences(device: &impl Device<f32, Gradient = f32>) {
    let mut table = Vec::new();
    let (n, classes) = (8, 1000);
    for (temperature, near) in [
        (4.0, Some((4e-3, 0.12))),
        (4.0, Some((4e-5, 0.012))),
        (1.0, Some((0.2, 0.27))),
        (1.0, None),
    ] {
        for divergence in &Divergence::ALL[1..] {
            let loss = KdKl {
                divergence: *divergence,
                ..KdKl::new(temperature)
            };
            let name = format!("{divergence:?} T {temperature} KL, noise {near:?}");
            table.push(mean_of(name, SEEDS, |seed| {
                let mut input = Input::normal(seed, Shapes::new(n, classes, classes));
                for logit in input.student.iter_mut().chain(&mut input.teacher) {
                    *logit *= 3.0;
                }
                if let Some((kl, noise)) = near {
                    input = at_divergence(input, kl, noise, |input| {
                        let forward = KdKl::new(temperature);
                        let loss = input.evaluate::<f32, _>(&Reference, forward).loss;
                        loss / (temperature * temperature)
                    });
                }
                measure(device, &input, loss.into(), |x, y, _| {
                    naive::kd_divergence(x, y, classes, temperature as f32, *divergence)
                })
            }));
        }
    }
    assert_within_budget(&format!("{}: KD's divergences", device.name()), &table);
}

#[test]
fn cpu_is_as_exact_on_rkd_as_its_definition_in_f32() {
    relational(&Cpu, [64, 128, 96]);
    relational(&Cpu, [48, 40, 40]);
}

#[test]
fn cpu_is_as_exact_on_rrd_info_nce_and_kd_as_their_definitions_in_f32() {
    rrd(&Cpu);
    info_nce(&Cpu);
    kd_kl(&Cpu);
    kd_divergences(&Cpu);
}

#[cfg(feature = "emulator")]
#[test]
fn kernels_are_as_exact_on_rkd_and_kd_as_their_definitions_in_f32() {
    let emulator = relata::Emulator::new();
    relational(&emulator, [64, 128, 96]);
    relational(&emulator, [48, 40, 40]);
    kd_kl(&emulator);
    kd_divergences(&emulator);
}

/// How close may two rows be for the accurate kernels? The pair lies near the origin, where f32 has
/// numbers for small distances. Compares with the definition in f32 (docs/decisions/0008).
#[cfg(feature = "emulator")]
#[test]
fn rkd_kernels_carry_to_a_spread_of_1e7() {
    let loss = RkdAngle::default();
    let shape @ [n, dim, _] = [33, 16, 16];
    println!("apart, in   loss off by   gradient   the definition in f32, loss   gradient");
    // `most`: the error that the gradient may have if the definition is not the measure.
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

/// Too many rows for the small-batch kernels. The lengths are either so alike that the fast kernels
/// are trusted, or not. The reference would take minutes, so the CPU path in f64 takes its place.
#[cfg(feature = "emulator")]
#[test]
fn rkd_kernels_for_many_rows_are_as_exact_as_its_definition_in_f32() {
    let mut table = Vec::new();
    for (student, shape) in [
        (Data::Gaussian, [260, 192, 160]),
        (Data::Clusters { spread: 5e-2 }, [260, 24, 20]),
    ] {
        let input = input_of(student, 7, shape);
        let [x, y] = [&input.student, &input.teacher].map(|rows| cast::<f32>(rows));
        let as_they_come = RELATIONAL
            .into_iter()
            .filter(|(loss, _)| !loss.spec().normalize);
        for (loss, direct) in as_they_come {
            let right = input.rounded::<f32>().evaluate::<f64, _>(&Cpu, loss);
            let got = input.evaluate::<f32, _>(&relata::Emulator::new(), loss);
            let (value, gradient) = direct(&x, &y, shape);
            table.push(Measured {
                name: format!("{loss:?} {student:?} {shape:?}"),
                device: Errors::of(got.loss, &got.gradient, &right),
                naive: Errors::of(f64::from(value), &gradient, &right),
            });
        }
    }
    assert_within_budget("RKD on the emulator, many rows", &table);
}

/// The evaluations of `input`, rounded to `T`, as `T` and as f32.
fn in_both<T: Element<Real = f32>>(input: &Input, loss: Loss) -> [Evaluation<f32>; 2] {
    [
        input.evaluate::<T, _>(&Cpu, loss),
        input.rounded::<T>().evaluate::<f32, _>(&Cpu, loss),
    ]
}

#[test]
fn cpu_computes_half_types_in_f32() {
    fn assert_same_as_f32<T: Element<Real = f32>>() {
        for loss in losses::losses() {
            for shapes in losses::shapes_of(&loss, [19, 21, 5, 40]) {
                let [half, single] = in_both::<T>(&Input::normal(3, shapes), loss);
                let label = format!("{loss:?} on {shapes:?} in {}", T::DTYPE);
                assert_same_bits(&label, &half.gradient, &single.gradient);
                assert_same_bits(&label, &[half.loss], &[single.loss]);
                assert_eq!(half.term("kl"), single.term("kl"), "{label}");
                assert!(half.gradient_norm() > 0.0, "{label}: nothing was compared");
            }
        }
        assert_eq!(Device::<T>::name(&Cpu), "cpu");
    }
    assert_same_as_f32::<half::f16>();
    assert_same_as_f32::<half::bf16>();
}

/// The longest distance over the shortest one, of student or teacher.
fn spread(input: &Input) -> f64 {
    let Shapes {
        rows,
        student_dim,
        teacher_dim,
        ..
    } = input.shapes;
    [(&input.student, student_dim), (&input.teacher, teacher_dim)]
        .into_iter()
        .map(|(data, dim)| {
            let all = Rows::new(data, [rows, dim]).expect("whole rows");
            let matrix = relation_matrix(&Cpu, Relation::Distance, all).expect("distances");
            let longest = matrix.iter().fold(0.0f64, |a, &b| a.max(b));
            let apart = matrix.iter().filter(|&&d| d > 0.0);
            longest / apart.fold(longest, |a, &b| a.min(b))
        })
        .fold(1.0, f64::max)
}

/// Where f32 is not trusted with the angles, because of the spread or of a student near its
/// teacher, the loss has the digits of f64 and the gradient is rounded to f32 once.
#[test]
fn cpu_computes_angles_in_f64_if_the_data_need_it() {
    fn assert_in_f64(input: &Input, what: &str) {
        let loss = RkdAngle::default();
        let got = input.evaluate::<f32, _>(&Cpu, loss);
        let want = input.evaluate::<f32, _>(&Reference, loss);
        let off = Errors::of(got.loss, &got.gradient, &want);
        assert!(
            off.loss <= 1e-9,
            "{what}: the loss is off by {:e}",
            off.loss
        );
        assert!(
            off.gradient <= f64::from(f32::EPSILON) / 2.0,
            "{what}: the gradient is off by {:e}",
            off.gradient
        );
    }
    let shapes = Shapes::new(16, 512, 512);
    // Rows in many dimensions are about equally far apart. The second row is drawn to the first.
    for drawn in [0.5, 0.65] {
        let mut input = Input::normal(2, shapes);
        let (first, second) = input.student[..2 * 512].split_at_mut(512);
        for (x, to) in second.iter_mut().zip(first) {
            *x += drawn * (*to - *x);
        }
        let spread = spread(&input);
        assert!((1.75..3.5).contains(&spread), "{spread}");
        let loss = input
            .evaluate::<f32, _>(&Reference, RkdAngle::default())
            .loss;
        assert!(loss > 2e-4, "{loss:e}: near the teacher");
        assert_in_f64(&input, &format!("a spread of {spread}"));
    }
    for noise in [1e-3, 0.2] {
        let input = Input::of_data(2, shapes, Data::NearTeacher { noise });
        assert!(spread(&input) < 1.75);
        assert_in_f64(&input, &format!("noise of {noise}"));
    }
}

/// The CPU passes over keys that together weigh less than rounding. Here half of the keys together
/// weigh a few hundred roundings, and each of them e⁸ times what it may weigh to be passed over.
#[test]
fn cpu_counts_keys_that_together_weigh_more_than_rounding() {
    const KEYS: usize = 128;
    // Keys are passed over for many rows at once, so all rows are the same.
    const ROWS: usize = 64;
    fn assert_counted<T: Element>(epsilon: f64) {
        let temperature = 0.02;
        let logit = (epsilon / (4 * KEYS) as f64).ln() + 8.0;
        let cos = 1.0 + temperature * logit;
        // One key is the student's row, others lie opposite.
        let mut keys = vec![[-1.0, 0.0]; KEYS];
        keys[0] = [1.0, 0.0];
        keys[KEYS / 2..].fill([cos, (1.0 - cos * cos).sqrt()]);
        let input = Input {
            shapes: Shapes::new(ROWS, 2, 2).with_queue(KEYS),
            student: [1.0, 0.0].repeat(ROWS),
            teacher: [0.0, -1.0].repeat(ROWS),
            keys: keys.concat(),
        };
        let loss = InfoNce {
            temperature,
            ..InfoNce::default()
        };
        let got = input.evaluate::<T, _>(&Cpu, loss);
        let want = input.evaluate::<T, _>(&Reference, loss);
        let name = format!("info-nce in {}", T::DTYPE);
        assert_gradient(&name, &got.gradient, &want.gradient, 2, 16.0 * epsilon);
    }
    assert_counted::<f32>(f32::EPSILON.into());
    assert_counted::<f64>(f64::EPSILON);
}
