//! KD's divergences: where their formulas cancel, at the ends of their parameters, and with logits of
//! −∞. The expected values were computed from the definitions with 60 digits (mpmath).

mod common;

use common::compare::norm;
use common::losses::divergences;
use common::on_every_device;
use relata::{
    Batch, Cpu, DType, Device, Divergence, Element, Error, Evaluation, KdKl, Problem, Reference,
    Result, Rows,
};

/// Logits that differ by 0.001 in one class.
const NEAR: [&[f64]; 2] = [&[2.0, -1.0, 0.5], &[2.001, -1.0, 0.5]];
/// Unrelated logits.
const FAR: [&[f64]; 2] = [&[3.0, -2.0, 0.5, 7.25, -4.0], &[-1.0, 4.5, 2.0, -3.75, 6.0]];

struct Expected {
    rows: [&'static [f64]; 2],
    loss: KdKl,
    value: f64,
    gradient: &'static [f64],
}

const fn expected(
    rows: [&'static [f64]; 2],
    [student_temperature, teacher_temperature]: [f64; 2],
    divergence: Divergence,
    value: f64,
    gradient: &'static [f64],
) -> Expected {
    Expected {
        rows,
        loss: KdKl {
            student_temperature,
            teacher_temperature,
            divergence,
            ..KdKl::new(1.0)
        },
        value,
        gradient,
    }
}

#[rustfmt::skip]
#[allow(clippy::unreadable_literal, clippy::excessive_precision)]
const CASES: &[Expected] = &[
    expected(NEAR, [4.0; 2], Divergence::Reverse, 1.242996040204211e-07, &[-0.00024861569677060924, 0.00010126947707036025, 0.00014734621970024896]),
    expected(NEAR, [4.0; 2], Divergence::Js { beta: 0.5 }, 3.1074996616563836e-08, &[-6.215421110685144e-05, 2.531748613732632e-05, 3.683672496952512e-05]),
    expected(NEAR, [4.0; 2], Divergence::Js { beta: 0.125 }, 1.3595342404062006e-08, &[-2.7192561550194657e-05, 1.107643855219902e-05, 1.6116122997995635e-05]),
    expected(NEAR, [4.0; 2], Divergence::Skew { alpha: 0.125 }, 9.516732358655923e-08, &[-0.0001903477110252592, 7.753498032287903e-05, 0.00011281273070238017]),
    expected(NEAR, [4.0; 2], Divergence::Skew { alpha: 0.875 }, 1.942172350128234e-09, &[-3.884593367368437e-06, 1.5823246241260544e-06, 2.3022687432423816e-06]),
    expected(NEAR, [4.0; 2], Divergence::SkewReverse { alpha: 0.125 }, 9.516703071350531e-08, &[-0.0001903468320986573, 7.753462230671788e-05, 0.00011281220979193941]),
    expected(NEAR, [4.0; 2], Divergence::SkewReverse { alpha: 0.875 }, 1.942202235133832e-09, &[-3.884683053756862e-06, 1.5823611563875898e-06, 2.302321897369272e-06]),
    expected(NEAR, [1000.0; 2], Divergence::Reverse, 1.1117823451907694e-07, &[-0.00022237256180387692, 0.00011110289120689757, 0.00011126967059697935]),
    expected(NEAR, [1000.0; 2], Divergence::Js { beta: 0.5 }, 2.7794560169164888e-08, &[-5.559314506949132e-05, 2.7775725109253492e-05, 2.7817419960237824e-05]),
    expected(NEAR, [1000.0; 2], Divergence::Js { beta: 0.125 }, 1.2160120579124057e-08, &[-2.4322002483355896e-05, 1.215188049245683e-05, 1.2170121990899067e-05]),
    expected(NEAR, [1000.0; 2], Divergence::Skew { alpha: 0.125 }, 8.512084287526787e-08, &[-0.00017025401384743234, 8.506316168049437e-05, 8.519085216693798e-05]),
    expected(NEAR, [1000.0; 2], Divergence::Skew { alpha: 0.875 }, 1.7371597700422516e-09, &[-3.4745708451991973e-06, 1.7359824587769546e-06, 1.7385883864222427e-06]),
    expected(NEAR, [1000.0; 2], Divergence::SkewReverse { alpha: 0.125 }, 8.512083816086751e-08, &[-0.00017025399970320375, 8.506315461368414e-05, 8.519084508951959e-05]),
    expected(NEAR, [1000.0; 2], Divergence::SkewReverse { alpha: 0.875 }, 1.7371602511035128e-09, &[-3.4745722884878317e-06, 1.7359831798800387e-06, 1.738589108607793e-06]),
    expected(NEAR, [10000.0; 2], Divergence::Reverse, 1.1110333751304055e-07, &[-0.00022222277909796564, 0.00011110305619478228, 0.00011111972290318336]),
    expected(NEAR, [10000.0; 2], Divergence::Js { beta: 0.5 }, 2.777583453251284e-08, &[-5.555569523728307e-05, 2.777576428007404e-05, 2.7779930957209023e-05]),
    expected(NEAR, [10000.0; 2], Divergence::Js { beta: 0.125 }, 1.2151927658588538e-08, &[-2.4305616818164862e-05, 1.2151896948453459e-05, 1.2153719869711403e-05]),
    expected(NEAR, [10000.0; 2], Divergence::Skew { alpha: 0.125 }, 8.506349349202003e-08, &[-0.00017013931737282914, 8.506327846202505e-05, 8.507603891080409e-05]),
    expected(NEAR, [10000.0; 2], Divergence::Skew { alpha: 0.875 }, 1.7359896341800678e-09, &[-3.472230880018996e-06, 1.7359852313517415e-06, 1.7362456486672546e-06]),
    expected(NEAR, [10000.0; 2], Divergence::SkewReverse { alpha: 0.125 }, 8.506349301962112e-08, &[-0.00017013931595552965, 8.506327775342846e-05, 8.50760382021012e-05]),
    expected(NEAR, [10000.0; 2], Divergence::SkewReverse { alpha: 0.875 }, 1.7359896823840387e-09, &[-3.472231024641393e-06, 1.7359853036575167e-06, 1.7362457209838765e-06]),
    expected(NEAR, [100000000.0; 2], Divergence::Reverse, 1.1109500602857459e-07, &[-0.00022220611738920208, 0.00011110305786132811, 0.00011110305952787399]),
    expected(NEAR, [100000000.0; 2], Divergence::Js { beta: 0.5 }, 2.7773751507159076e-08, &[-5.5551529347346817e-05, 2.7775764465355172e-05, 2.777576488199164e-05]),
    expected(NEAR, [100000000.0; 2], Divergence::Js { beta: 0.125 }, 1.2151016284387157e-08, &[-2.4303794089479418e-05, 1.2151896953600482e-05, 1.2151897135878938e-05]),
    expected(NEAR, [100000000.0; 2], Divergence::Skew { alpha: 0.125 }, 8.505711399069829e-08, &[-0.00017012655862632048, 8.506327867518565e-05, 8.506327995113485e-05]),
    expected(NEAR, [100000000.0; 2], Divergence::Skew { alpha: 0.875 }, 1.7358594691950314e-09, &[-3.4719705842019432e-06, 1.7359852790810819e-06, 1.7359853051208612e-06]),
    expected(NEAR, [100000000.0; 2], Divergence::SkewReverse { alpha: 0.125 }, 8.505711399065104e-08, &[-0.00017012655862617873, 8.506327867511477e-05, 8.506327995106397e-05]),
    expected(NEAR, [100000000.0; 2], Divergence::SkewReverse { alpha: 0.875 }, 1.7358594691998528e-09, &[-3.4719705842164084e-06, 1.7359852790883147e-06, 1.735985305128094e-06]),
    expected(FAR, [1.0; 2], Divergence::Reverse, 9.836974731057685, &[-0.09671082666842298, -0.0016453580685397698, -0.0142797758478534, 0.11290346429888719, -0.0002675037140710331]),
    expected(FAR, [1.0; 2], Divergence::Js { beta: 0.5 }, 0.6888814410820514, &[-0.00032510323607012675, -0.00035699595535317616, -0.0015098127045164588, 0.0022626371296188335, -7.072523367907172e-05]),
    expected(FAR, [1.0; 2], Divergence::Js { beta: 0.125 }, 0.37364014627796693, &[-6.736048353027327e-05, -0.0004640849748333439, -0.0010462845777380828, 0.001679722215673543, -0.00010199217957184311]),
    expected(FAR, [1.0; 2], Divergence::Skew { alpha: 0.125 }, 2.0680957291053734, &[-0.0006338429143773116, -0.000659411049004188, -0.005207664092589367, 0.006590479163030543, -8.956110705967617e-05]),
    expected(FAR, [1.0; 2], Divergence::Skew { alpha: 0.875 }, 0.13200964800729353, &[-0.0005266810769691229, -1.3446892482228384e-05, -0.00016200917327918905, 0.0007039571153090719, -1.8199725785316254e-06]),
    expected(FAR, [1.0; 2], Divergence::SkewReverse { alpha: 0.125 }, 2.0684751788149116, &[-0.0005376689572567403, -0.0008033844892615964, -0.0040478138878503635, 0.005542420445512963, -0.00015355311114426215]),
    expected(FAR, [1.0; 2], Divergence::SkewReverse { alpha: 0.875 }, 0.13157506301690886, &[1.3565578019303634e-05, -0.0004361812499517948, -0.00045180178990218516, 0.0009781855089082575, -0.00010376804707358124]),
    expected(FAR, [4.0; 2], Divergence::Reverse, 25.75884461629702, &[-0.4965809496828409, -0.757575875102879, -0.8679392862964759, 2.705989161537311, -0.583893050455115]),
    expected(FAR, [4.0; 2], Divergence::Js { beta: 0.5 }, 4.917824957636674, &[0.03408615334276652, -0.16483992982367596, -0.10960589065162189, 0.395352113840328, -0.15499244670779666]),
    expected(FAR, [4.0; 2], Divergence::Js { beta: 0.125 }, 2.2979159280112973, &[0.03795223218372534, -0.09028082726264086, -0.03228282496357379, 0.1968350439511153, -0.11222362390862602]),
    expected(FAR, [4.0; 2], Divergence::Skew { alpha: 0.125 }, 15.085587250287796, &[0.18139025109930496, -0.555034613861684, -0.27650838450572457, 1.2004328488890943, -0.5502801016209907]),
    expected(FAR, [4.0; 2], Divergence::Skew { alpha: 0.875 }, 0.5803637237133246, &[-0.023154556051320385, -0.01510133851467542, -0.02432129008822037, 0.072057816752281, -0.009480632098064821]),
    expected(FAR, [4.0; 2], Divergence::SkewReverse { alpha: 0.125 }, 15.48579900618587, &[0.03093800511147249, -0.47658749143218876, -0.3991725761004488, 1.2537452996736775, -0.4089232372525124]),
    expected(FAR, [4.0; 2], Divergence::SkewReverse { alpha: 0.875 }, 0.4711057391146545, &[0.017461086624356827, -0.023887429177063272, 0.002606540685304892, 0.05346392895997547, -0.04964412709257391]),
    expected(FAR, [10000.0; 2], Divergence::Reverse, 27.971434057770203, &[0.9196009882469846, -1.180239126393515, -0.1805792993484128, 2.320874071325168, -1.8796566338302245]),
    expected(FAR, [10000.0; 2], Divergence::Js { beta: 0.5 }, 6.9925992610238685, &[0.22994374135197443, -0.29503337019079123, -0.045075906991610376, 0.5801201937525496, -0.46995465792212243]),
    expected(FAR, [10000.0; 2], Divergence::Js { beta: 0.125 }, 3.059177274110419, &[0.10061465775671212, -0.12906844110499732, -0.0196980986350435, 0.2537703565552196, -0.20561847457189092]),
    expected(FAR, [10000.0; 2], Divergence::Skew { alpha: 0.125 }, 21.4144388599113, &[0.7042693061355974, -0.903499282676866, -0.13793944569852953, 1.776467660689698, -1.4392982384499]),
    expected(FAR, [10000.0; 2], Divergence::Skew { alpha: 0.875 }, 0.4370779745049527, &[0.014364687802755675, -0.018443713010036694, -0.002828012824773299, 0.036272877820117316, -0.029365839788062998]),
    expected(FAR, [10000.0; 2], Divergence::SkewReverse { alpha: 0.125 }, 21.415231943729005, &[0.7041361083500064, -0.903580125519079, -0.1381504906111403, 1.7767685947926353, -1.4391740870124226]),
    expected(FAR, [10000.0; 2], Divergence::SkewReverse { alpha: 0.875 }, 0.436997047567436, &[0.01437827941687136, -0.01843546373758751, -0.002806477625974067, 0.03624217025029411, -0.029378508303603886]),
    expected(FAR, [2.0, 5.0], Divergence::Forward, 12.163472587732796, &[0.01343979033099327, -0.5576957234730627, -0.2898098278174254, 1.6033740708805844, -0.7693083099210896]),
    expected(FAR, [2.0, 5.0], Divergence::Reverse, 9.041505700635533, &[-0.4487366491972348, -0.09731664527640974, -0.2370488247942963, 0.8269376780595622, -0.0438355587916214]),
    expected(FAR, [2.0, 5.0], Divergence::Js { beta: 0.5 }, 1.8016797586467181, &[-0.044731536624172036, -0.028042217151808085, -0.05028239362841689, 0.13732514080172634, -0.014268993397329342]),
    expected(FAR, [2.0, 5.0], Divergence::Js { beta: 0.125 }, 0.950829941784775, &[-0.01121593738184011, -0.025134132574090626, -0.028319008043092453, 0.08023224894349604, -0.015563170944472848]),
    expected(FAR, [2.0, 5.0], Divergence::Skew { alpha: 0.125 }, 5.62228703186261, &[-0.10678972249746865, -0.0925373455925901, -0.1707230396702186, 0.409158143055932, -0.0391080352956547]),
    expected(FAR, [2.0, 5.0], Divergence::Skew { alpha: 0.875 }, 0.19863336331080253, &[-0.013810664030104119, -0.0014419619587161558, -0.004871126410115026, 0.020656889752496785, -0.0005331373535614837]),
    expected(FAR, [2.0, 5.0], Divergence::SkewReverse { alpha: 0.125 }, 5.507673597006903, &[-0.17303218763525205, -0.07020693852495097, -0.14470797414398365, 0.4217721369728439, -0.033825036668657174]),
    expected(FAR, [2.0, 5.0], Divergence::SkewReverse { alpha: 0.875 }, 0.2834789289165128, &[0.0024374604918211092, -0.015505102142876415, -0.007975574953503005, 0.033242835498862325, -0.012199618894304012]),
];

fn evaluate<T: Element, D: Device<T>>(
    device: &D,
    loss: KdKl,
    rows: [&[f64]; 2],
    classes: usize,
) -> Result<Evaluation<D::Gradient>> {
    // 2.001 is a number of f32.
    let [x, y] = rows.map(|row| {
        let elements = row.iter().map(|&l| T::from_f64(f64::from(l as f32)));
        elements.collect::<Vec<T>>()
    });
    let shape = [x.len() / classes, classes];
    let [x, y] = [&x, &y].map(|rows| Rows::new(rows, shape).unwrap());
    loss.evaluate(device, x, y)
}

/// Asserts that the errors of loss and gradient are at most those that the functions give.
#[track_caller]
fn assert_exact<T: Element, D: Device<T>>(
    device: &D,
    of_loss: impl Fn(&Expected) -> f64,
    of_gradient: impl Fn(&Expected) -> f64,
) {
    let mut wrong = Vec::new();
    for case in CASES {
        let got = evaluate::<T, D>(device, case.loss, case.rows, case.rows[0].len()).unwrap();
        let loss = (got.loss - case.value).abs();
        let off = got.gradient.iter().zip(case.gradient);
        let gradient = norm(&off.map(|(g, want)| g.to_f64() - want).collect::<Vec<_>>());
        let text = format!(
            "{} in {}, {:?}: loss off by {:.1e} of it, gradient by {:.1e}",
            device.name(),
            T::DTYPE,
            case.loss,
            loss / case.value,
            gradient / norm(case.gradient)
        );
        println!("{text}");
        if !(loss <= of_loss(case) && gradient <= of_gradient(case)) {
            wrong.push(text);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Asserts errors of at most so much of the loss, and of the gradient's length.
#[track_caller]
fn assert_exact_to<T: Element, D: Device<T>>(device: &D, tolerance: f64) {
    let of_gradient = |case: &Expected| tolerance * norm(case.gradient);
    assert_exact::<T, D>(device, |case| tolerance * case.value, of_gradient);
}

#[test]
fn the_reference_is_exact() {
    assert_exact_to::<f64, _>(&Reference, 1e-13);
}

#[test]
fn the_cpu_is_exact() {
    assert_exact_to::<f64, _>(&Cpu, 1e-14);
    assert_exact_to::<f32, _>(&Cpu, 1e-6);
}

/// As of KL(p‖q): the kernels start from two logarithms in f32.
#[cfg(feature = "emulator")]
#[test]
fn the_kernels_are_exact() {
    let square = |case: &Expected| case.loss.student_temperature.powi(2);
    let of_loss = |case: &Expected| 1e-6 * case.value + 1e-20 * square(case);
    let of_gradient =
        |case: &Expected| 1e-6 * norm(case.gradient) + 2e-13 * case.loss.student_temperature;
    assert_exact::<f32, _>(&relata::Emulator::new(), of_loss, of_gradient);
}

/// Rows of numbers. Every second one of the student's is near its teacher.
fn numbers(rows: usize, classes: usize) -> [Vec<f64>; 2] {
    let number = |at: usize, seed: f64| ((at as f64 + seed) * 12.9898).sin() * 3.0;
    let teacher: Vec<f64> = (0..rows * classes).map(|at| number(at, 0.3)).collect();
    let student = teacher.iter().enumerate().map(|(at, y)| {
        let near = (at / classes).is_multiple_of(2);
        y + if near { 1e-2 } else { 1.0 } * number(at, 1000.5)
    });
    [student.collect(), teacher]
}

/// What is the same by definition has the same bits.
fn ends_of_the_parameters<T: Element, D: Device<T>>(device: &D) {
    let [x, y] = numbers(4, 37);
    let of = |divergence| {
        let loss = KdKl {
            divergence,
            ..KdKl::new(2.0)
        };
        evaluate::<T, D>(device, loss, [&x, &y], 37).unwrap()
    };
    let bits = |evaluation: &Evaluation<D::Gradient>| -> Vec<u64> {
        let gradient = evaluation.gradient.iter().map(|g| g.to_f64());
        let numbers = gradient.chain([evaluation.loss]);
        numbers.map(f64::to_bits).collect()
    };
    let [forward, reverse] = [Divergence::Forward, Divergence::Reverse].map(of);
    for (divergence, want) in [
        (Divergence::Js { beta: 0.0 }, &forward),
        (Divergence::Js { beta: 1.0 }, &reverse),
        (Divergence::Skew { alpha: 0.0 }, &forward),
        (Divergence::SkewReverse { alpha: 0.0 }, &reverse),
    ] {
        assert_eq!(bits(&of(divergence)), bits(want), "{divergence:?}");
    }
    for divergence in [
        Divergence::Skew { alpha: 1.0 },
        Divergence::SkewReverse { alpha: 1.0 },
    ] {
        let none = of(divergence);
        let label = format!(
            "{} in {}, {divergence:?}: {none:?}",
            device.name(),
            T::DTYPE
        );
        assert_eq!(none.loss, 0.0, "{label}");
        assert!(none.gradient.iter().all(|g| g.to_f64() == 0.0), "{label}");
    }
}

#[test]
fn the_ends_of_the_parameters_are_what_they_say() {
    on_every_device!(ends_of_the_parameters);
}

/// The terms of a divergence of 0 are rounded, and their sum may be below 0.
fn nothing_is_negative<T: Element, D: Device<T>>(device: &D) {
    // An emulated block has 512 threads.
    let seeds = if device.name() == "emulator" { 3 } else { 40 };
    for classes in [1, 2, 7, 33] {
        for seed in 0..seeds {
            let row = |offset: f64| -> Vec<f64> {
                let number = |i| 3.0 * (f64::from(i) * f64::from(seed + 1)).sin() + offset;
                (1..=classes).map(number).collect()
            };
            // The same distribution, but for rounding.
            let [x, y] = [row(0.37 * f64::from(seed % 17)), row(0.0)];
            for temperature in [0.3, 40.0] {
                for (name, loss) in divergences(KdKl::new(temperature)) {
                    let two = loss.student_temperature != loss.teacher_temperature;
                    let classes = x.len();
                    let got = evaluate::<T, D>(device, loss, [&x, &y], classes).unwrap();
                    let label = format!("{} in {}, {name}, {classes}", device.name(), T::DTYPE);
                    let most = match T::DTYPE {
                        _ if two => f64::INFINITY,
                        DType::F64 | DType::F32 => 1e-10,
                        // The rows are rounded.
                        _ => 1e-2,
                    };
                    let is_right = (0.0..most).contains(&got.loss);
                    assert!(is_right, "{label}, T = {temperature}: {:e}", got.loss);
                }
            }
        }
    }
}

#[test]
fn a_divergence_of_almost_0_is_not_negative() {
    on_every_device!(nothing_is_negative);
}

const NONE: f64 = f64::NEG_INFINITY;

/// The divergence of one row at T = 1 from its definition, with 0 log 0 = 0, and its gradient.
fn definition(divergence: Divergence, x: &[f64], y: &[f64]) -> (f64, Vec<f64>) {
    let softmax = |row: &[f64]| -> Vec<f64> {
        let sum: f64 = row.iter().map(|l| l.exp()).sum();
        row.iter().map(|l| l.exp() / sum).collect()
    };
    let (p, q) = (softmax(y), softmax(x));
    let kl = |v: &[f64], w: &[f64]| -> f64 {
        let terms = v.iter().zip(w).filter(|(v, _)| **v > 0.0);
        terms.map(|(v, w)| v * (v / w).ln()).sum()
    };
    let mixed = |share: f64| -> Vec<f64> {
        let pairs = p.iter().zip(&q);
        pairs.map(|(p, q)| share * p + (1.0 - share) * q).collect()
    };
    // The derivatives by q, where q is above 0.
    let slopes = |of: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
        let slopes = p
            .iter()
            .zip(&q)
            .map(|(&p, &q)| if q > 0.0 { q * of(p, q) } else { 0.0 });
        let slopes: Vec<f64> = slopes.collect();
        let mean: f64 = slopes.iter().sum();
        slopes
            .iter()
            .zip(&q)
            .map(|(slope, q)| slope - q * mean)
            .collect()
    };
    match divergence {
        Divergence::Forward => (kl(&p, &q), slopes(&|p, q| -p / q)),
        Divergence::Reverse => (kl(&q, &p), slopes(&|p, q| (q / p).ln())),
        Divergence::Js { beta } => {
            let m = mixed(beta);
            let d = beta * kl(&p, &m) + (1.0 - beta) * kl(&q, &m);
            let slope = |p: f64, q: f64| (1.0 - beta) * (q / (beta * p + (1.0 - beta) * q)).ln();
            (d, slopes(&slope))
        }
        Divergence::Skew { alpha } => {
            let slope = |p: f64, q: f64| -p * (1.0 - alpha) / (alpha * p + (1.0 - alpha) * q);
            (kl(&p, &mixed(alpha)), slopes(&slope))
        }
        Divergence::SkewReverse { alpha } => {
            let slope = |p: f64, q: f64| {
                let m = alpha * q + (1.0 - alpha) * p;
                (q / m).ln() - alpha * q / m
            };
            (kl(&q, &mixed(1.0 - alpha)), slopes(&slope))
        }
    }
}

fn excluded_classes<T: Element, D: Device<T>>(device: &D) {
    let tolerance = if T::DTYPE == DType::F64 { 1e-12 } else { 5e-6 };
    let rows = [
        // Masked.
        ([1.0, NONE, 0.5, 2.0], [0.0, NONE, 1.0, -1.0]),
        // In the teacher alone.
        ([1.0, 0.25, 0.5, 2.0], [0.0, NONE, 1.0, NONE]),
        // In the student alone.
        ([1.0, NONE, NONE, 2.0], [0.0, 1.5, 1.0, -1.0]),
        // In each of them.
        ([NONE, NONE, 0.5, 2.0], [0.0, NONE, 1.0, NONE]),
        // In one where the other has next to nothing.
        ([1.0, NONE, 0.5, 2.0], [0.0, -20.0, 1.0, 0.5]),
        // No class of both.
        ([NONE, NONE, 0.5, 2.0], [0.0, 1.0, NONE, NONE]),
    ];
    let two = [Divergence::Forward, Divergence::Reverse].map(|d| KdKl {
        divergence: d,
        ..KdKl::new(1.0)
    });
    let others = divergences(KdKl::new(1.0))
        .into_iter()
        .map(|(_, loss)| loss);
    let one = others.filter(|loss| loss.teacher_temperature == 1.0);
    for loss in two.into_iter().chain(one) {
        for (x, y) in &rows {
            let got = evaluate::<T, D>(device, loss, [x, y], 4).unwrap();
            let (value, gradient) = definition(loss.divergence, x, y);
            let label = format!(
                "{} in {}, {:?}, {x:?} {y:?}: {got:?} for {value} {gradient:?}",
                device.name(),
                T::DTYPE,
                loss.divergence
            );
            if value == f64::INFINITY {
                assert_eq!(got.loss, value, "{label}");
                assert!(got.gradient.iter().all(|g| g.to_f64().is_nan()), "{label}");
                continue;
            }
            let close = |got: f64, want: f64, size: f64| (got - want).abs() <= tolerance * size;
            assert!(close(got.loss, value, value), "{label}");
            for ((g, want), x) in got.gradient.iter().zip(&gradient).zip(x) {
                // Where no class is in both, the gradient is 0 but for rounding.
                let size = norm(&gradient).max(0.1);
                assert!(close(g.to_f64(), *want, size), "{label}");
                assert!(*x != NONE || g.to_f64() == 0.0, "{label}");
            }
        }
    }
}

#[test]
fn excluded_classes_do_what_the_formula_says() {
    on_every_device!(excluded_classes);
}

/// Rows that have no distribution, beside one that is as it should be.
fn rows_without_a_value<T: Element, D: Device<T>>(device: &D) {
    let (nan, infinite) = (f64::NAN, f64::INFINITY);
    let rows = [
        ([NONE; 3], [NONE; 3], 0.0),
        ([1.0, 2.0, 3.0], [NONE; 3], nan),
        ([1.0, NONE, 3.0], [NONE; 3], nan),
        // KL(p‖q) is +∞ here.
        ([NONE; 3], [1.0, 2.0, 3.0], nan),
        ([NONE; 3], [1.0, NONE, 3.0], nan),
        ([nan, 1.0, 2.0], [0.0, 1.0, 2.0], nan),
        ([0.0, 1.0, 2.0], [0.0, nan, 2.0], nan),
        ([0.0, 1.0, infinite], [0.0, 1.0, 2.0], nan),
        ([0.0, 1.0, 2.0], [0.0, infinite, 2.0], nan),
        // NaN counts for more than +∞.
        ([1.0, nan, NONE], [NONE, 1.0, 2.0], nan),
        ([infinite, 1.0, 1.0], [NONE, 1.0, 2.0], nan),
    ];
    let good = [[0.5, 1.0, -1.0], [1.0, 0.0, 0.25]];
    for (name, loss) in divergences(KdKl::new(2.0)) {
        let alone = evaluate::<T, D>(device, loss, [&good[0], &good[1]], 3).unwrap();
        for (x, y, want) in rows {
            let want = match loss.divergence {
                Divergence::Forward if x == [NONE; 3] && want.is_nan() => infinite,
                _ => want,
            };
            let batch = [[good[0], x].concat(), [good[1], y].concat()];
            let got = evaluate::<T, D>(device, loss, [&batch[0], &batch[1]], 3).unwrap();
            let label = format!(
                "{} in {}, {name}, {x:?} {y:?}: {got:?}",
                device.name(),
                T::DTYPE
            );
            let gradient: Vec<f64> = got.gradient.iter().map(|&g| g.to_f64()).collect();
            assert!(gradient[..3].iter().all(|g| g.is_finite()), "{label}");
            if want == 0.0 {
                let half = 0.5 * alone.loss;
                assert!((got.loss - half).abs() <= 1e-6 * half, "{label}");
                assert_eq!(gradient[3..], [0.0; 3], "{label}");
            } else {
                let is_right = got.loss == want || got.loss.is_nan() && want.is_nan();
                assert!(is_right, "{label}");
                assert!(gradient[3..].iter().all(|g| g.is_nan()), "{label}");
            }
        }
    }
}

#[test]
fn rows_without_a_value_are_alike_on_all_devices() {
    on_every_device!(rows_without_a_value);
}

/// The checked mode refuses what makes this divergence infinite or NaN, and nothing else.
#[test]
fn the_checked_mode_knows_the_divergence() {
    let check = |divergence, x: [f64; 3], y: [f64; 3]| -> Result<f64> {
        let loss = KdKl {
            divergence,
            ..KdKl::default()
        };
        let [x, y] = [&x, &y].map(|row| Rows::new(row, [1, 3]).unwrap());
        let batch = Batch::new(x, y);
        let problem = Problem::new(loss, batch.shapes())?.with_checked(true);
        problem
            .evaluate(&Cpu, batch)
            .map(|evaluation| evaluation.loss)
    };
    let whole = [1.0, 2.0, 0.5];
    let part = [1.0, NONE, 0.5];
    for divergence in Divergence::ALL {
        for (x, y) in [
            (whole, whole),
            (part, part),
            (part, whole),
            (whole, part),
            (whole, [NONE; 3]),
            ([NONE; 3], whole),
            ([NONE; 3], [NONE; 3]),
            (whole, [f64::NAN, 1.0, 2.0]),
            ([f64::INFINITY, 1.0, 2.0], whole),
        ] {
            let loss = KdKl {
                divergence,
                ..KdKl::default()
            };
            let unchecked = evaluate::<f64, _>(&Cpu, loss, [&x, &y], 3).unwrap().loss;
            let label = format!("{divergence:?} {x:?} {y:?}");
            match check(divergence, x, y) {
                Ok(value) => assert!(value.is_finite() && value == unchecked, "{label}"),
                Err(Error::NotFinite { .. }) => assert!(!unchecked.is_finite(), "{label}"),
                Err(other) => panic!("{label}: {other}"),
            }
        }
    }
}

/// Rows of every length, on both sides of a register, a chunk and a block.
fn any_number_of_classes<T: Element, D: Device<T>>(device: &D) {
    for classes in [1, 2, 15, 17, 65, 1029] {
        let [x, y] = numbers(2, classes);
        for (name, loss) in divergences(KdKl::new(3.0)) {
            let round = |rows: &[f64]| -> Vec<f64> {
                let elements = rows.iter().map(|&l| T::from_f64(f64::from(l as f32)));
                elements.map(|l| l.to_f64()).collect()
            };
            let got = evaluate::<T, D>(device, loss, [&x, &y], classes).unwrap();
            let [x, y] = [&x, &y].map(|rows| {
                let rows = round(rows);
                rows.iter().map(|&l| l as f32).collect::<Vec<f32>>()
            });
            let [x, y] = [&x, &y].map(|rows| Rows::new(rows, [2, classes]).unwrap());
            let want = loss.evaluate(&Reference, x, y).unwrap();
            let tolerance = if T::DTYPE == DType::F64 { 1e-11 } else { 5e-6 };
            let off = got.gradient.iter().zip(&want.gradient);
            let off = norm(&off.map(|(g, w)| g.to_f64() - w).collect::<Vec<_>>());
            let loss_off = (got.loss - want.loss).abs();
            let label = format!(
                "{} in {}, {name}, {classes} classes: {loss_off:e} of {:e}, {off:e} of {:e}",
                device.name(),
                T::DTYPE,
                want.loss,
                norm(&want.gradient)
            );
            assert!(loss_off <= tolerance * want.loss + 1e-12, "{label}");
            assert!(off <= tolerance * norm(&want.gradient) + 1e-12, "{label}");
        }
    }
}

#[test]
fn divergences_are_right_for_any_number_of_classes() {
    on_every_device!(any_number_of_classes);
}
