//! Steps with a queue: the losses of one rank, and queues that stay equal.

use half::f16;
use relata::ranks::{Communicator, Global};
use relata::{
    Cpu, Device, Element, Enqueue, Evaluation, InfoNce, Loss, Problem, Queue, Real, Rows, Rrd,
};

use super::support::run;
use crate::common::compare::{assert_loss, assert_same_bits, relative_error};
use crate::common::{Random, cast};

const DIM: usize = 12;

/// So many rows of each rank in each step; the ring of 50 wraps, and in the last step more rows enter
/// than it holds.
const STEPS: [[usize; 4]; 5] = [
    [5, 1, 0, 26],
    [0, 0, 3, 0],
    [8, 8, 8, 8],
    [1, 0, 0, 30],
    [20, 20, 20, 1],
];

fn ring<R: Real>(loss: &Loss) -> Queue<R> {
    let queue = Queue::new(50, DIM).expect("a queue");
    let mut queue = queue.with_normalize(loss.spec().normalize);
    let first = Random::new(3).normals(4 * DIM);
    let first = cast::<R>(&first);
    queue
        .enqueue(Rows::new(&first, [4, DIM]).expect("rows"))
        .expect("keys");
    queue
}

/// The rows of a step.
fn rows<T: Element>(step: usize, of: u64) -> Vec<T> {
    let count: usize = STEPS[step].iter().sum();
    cast(&Random::new(10 * step as u64 + of).normals(count * DIM))
}

type Steps<T, D> = (
    Vec<Evaluation<<D as Device<T>>::Gradient>>,
    Queue<<T as Element>::Real>,
);

/// All steps on so many ranks. Those of `STEPS` are dealt to 4, and to fewer by turns.
fn steps<T: Element, D: Device<T> + Sync>(device: &D, loss: Loss, world: usize) -> Vec<Steps<T, D>>
where
    D::Gradient: Send,
{
    run(world, |mut rank| {
        let mut queue = ring::<T::Real>(&loss);
        let mut evaluations = Vec::new();
        for step in 0..STEPS.len() {
            let (student, teacher) = (rows::<T>(step, 1), rows::<T>(step, 2));
            let own = own(step, world, rank.rank());
            let [student, teacher] = [&student, &teacher].map(|all| {
                let own_rows = &all[own.start * DIM..own.end * DIM];
                Rows::new(own_rows, [own.len(), DIM]).expect("rows")
            });
            let mut global = Global::new(device, &mut rank);
            let problem = |shapes| Problem::new(loss, shapes);
            let evaluation = global.evaluate_with_queue(student, teacher, &mut queue, problem);
            evaluations.push(evaluation.unwrap_or_else(|error| panic!("{loss}: {error}")));
            if loss.spec().enqueue == Enqueue::Never {
                global.enqueue(teacher, &mut queue).expect("finite keys");
            }
        }
        (evaluations, queue)
    })
}

/// The rows of a rank in a step: ranks of a smaller world have those of the ranks beyond it.
fn own(step: usize, world: usize, rank: usize) -> std::ops::Range<usize> {
    let deal = STEPS[step];
    let start = deal[..rank].iter().sum();
    let end = if rank + 1 == world { 4 } else { rank + 1 };
    start..deal[..end].iter().sum()
}

fn losses() -> Vec<Loss> {
    let mut losses = Vec::new();
    for enqueue in [Enqueue::Before, Enqueue::After, Enqueue::Never] {
        for normalize in [true, false] {
            let rrd = Rrd {
                enqueue,
                normalize,
                ..Rrd::default()
            };
            let info_nce = InfoNce {
                enqueue,
                normalize,
                ..InfoNce::default()
            };
            losses.extend([Loss::from(rrd), info_nce.into()]);
        }
    }
    losses
}

fn assert_steps_agree<T: Element, D: Device<T> + Sync>(device: &D, loss: Loss, tolerance: f64)
where
    D::Gradient: Send,
{
    // What one rank does without ranks.
    let mut queue = ring::<T::Real>(&loss);
    let mut alone = Vec::new();
    for step in 0..STEPS.len() {
        let (student, teacher) = (rows::<T>(step, 1), rows::<T>(step, 2));
        let rows_of = |all| Rows::new(all, [STEPS[step].iter().sum(), DIM]).expect("rows");
        let (student, teacher) = (rows_of(&student), rows_of(&teacher));
        let evaluation = loss.evaluate_with_queue(device, student, teacher, &mut queue);
        alone.push(evaluation.expect("an evaluation"));
        if loss.spec().enqueue == Enqueue::Never {
            queue.enqueue(teacher).expect("finite keys");
        }
    }
    let one = steps::<T, D>(device, loss, 1).swap_remove(0).0;
    for world in 1..=4 {
        for (rank, (evaluations, of_rank)) in steps::<T, D>(device, loss, world).iter().enumerate()
        {
            let label = format!("{loss:?} in {} on rank {rank} of {world}", T::DTYPE);
            assert_same_bits(&label, of_rank.keys(), queue.keys());
            assert_eq!(of_rank.state().next, queue.state().next, "{label}");
            for (step, evaluation) in evaluations.iter().enumerate() {
                let label = format!("{label}, step {step}");
                let own = own(step, world, rank);
                let own = own.start * DIM..own.end * DIM;
                assert_loss(&label, evaluation.loss, alone[step].loss, tolerance);
                let want = alone[step].gradient[own.clone()].iter();
                let want: Vec<f64> = want.map(|g| g.to_f64()).collect();
                let error = relative_error(&evaluation.gradient, &want);
                assert!(error < 1e-5, "{label}: {error:e}");
                if device.name() == "cpu" {
                    assert_same_bits(&label, &[evaluation.loss], &[one[step].loss]);
                    assert_same_bits(&label, &evaluation.gradient, &one[step].gradient[own]);
                }
            }
        }
    }
}

#[test]
fn steps_are_those_of_one_rank_and_queues_stay_equal() {
    for loss in losses() {
        // The mean of the rows' losses is that of one rank, but for keys that weigh nothing.
        assert_steps_agree::<f32, _>(&Cpu, loss, 1e-6);
        assert_steps_agree::<f16, _>(&Cpu, loss, 1e-6);
        assert_steps_agree::<f64, _>(&Cpu, loss, 1e-13);
        assert_steps_agree::<f32, _>(&relata::Reference, loss, 1e-13);
    }
}

#[cfg(feature = "emulator")]
#[test]
fn the_emulator_has_the_steps_of_one_rank() {
    for loss in [Loss::from(Rrd::default()), InfoNce::default().into()] {
        assert_steps_agree::<f32, _>(&relata::Emulator::new(), loss, 1e-5);
    }
}

/// One rank's teacher is not finite: the loss is NaN everywhere, and no queue has changed.
#[test]
fn a_teacher_that_is_not_finite_enters_no_queue() {
    for loss in losses() {
        let results = run(3, |mut rank| {
            let mut queue = ring::<f32>(&loss);
            let student = [0.5f32; 2 * DIM];
            let mut teacher = [0.25f32; 2 * DIM];
            if rank.rank() == 1 {
                teacher[DIM + 3] = f32::INFINITY;
            }
            let rows_of = |all| Rows::new(all, [2, DIM]).expect("rows");
            let mut global = Global::new(&Cpu, &mut rank);
            let problem = |shapes| Problem::new(loss, shapes);
            let (student, teacher) = (rows_of(&student), rows_of(&teacher));
            let evaluation = global.evaluate_with_queue(student, teacher, &mut queue, problem);
            let evaluation = evaluation.expect("NaN is no error");
            let enqueued = global.enqueue(teacher, &mut queue);
            (evaluation, enqueued, queue)
        });
        for (evaluation, enqueued, queue) in results {
            assert!(evaluation.loss.is_nan(), "{loss}");
            assert!(
                evaluation.terms.iter().all(|(_, term)| term.is_nan()),
                "{loss}"
            );
            assert!(evaluation.gradient.iter().all(|g| g.is_nan()), "{loss}");
            assert_eq!(queue.keys(), ring::<f32>(&loss).keys(), "{loss}");
            // Rows are counted over all ranks.
            let error = enqueued.expect_err("a key that is not finite").to_string();
            assert!(error.contains("row 3, column 3"), "{error}");
        }
    }
}
