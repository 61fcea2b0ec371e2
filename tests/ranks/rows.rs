//! The losses of rows, the bytes that ranks send, and what is not finite.

use relata::ranks::{Communicator, Global};
use relata::{Batch, Cpu, Gram, InfoNce, KdKl, Loss, Problem, Rkd, Rows, Rrd, Shapes};

use super::support::{Counted, Dealt, run};
use crate::common::Input;
use crate::common::compare::assert_same_bits;

const DEAL: [usize; 4] = [5, 1, 0, 26];

/// `loss` on 32 rows of 6 elements, in f32.
fn inputs(loss: Loss, queue: Option<usize>) -> crate::common::cases::Inputs<f32> {
    let shapes = Shapes {
        queue,
        ..Shapes::new(32, 6, 6)
    };
    let input = Input::normal(8, shapes);
    input.inputs(&input.problem(loss))
}

#[test]
fn each_rank_gets_the_losses_of_its_rows() {
    for (loss, queue) in [
        (Loss::from(KdKl::default()), None),
        (Rrd::default().into(), Some(40)),
        (InfoNce::default().into(), None),
    ] {
        let inputs = inputs(loss, queue);
        let all = inputs.batch();
        let alone = inputs.problem.evaluate_rows(&Cpu, all).expect("a batch");
        let results = run(4, |mut rank| {
            let own = Dealt::new(&all, &DEAL, rank.rank(), &loss.spec().family);
            let mut global = Global::new(&Cpu, &mut rank);
            global.evaluate_rows(own.batch(&all), |shapes| Problem::new(loss, shapes))
        });
        let of_ranks = results
            .into_iter()
            .map(|of| of.expect("a batch").row_losses);
        let of_ranks: Vec<_> = of_ranks.inspect(|of| assert!(of.len() <= 26)).collect();
        assert_same_bits(loss.name(), &of_ranks.concat(), &alone.row_losses);
    }
}

/// The table in the documentation of `ranks`.
#[test]
fn ranks_send_as_many_bytes_as_documented() {
    for (loss, queue, of_row) in [
        (Loss::from(KdKl::default()), None, 8),
        (Rrd::default().into(), Some(40), 8),
        (InfoNce::default().into(), Some(40), 8),
        (InfoNce::default().into(), None, 2 * 6 * 4),
        (Gram::default().into(), None, 2 * 6 * 4),
        (Rkd::default().into(), None, 2 * 6 * 4),
    ] {
        let inputs = inputs(loss, queue);
        let all = inputs.batch();
        let terms = if queue.is_some() {
            8 * loss.spec().terms.len()
        } else {
            0
        };
        let sent = |deal: &[usize]| {
            run(deal.len(), |rank| {
                let own = Dealt::new(&all, deal, rank.rank(), &loss.spec().family);
                let mut rank = Counted::new(rank);
                let mut global = Global::new(&Cpu, &mut rank);
                let problem = |shapes| Problem::new(loss, shapes);
                global.evaluate(own.batch(&all), problem).expect("a batch");
                assert_eq!(rank.exchanges, 3, "{loss}");
                rank.bytes
            })
        };
        let bytes = sent(&DEAL);
        // The rank without rows sends what describes the problem, and its terms.
        let description = bytes[2] - terms;
        assert!(description < 400, "{loss}: {description}");
        for (rank, rows) in DEAL.into_iter().enumerate() {
            assert_eq!(bytes[rank], description + terms + rows * of_row, "{loss}");
        }
    }
}

/// A NaN on one rank does what it does in a batch.
#[test]
fn a_nan_reaches_the_loss_of_all_ranks() {
    for (loss, queue) in [
        (Loss::from(KdKl::default()), None),
        (Rrd::default().into(), Some(40)),
        (InfoNce::default().into(), Some(40)),
        (InfoNce::default().into(), None),
        (Gram::default().into(), None),
    ] {
        let mut inputs = inputs(loss, queue);
        inputs.student[3 * 6 + 1] = f32::NAN;
        let all = inputs.batch();
        let alone = inputs.problem.evaluate(&Cpu, all).expect("a batch");
        for (rank, got) in run(4, |mut rank| {
            let own = Dealt::new(&all, &DEAL, rank.rank(), &loss.spec().family);
            let mut global = Global::new(&Cpu, &mut rank);
            let evaluation = global.evaluate(own.batch(&all), |shapes| Problem::new(loss, shapes));
            evaluation.expect("NaN is no error")
        })
        .into_iter()
        .enumerate()
        {
            let own = Dealt::new(&all, &DEAL, rank, &loss.spec().family);
            assert!(got.loss.is_nan(), "{loss}");
            assert_same_bits(loss.name(), &got.gradient, &own.own(&alone.gradient, 6));
        }
    }
}

/// A trainer that averages gradients over ranks passes `upstream = world`.
#[test]
fn an_averaging_trainer_gets_the_gradient_of_the_global_loss() {
    // x = w · input: the gradient of w is Σ over rows of ⟨∂L/∂x, input⟩.
    let inputs = inputs(Gram::default().into(), None);
    let all = inputs.batch();
    let of_weight = |gradient: &[f32], input: &[f32]| -> f64 {
        let products = gradient.iter().zip(input).map(|(g, x)| f64::from(g * x));
        products.sum()
    };
    let alone = inputs.problem.evaluate(&Cpu, all).expect("a batch");
    let rkd = Rkd::CLASSIFICATION;
    let alone_rkd = rkd
        .evaluate(&Cpu, all.student, all.teacher)
        .expect("a batch");
    for (want, loss) in [
        (alone, Loss::from(Gram::default())),
        (alone_rkd, rkd.into()),
    ] {
        // Anything but the rows themselves: along those the gradient of cosines is 0.
        let input: Vec<f32> = (0..32 * 6).map(|i| (i as f32).sin()).collect();
        let want = of_weight(&want.gradient, &input);
        assert!(want.abs() > 1e-6);
        let of_ranks = run(4, |mut rank| {
            let own = Dealt::new(&all, &DEAL, rank.rank(), &loss.spec().family);
            let upstream = rank.world() as f64;
            let mut global = Global::new(&Cpu, &mut rank);
            let evaluation = global.evaluate(own.batch(&all), |shapes| {
                Ok(Problem::new(loss, shapes)?.with_upstream(upstream))
            });
            of_weight(&evaluation.expect("a batch").gradient, &own.own(&input, 6))
        });
        let average = of_ranks.iter().sum::<f64>() / 4.0;
        assert!(
            (average - want).abs() < 1e-5 * want.abs(),
            "{average} {want}"
        );
    }
}

/// No rank has rows: the error is that of a batch without rows.
#[test]
fn rows_are_needed_on_some_rank() {
    for error in run(2, |mut rank| {
        let rows = Rows::<f32>::new(&[], [0, 6]).expect("no rows");
        let mut global = Global::new(&Cpu, &mut rank);
        let evaluation = global.evaluate(Batch::new(rows, rows), |shapes| {
            Gram::default().problem(shapes)
        });
        evaluation.expect_err("no rows")
    }) {
        assert_eq!(error, relata::Error::Empty { argument: "rows" });
    }
}
