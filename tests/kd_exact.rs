//! KD where its formula cancels: near the teacher, and at high temperatures. The expected values
//! were computed from the definition with 60 digits (mpmath).

mod common;

use common::compare::norm;
use relata::{Cpu, Device, Element, Evaluation, KdKl, Reference, Rows};

struct Expected {
    student: &'static [f32],
    teacher: &'static [f32],
    temperature: f64,
    loss: f64,
    gradient: &'static [f64],
}

/// Logits that differ by 0.001 in one class.
const NEAR: [&[f32]; 2] = [&[2.0, -1.0, 0.5], &[2.001, -1.0, 0.5]];
/// Unrelated logits.
const FAR: [&[f32]; 2] = [&[3.0, -2.0, 0.5, 7.25, -4.0], &[-1.0, 4.5, 2.0, -3.75, 6.0]];

const fn expected(
    [student, teacher]: [&'static [f32]; 2],
    temperature: f64,
    loss: f64,
    gradient: &'static [f64],
) -> Expected {
    Expected {
        student,
        teacher,
        temperature,
        loss,
        gradient,
    }
}

const CASES: [Expected; 9] = [
    expected(
        NEAR,
        4.0,
        1.2430036907656377e-07,
        &[
            -0.00024861799274214974,
            0.00010127041229625426,
            0.0001473475804458955,
        ],
    ),
    expected(
        NEAR,
        20.0,
        1.1499054168744596e-07,
        &[
            -0.0002299972115579475,
            0.00011068817838570511,
            0.00011930903317224238,
        ],
    ),
    expected(
        NEAR,
        1000.0,
        1.1117824683424523e-07,
        &[
            -0.00022237259875206594,
            0.00011110290966713652,
            0.00011126968908492942,
        ],
    ),
    expected(
        NEAR,
        10000.0,
        1.111033387470622e-07,
        &[
            -0.000222222782800299,
            0.00011110305804581011,
            0.00011111972475448889,
        ],
    ),
    expected(
        NEAR,
        1e10,
        1.1109500520357322e-07,
        &[
            -0.00022220611573932542,
            0.00011110305786132998,
            0.00011110305787799543,
        ],
    ),
    expected(
        FAR,
        1.0,
        10.283221279885991,
        &[
            0.013311942495327748,
            -0.17949912235554813,
            -0.013588996002874845,
            0.9846467719179972,
            -0.804870596054902,
        ],
    ),
    expected(
        FAR,
        4.0,
        23.028691598534206,
        &[
            0.5180544186827137,
            -0.9524620991977106,
            -0.19736310094603068,
            2.216475145643166,
            -1.5847043641821381,
        ],
    ),
    expected(
        FAR,
        10000.0,
        27.969362328284877,
        &[
            0.9199489335461711,
            -1.180027945037636,
            -0.18002799828327723,
            2.3200879575927744,
            -1.8799809478180325,
        ],
    ),
    expected(
        FAR,
        1e8,
        27.969999936309993,
        &[
            0.9199999948999993,
            -1.1800000027999995,
            -0.18000000279999998,
            2.3200000087999997,
            -1.8799999980999995,
        ],
    ),
];

fn evaluate<T: Element, D: Device<T>>(case: &Expected, device: &D) -> Evaluation<D::Gradient> {
    let [x, y] = [case.student, case.teacher].map(|row| {
        row.iter()
            .map(|&l| T::from_f64(l.into()))
            .collect::<Vec<T>>()
    });
    let shape = [1, x.len()];
    let loss = KdKl::new(case.temperature);
    let [x, y] = [&x, &y].map(|row| Rows::new(row, shape).unwrap());
    loss.evaluate(device, x, y).unwrap()
}

/// Asserts that the errors of loss and gradient are at most those that the functions give.
#[track_caller]
fn assert_exact<T: Element, D: Device<T>>(
    device: &D,
    of_loss: impl Fn(&Expected) -> f64,
    of_gradient: impl Fn(&Expected) -> f64,
) {
    for case in &CASES {
        let got = evaluate::<T, D>(case, device);
        let loss = (got.loss - case.loss).abs();
        let off = got.gradient.iter().zip(case.gradient);
        let gradient = norm(&off.map(|(g, want)| g.to_f64() - want).collect::<Vec<_>>());
        let name = format!(
            "{} in {}, T = {:e}",
            device.name(),
            T::DTYPE,
            case.temperature
        );
        let text = format!(
            "{name}: loss off by {:.1e} of it, gradient by {:.1e}",
            loss / case.loss,
            gradient / norm(case.gradient)
        );
        println!("{text}");
        assert!(
            loss <= of_loss(case) && gradient <= of_gradient(case),
            "{text}"
        );
    }
}

/// Asserts errors of at most so much of the loss, and of the gradient's length.
#[track_caller]
fn assert_exact_to<T: Element, D: Device<T>>(device: &D, tolerance: f64) {
    let of_gradient = |case: &Expected| tolerance * norm(case.gradient);
    assert_exact::<T, D>(device, |case| tolerance * case.loss, of_gradient);
}

#[test]
fn the_reference_is_exact() {
    assert_exact_to::<f64, _>(&Reference, 1e-12);
    assert_exact_to::<f32, _>(&Reference, 1e-12);
}

#[test]
fn the_cpu_is_exact() {
    assert_exact_to::<f64, _>(&Cpu, 1e-12);
    assert_exact_to::<f32, _>(&Cpu, 1e-6);
}

/// The terms of a divergence of 0 are rounded, and their sum may be below 0.
#[test]
fn a_divergence_of_almost_0_is_not_negative() {
    fn assert_not_negative<T: Element>(classes: i32, temperature: f64) {
        for seed in 0..200 {
            let row = |offset: f64| -> Vec<T> {
                let number = |i| 3.0 * (f64::from(i) * f64::from(seed + 1)).sin() + offset;
                (1..=classes).map(|i| T::from_f64(number(i))).collect()
            };
            // The same distribution, but for rounding.
            let [x, y] = [row(0.37 * f64::from(seed % 17)), row(0.0)];
            let [x, y] = [&x, &y].map(|row| Rows::new(row, [1, row.len()]).unwrap());
            let loss = KdKl::new(temperature).evaluate(&Cpu, x, y).unwrap().loss;
            let label = format!("{}, {classes} classes, T = {temperature}", T::DTYPE);
            assert!((0.0..1e-10).contains(&loss), "{label}, {seed}: {loss:e}");
        }
    }
    for classes in [1, 2, 3, 7, 33] {
        for temperature in [0.3, 1.5, 40.0] {
            assert_not_negative::<f32>(classes, temperature);
            assert_not_negative::<f64>(classes, temperature);
        }
    }
}

/// The kernels start from two logarithms in f32, whose error, squared, has rounding of its own: KL
/// below 1e-16 is lost. Their gradient is T (q − p) of two probabilities in f32.
#[cfg(feature = "emulator")]
#[test]
fn the_kernels_are_exact() {
    let of_loss = |case: &Expected| 1e-6 * case.loss + 1e-29 * case.temperature.powi(2);
    let of_gradient = |case: &Expected| 2e-7 * case.temperature;
    assert_exact::<f32, _>(&relata::Emulator::new(), of_loss, of_gradient);
}
