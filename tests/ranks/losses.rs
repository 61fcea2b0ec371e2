//! Every loss on 1 to 4 ranks gives what one rank gives, bit for bit.

use half::f16;
use relata::ranks::{Communicator, Global};
use relata::{
    Batch, Cpu, DType, Device, Element, Evaluation, Family, Gram, InfoNce, KdKl, Problem,
    Reference, Rows, Rrd, Shapes, TopK,
};

use super::support::{Dealt, deals, run};
use crate::common::Random;
use crate::common::cases::{self, Case};
use crate::common::compare::{assert_loss, assert_same_bits, relative_error};
use crate::common::losses::{losses, shapes_of};
use crate::common::{Input, cast};

const WORLDS: [usize; 3] = [2, 3, 4];

/// Whether rows have nothing to do with one another.
fn has_own_rows(problem: &Problem) -> bool {
    match problem.spec().family {
        Family::Logits(_) => true,
        Family::Contrastive(_) => problem.shapes().queue.is_some(),
        Family::Pairwise(_) | Family::Triplet(_) | Family::Towers(_) | Family::Sampled(_) => false,
    }
}

/// `problem` with its options on other shapes.
fn on(problem: &Problem, shapes: Shapes) -> relata::Result<Problem> {
    let mut other = Problem::new(*problem.loss(), shapes)?
        .with_upstream(problem.upstream())
        .with_weight_precision(problem.weight_precision());
    if problem.groups() > 1 {
        other = other.with_groups(problem.groups())?;
    }
    if !problem.prefix_widths().is_empty() {
        other = other.with_prefixes(problem.prefix_widths())?;
    }
    if problem.scale_gradient() {
        other = other.with_scale_gradient()?;
    }
    Ok(other)
}

/// What ranks may differ by from `Problem::evaluate`, and from one another.
#[derive(Clone, Copy)]
#[cfg_attr(not(feature = "emulator"), allow(dead_code))] // of a GPU alone
enum Bits {
    /// In nothing: the same bits for any number of ranks.
    Same,
    /// Relative, of the loss and of the gradient.
    Within(f64, f64),
}

/// Evaluates on one rank and on `worlds`, dealt in several ways, and compares with the evaluation of all rows:
/// `alone` to rounding, and that of one rank to the last bit.
fn assert_ranks_agree<T: Element, D: Device<T> + Sync>(
    label: &str,
    device: &D,
    problem: &Problem,
    all: Batch<'_, T>,
    bits: Bits,
    worlds: &[usize],
) where
    D::Gradient: Send + Sync,
{
    let alone = problem.evaluate(device, all).expect("a batch that fits");
    let family = problem.spec().family;
    let [n, dim] = [all.student.len(), all.student.dim()];
    let evaluate = |deal: &[usize]| -> Vec<Evaluation<D::Gradient>> {
        run(deal.len(), |mut rank| {
            let own = Dealt::new(&all, deal, rank.rank(), &family);
            let mut global = Global::new(device, &mut rank);
            let evaluation = global.evaluate(own.batch(&all), |shapes| on(problem, shapes));
            evaluation.unwrap_or_else(|error| panic!("{label}: {error}"))
        })
    };
    let one = evaluate(&[n]).swap_remove(0);
    // The mean of rows' losses is added in another order than on a device.
    let ulps = if D::Gradient::DTYPE == DType::F64 || device.name() == "cpu" {
        4.0 * f64::EPSILON * n as f64
    } else {
        4.0 * f64::from(f32::EPSILON)
    };
    if has_own_rows(problem) {
        assert_loss(
            &format!("{label}: one rank"),
            one.loss,
            alone.loss,
            ulps.max(1e-14),
        );
    } else {
        assert_same_bits(label, &[one.loss], &[alone.loss]);
        assert_same_bits(label, &one.gradient, &alone.gradient);
    }
    let wide: Vec<f64> = alone.gradient.iter().map(|g| g.to_f64()).collect();
    let strips = matches!(family, Family::Contrastive(_)) && has_own_rows(problem);
    if !strips {
        assert_same_bits(
            &format!("{label}: one rank"),
            &one.gradient,
            &alone.gradient,
        );
    }
    let near = |got: &[D::Gradient]| relative_error(got, &wide);
    assert!(
        near(&one.gradient) < 1e-5,
        "{label}: {:e}",
        near(&one.gradient)
    );
    for &world in worlds {
        for deal in deals(n, world, &family) {
            let label = format!("{label}, dealt {deal:?}");
            for (rank, got) in evaluate(&deal).iter().enumerate() {
                let own = Dealt::new(&all, &deal, rank, &family);
                let want = own.own(&one.gradient, dim);
                match bits {
                    Bits::Same => {
                        assert_same_bits(&label, &[got.loss], &[one.loss]);
                        assert_same_bits(&label, &got.gradient, &want);
                    }
                    Bits::Within(loss, gradient) => {
                        assert_loss(&label, got.loss, one.loss, loss);
                        let want: Vec<f64> = want.iter().map(|g| g.to_f64()).collect();
                        let error = relative_error(&got.gradient, &want);
                        assert!(error <= gradient, "{label}: {error:e}");
                    }
                }
                for ((name, got), (_, want)) in got.terms.iter().zip(one.terms.iter()) {
                    let slack = match bits {
                        Bits::Same => 1e-13,
                        Bits::Within(loss, _) => 100.0 * loss,
                    };
                    let unit = want.abs().max(one.loss.abs());
                    let same = got.to_bits() == want.to_bits();
                    assert!(
                        same || (got - want).abs() <= slack * unit,
                        "{label}: {name} {got} {want}"
                    );
                }
            }
        }
    }
}

/// The cases of the table that ranks can be dealt, without the largest: their rows add nothing here.
fn table() -> impl Iterator<Item = Case> {
    cases::tests().filter(|case| {
        let keys = case.keys().unwrap_or(case.rows);
        case.rows * case.student_dim.max(case.teacher_dim) * keys <= 1 << 21 && case.rows <= 66
    })
}

fn on_the_table<T: Element>(worlds: &[usize]) {
    for case in table() {
        let inputs = case.inputs::<T>();
        let label = format!("{} in {}", case.name, T::DTYPE);
        assert_ranks_agree(
            &label,
            &Cpu,
            &inputs.problem,
            inputs.batch(),
            Bits::Same,
            worlds,
        );
    }
}

#[test]
fn every_case_has_the_same_bits_on_any_number_of_ranks_in_f32() {
    on_the_table::<f32>(&WORLDS);
}

#[test]
fn every_case_has_the_same_bits_on_any_number_of_ranks_in_f16() {
    on_the_table::<f16>(&[3]);
}

#[test]
fn every_case_has_the_same_bits_on_any_number_of_ranks_in_f64() {
    on_the_table::<f64>(&[3]);
}

/// A loss with every option off its default, on 32 rows, a number that a deal of 5, 1, 0, 26 fits.
fn inputs() -> impl Iterator<Item = (String, Problem, Input)> {
    losses().into_iter().flat_map(|loss| {
        shapes_of(&loss, [32, 6, 5, 70])
            .into_iter()
            .map(move |shapes| {
                let input = Input::normal(9, shapes);
                let problem = input.problem(loss).with_upstream(-1.5);
                (format!("{loss:?}"), problem, input)
            })
    })
}

#[test]
fn the_reference_has_the_same_bits_on_any_number_of_ranks() {
    for (label, problem, input) in inputs() {
        let inputs = input.inputs::<f32>(&problem);
        assert_ranks_agree(
            &label,
            &Reference,
            &problem,
            inputs.batch(),
            Bits::Same,
            &WORLDS,
        );
    }
}

#[test]
fn every_option_has_the_same_bits_on_any_number_of_ranks() {
    for (label, problem, input) in inputs() {
        let inputs = input.inputs::<f32>(&problem);
        assert_ranks_agree(&label, &Cpu, &problem, inputs.batch(), Bits::Same, &WORLDS);
        if let Ok(problem) = problem.with_scale_gradient() {
            assert_ranks_agree(&label, &Cpu, &problem, inputs.batch(), Bits::Same, &WORLDS);
        }
    }
    let input = Input::normal(3, Shapes::new(32, 6, 5));
    let gram = input.problem(Gram::default());
    let inputs = input.inputs::<f32>(&gram);
    for problem in [gram.with_groups(4), gram.with_prefixes(&[2, 6])] {
        let problem = problem.expect("options that fit");
        assert_ranks_agree(
            "options of gram",
            &Cpu,
            &problem,
            inputs.batch(),
            Bits::Same,
            &WORLDS,
        );
    }
}

/// A strip of rows leaves out keys that weigh nothing to all of its rows. Here whole strips of one
/// rank do, and ranks cut the strips elsewhere. The keys that weigh something have only zeros in half
/// of their elements, where each of the others shows.
#[test]
fn a_sharp_softmax_has_the_same_bits_in_whichever_strip_a_row_lies() {
    for (rows, keys) in [(192, 700), (192, 9000)] {
        let shapes = Shapes::new(rows, 16, 16).with_queue(keys);
        let mut input = Input::normal(21, shapes);
        // The first rows are near keys of one chunk; the others are near those of another.
        for i in 0..rows {
            let key = if i < 64 { i } else { keys - 1 - i };
            let key = &mut input.keys[key * 16..][..16];
            let teacher = &mut input.teacher[i * 16..][..16];
            let student = &mut input.student[i * 16..][..16];
            for d in 0..8 {
                teacher[d] = key[d] + 1e-2 * teacher[d];
                student[d] = key[d] + 0.1 * student[d];
            }
            for row in [key, teacher, student] {
                row[8..].fill(0.0);
            }
        }
        let rrd = Rrd {
            student_temperature: 0.02,
            teacher_temperature: 0.01,
            ..Rrd::default()
        };
        let info_nce = InfoNce {
            temperature: 0.01,
            ..InfoNce::default()
        };
        for problem in [input.problem(rrd), input.problem(info_nce)] {
            let label = format!("{:?}, {rows} rows", problem.loss());
            let inputs = input.inputs::<f32>(&problem);
            assert_ranks_agree(&label, &Cpu, &problem, inputs.batch(), Bits::Same, &WORLDS);
            let inputs = input.inputs::<f64>(&problem);
            assert_ranks_agree(&label, &Cpu, &problem, inputs.batch(), Bits::Same, &WORLDS);
        }
    }
}

/// `check` of problems whose rows have weights, of which a third are 0, and of lists of classes.
fn with_rows_options<T: Element>(check: impl Fn(&str, &Problem, Batch<'_, T>)) {
    let mut random = Random::new(4);
    let weights: Vec<f64> = (0..32)
        .map(|i| {
            // The only row of a rank, in a deal of 5, 1, 0, 26, is one of them.
            if i % 3 == 2 {
                0.0
            } else {
                random.normals(1)[0].abs()
            }
        })
        .collect();
    let weights = cast::<T::Real>(&weights);
    let zeros = cast::<T::Real>(&[0.0; 32]);
    for (loss, queue) in [
        (Rrd::default().into(), Some(70)),
        (InfoNce::default().into(), Some(70)),
        (InfoNce::default().into(), None),
        (relata::Loss::from(KdKl::default()), None),
    ] {
        let shapes = Shapes {
            queue,
            ..Shapes::new(32, 6, 6)
        };
        let input = Input::normal(5, shapes);
        let inputs = input.inputs::<T>(&input.problem(loss));
        for weights in [&weights, &zeros] {
            let problem = Problem::new(loss, shapes.with_row_weights()).expect("weights");
            let batch = inputs.batch().with_row_weights(weights);
            check(&format!("{loss} with weights"), &problem, batch);
        }
    }
    let logits = Input::normal(6, Shapes::new(32, 20, 20));
    let logits = cast::<T>(&logits.student);
    let classes: Vec<u32> = (0..96).map(|i| (i * 7 + i / 3) % 20).collect();
    let log_probabilities = cast::<T::Real>(&[-1.5; 96]);
    let top_k = TopK::new(&classes, &log_probabilities, [32, 3]).expect("lists");
    let batch = Batch::of_top_k(Rows::new(&logits, [32, 20]).expect("rows"), top_k);
    for batch in [batch, batch.with_row_weights(&weights)] {
        let problem = KdKl::default().problem(batch.shapes()).expect("lists");
        check("lists", &problem, batch);
    }
}

#[test]
fn weights_and_lists_are_those_of_all_ranks() {
    with_rows_options::<f32>(|label, problem, batch| {
        // All weights are 0: there is no gradient to compare by.
        if problem
            .evaluate(&Cpu, batch)
            .expect("a batch")
            .gradient_norm()
            > 0.0
        {
            assert_ranks_agree(label, &Cpu, problem, batch, Bits::Same, &WORLDS);
        } else {
            let deal = [5, 1, 0, 26];
            let family = problem.spec().family;
            for evaluation in run(4, |mut rank| {
                let own = Dealt::new(&batch, &deal, rank.rank(), &family);
                let mut global = Global::new(&Cpu, &mut rank);
                let evaluation = global.evaluate(own.batch(&batch), |shapes| on(problem, shapes));
                evaluation.expect("weights of 0")
            }) {
                assert_eq!(
                    (evaluation.loss, evaluation.gradient_norm()),
                    (0.0, 0.0),
                    "{label}"
                );
            }
        }
    });
    with_rows_options::<f64>(|label, problem, batch| {
        if problem
            .evaluate(&Cpu, batch)
            .expect("a batch")
            .gradient_norm()
            > 0.0
        {
            assert_ranks_agree(label, &Cpu, problem, batch, Bits::Same, &WORLDS);
            assert_ranks_agree(label, &Reference, problem, batch, Bits::Same, &WORLDS);
        }
    });
}

#[cfg(feature = "emulator")]
#[test]
fn the_emulator_agrees() {
    let device = relata::Emulator::new();
    let is_picked = |problem: &Problem| {
        [
            "gram",
            "rkd-angle",
            "clip",
            "siglip",
            "sup-con",
            "rrd",
            "info-nce",
            "kd-kl",
        ]
        .contains(&problem.loss().name())
    };
    let bits = |problem: &Problem| match problem.spec().family {
        // How the keys are cut depends on the number of rows.
        Family::Contrastive(_) if has_own_rows(problem) => Bits::Within(1e-5, 1e-5),
        // How a row is cut depends on where it lies in memory.
        Family::Logits(_) => Bits::Within(1e-6, 1e-6),
        _ => Bits::Same,
    };
    let mut seen = Vec::new();
    for (label, problem, input) in inputs().filter(|(_, problem, _)| is_picked(problem)) {
        // One of each loss, with a queue and without.
        let kind = (problem.loss().name(), problem.shapes().queue);
        if seen.contains(&kind) {
            continue;
        }
        seen.push(kind);
        let inputs = input.inputs::<f32>(&problem);
        assert_ranks_agree(
            &label,
            &device,
            &problem,
            inputs.batch(),
            bits(&problem),
            &WORLDS,
        );
        let inputs = input.inputs::<f16>(&problem);
        assert_ranks_agree(
            &label,
            &device,
            &problem,
            inputs.batch(),
            bits(&problem),
            &WORLDS,
        );
    }
    with_rows_options::<f32>(|label, problem, batch| {
        if problem
            .evaluate(&Cpu, batch)
            .expect("a batch")
            .gradient_norm()
            > 0.0
        {
            assert_ranks_agree(label, &device, problem, batch, bits(problem), &WORLDS);
        }
    });
}
