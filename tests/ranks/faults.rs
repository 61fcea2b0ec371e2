//! A rank that fails, leaves or disagrees: one error, the same on every rank, and nobody hangs.

use std::time::Duration;

use relata::ranks::{Communicator, Gathered, Global, InProcess};
use relata::{
    Bank, Batch, Clip, Cpu, Crd, Device, Element, Error, Gram, InfoNce, KdKl, Loss, Problem, Queue,
    Result, Rows, Rrd, SupCon, TopK,
};

use super::support::{run, run_any};

const DIM: usize = 4;
const WORLD: usize = 3;

fn numbers(rows: usize) -> Vec<f32> {
    (0..rows * DIM).map(|i| (i as f32 * 0.7).sin()).collect()
}

fn evaluate<C: Communicator, T: Element>(
    rank: &mut C,
    loss: impl Into<Loss>,
    student: &[T],
    teacher: &[T],
    dim: usize,
) -> Result<f64>
where
    Cpu: Device<T>,
{
    let loss = loss.into();
    let rows_of = |all| Rows::new(all, [student.len() / dim, dim]);
    let batch = Batch::new(rows_of(student)?, rows_of(teacher)?);
    let evaluation = Global::new(&Cpu, rank).evaluate(batch, |shapes| Problem::new(loss, shapes));
    evaluation.map(|evaluation| evaluation.loss)
}

/// What every rank but the odd one does.
fn usual(rank: &mut InProcess) -> Result<f64> {
    evaluate(rank, Gram::default(), &numbers(3), &numbers(3), DIM)
}

/// The error of every rank, where rank 1 does `odd`. It is the same on all, and they go on afterwards.
#[track_caller]
fn error_of(odd: impl Fn(&mut InProcess) -> Result<f64> + Sync) -> Error {
    error_of_either(usual, odd)
}

#[track_caller]
fn error_of_either(
    usual: impl Fn(&mut InProcess) -> Result<f64> + Sync,
    odd: impl Fn(&mut InProcess) -> Result<f64> + Sync,
) -> Error {
    let mut errors = run(WORLD, |mut rank| {
        let result = if rank.rank() == 1 {
            odd(&mut rank)
        } else {
            usual(&mut rank)
        };
        let after = self::usual(&mut rank);
        assert!(after.is_ok(), "the next evaluation: {after:?}");
        result.expect_err("one rank is at odds")
    });
    let first = errors.swap_remove(0);
    for error in errors {
        // A NaN in an error is not equal to itself.
        assert_eq!(format!("{error:?}"), format!("{first:?}"));
    }
    first
}

#[track_caller]
fn assert_differs(error: Error, argument: &str, expected: &str, got: &str) {
    let want =
        format!("{argument}: expected {expected} on all ranks as on rank 0, got {got} on rank 1");
    assert_eq!(error.to_string(), want);
    assert!(matches!(error, Error::RankDiffers { rank: 1, .. }));
}

#[test]
fn another_loss_or_parameter() {
    let (three, two) = (numbers(3), numbers(2));
    let error = error_of(|rank| evaluate(rank, InfoNce::default(), &three, &three, DIM));
    assert_differs(error, "loss", "gram", "info-nce");
    // A loss of own rows sends other data.
    let error = error_of(|rank| evaluate(rank, KdKl::default(), &two, &two, DIM));
    assert_differs(error, "loss", "gram", "kd-kl");
    let error = error_of(|rank| evaluate(rank, Gram { clamp: true }, &three, &three, DIM));
    assert_differs(
        error,
        "parameters",
        "clamp: Flag(false)",
        "clamp: Flag(true)",
    );
    let error = error_of(|rank| {
        let rows = Rows::new(&three, [3, DIM])?;
        let problem = |shapes| Ok(Problem::new(Gram::default(), shapes)?.with_upstream(3.0));
        let evaluation = Global::new(&Cpu, rank).evaluate(Batch::new(rows, rows), problem)?;
        Ok(evaluation.loss)
    });
    assert_differs(error, "upstream", "1", "3");
    let error = error_of(|rank| {
        let rows = Rows::new(&three, [3, DIM])?;
        let problem = |shapes| Problem::new(Gram::default(), shapes)?.with_groups(9);
        let evaluation = Global::new(&Cpu, rank).evaluate(Batch::new(rows, rows), problem)?;
        Ok(evaluation.loss)
    });
    assert_differs(error, "groups", "1", "9");
}

#[test]
fn another_width_or_type() {
    let three = numbers(3);
    let error = error_of(|rank| evaluate(rank, Gram::default(), &three, &three, 3));
    assert_differs(error, "student_dim", "4", "3");
    let wide: Vec<f64> = three.iter().map(|&x| x.into()).collect();
    let error = error_of(|rank| evaluate(rank, Gram::default(), &wide, &wide, DIM));
    assert_differs(error, "dtype", "f32", "f64");
    let error = error_of(|rank| {
        let rows = Rows::new(&three, [3, DIM])?;
        let batch = Batch::new(rows, rows).with_labels(&[0, 1, 0]);
        let problem = |shapes| SupCon::default().problem(shapes);
        Ok(Global::new(&Cpu, rank).evaluate(batch, problem)?.loss)
    });
    assert_differs(error, "labels", "no", "yes");
}

#[test]
fn another_queue_or_step() {
    let three = numbers(3);
    let with_queue = |rank: &mut InProcess, past: usize, capacity: usize| {
        let mut queue = Queue::new(capacity, DIM)?;
        queue.enqueue(Rows::new(&numbers(past), [past, DIM])?)?;
        let rows = Rows::new(&three, [3, DIM])?;
        let problem = |shapes| Rrd::default().problem(shapes);
        let mut global = Global::new(&Cpu, rank);
        let before = queue.to_vec();
        let evaluation = global.evaluate_with_queue(rows, rows, &mut queue, problem);
        assert_eq!(queue.to_vec(), before);
        Ok(evaluation?.loss)
    };
    let usual = |rank: &mut InProcess| with_queue(rank, 2, 7);
    let error = error_of_either(usual, |rank| with_queue(rank, 3, 7));
    let keys = |len, slot| format!("{len} of 7 normalised keys of 4, the next in slot {slot}");
    assert_differs(error, "queue", &keys(2, 2), &keys(3, 3));
    let error = error_of_either(usual, |rank| with_queue(rank, 2, 6));
    assert!(
        matches!(
            error,
            Error::RankDiffers {
                argument: "queue",
                ..
            }
        ),
        "{error}"
    );
    let error = error_of_either(usual, self::usual);
    assert_differs(error, "step", "an evaluation with a queue", "an evaluation");
}

#[test]
fn a_batch_that_does_not_fit() {
    let three = numbers(3);
    let error = error_of(|rank| {
        let student = Rows::new(&three, [3, DIM])?;
        let batch = Batch::new(student, Rows::new(&three[DIM..], [2, DIM])?);
        let problem = |shapes| Gram::default().problem(shapes);
        Ok(Global::new(&Cpu, rank).evaluate(batch, problem)?.loss)
    });
    let why = "teacher rows: expected 3, got 2".to_owned();
    assert_eq!(error, Error::RankFailed { rank: 1, why });
    // A list of the teacher's classes has a row for each of the student's.
    let lists = ([0u32; 4], [-1.0f32; 4]);
    let error = error_of(|rank| {
        let student = Rows::new(&three, [3, DIM])?;
        let mut batch = Batch::new(student, Rows::new(&[], [3, 0])?);
        batch.top_k = Some(TopK::new(&lists.0, &lists.1, [2, 2])?);
        let problem = |shapes| KdKl::default().problem(shapes);
        Ok(Global::new(&Cpu, rank).evaluate(batch, problem)?.loss)
    });
    let why = "teacher rows: expected 3, got 2".to_owned();
    assert_eq!(error, Error::RankFailed { rank: 1, why });
    // Two towers of as many rows, on each rank.
    let clip = |rows: usize| {
        move |rank: &mut InProcess| {
            evaluate(rank, Clip::default(), &numbers(rows), &numbers(rows), DIM)
        }
    };
    let expected = "rows: expected an even number";
    let error = error_of_either(clip(4), clip(3)).to_string();
    assert!(error.starts_with(expected), "{error}");
    // Together they are even.
    let error = error_of_either(clip(3), clip(4)).to_string();
    assert!(error.starts_with(&format!("rank 0: {expected}")), "{error}");
}

#[test]
fn what_is_wrong_on_all_ranks_is_the_error_of_one() {
    let error = error_of_either(
        |rank| evaluate(rank, Rrd::default(), &numbers(3), &numbers(3), DIM),
        |rank| evaluate(rank, Rrd::default(), &numbers(1), &numbers(1), DIM),
    );
    assert!(
        matches!(
            error,
            Error::Missing {
                argument: "queue",
                ..
            }
        ),
        "{error}"
    );
    let kd = KdKl::new(-1.0);
    let usual = |rank: &mut InProcess| evaluate(rank, kd, &numbers(3), &numbers(3), DIM);
    let error = error_of_either(usual, usual);
    assert!(matches!(error, Error::Parameter { .. }), "{error}");
}

#[test]
fn losses_of_a_memory_bank_are_refused() {
    let three = numbers(3);
    for error in run(WORLD, |mut rank| {
        let bank = Bank::from_rows(Rows::new(&three, [3, DIM])?)?;
        let rows = Rows::new(&three, [3, DIM])?;
        let batch = Batch::of_student(rows).with_bank(&bank, &[0, 1, 1, 2, 2, 0]);
        let problem = |shapes| Crd::default().problem(shapes);
        Global::new(&Cpu, &mut rank).evaluate(batch, problem)
    }) {
        let refused = Error::Unexpected {
            argument: "ranks",
            loss: "crd",
        };
        assert_eq!(error.expect_err("a bank"), refused);
    }
}

/// The checked mode finds a NaN: of rows that all ranks have, every rank does, by its place among all
/// rows; of its own rows, one does.
#[test]
fn the_checked_mode_stops_all_ranks() {
    let checked = |rank: &mut InProcess, loss: Loss, nan: bool| {
        let mut student = numbers(3);
        if nan {
            student[DIM + 2] = f32::NAN;
        }
        let teacher = numbers(3);
        let batch = Batch::new(
            Rows::new(&student, [3, DIM])?,
            Rows::new(&teacher, [3, DIM])?,
        );
        let problem = |shapes| Ok(Problem::new(loss, shapes)?.with_checked(true));
        Ok(Global::new(&Cpu, rank).evaluate(batch, problem)?.loss)
    };
    let error = |loss: Loss| {
        error_of_either(
            |rank| checked(rank, loss, false),
            |rank| checked(rank, loss, true),
        )
    };
    let found = error(Gram::default().into());
    assert!(
        matches!(
            found,
            Error::NotFinite {
                row: 4,
                column: 2,
                ..
            }
        ),
        "{found}"
    );
    let found = error(KdKl::default().into());
    assert!(
        matches!(&found, Error::RankFailed { rank: 1, why } if why.contains("row 1")),
        "{found}"
    );
}

/// The keys have entered when one rank finds that its student is not finite.
#[test]
fn an_error_after_the_keys_have_entered_takes_them_out_again() {
    let first = numbers(2);
    for (error, before, after) in run(WORLD, |mut rank| {
        let mut queue = Queue::new(4, DIM).expect("a queue");
        let keys = Rows::new(&first, [2, DIM]).expect("rows");
        queue.enqueue(keys).expect("finite keys");
        let before = (queue.to_vec(), queue.state().next);
        let mut student = numbers(3);
        if rank.rank() == 1 {
            student[DIM] = f32::INFINITY;
        }
        let teacher = numbers(3);
        let rows_of = |all| Rows::new(all, [3, DIM]).expect("rows");
        let mut global = Global::new(&Cpu, &mut rank);
        let problem = |shapes| Ok(Rrd::default().problem(shapes)?.with_checked(true));
        let (student, teacher) = (rows_of(&student), rows_of(&teacher));
        let evaluation = global.evaluate_with_queue(student, teacher, &mut queue, problem);
        let after = (queue.to_vec(), queue.state().next);
        (evaluation.expect_err("an infinity"), before, after)
    }) {
        assert!(
            matches!(&error, Error::RankFailed { rank: 1, why } if why.contains("row 1")),
            "{error}"
        );
        assert_eq!(after, before);
    }
}

/// The last one to come leaves at once; those that have waited for it have what it gave.
#[test]
fn a_rank_may_leave_after_its_last_exchange() {
    for _ in 0..200 {
        let gathered = run(WORLD, |mut rank| {
            if rank.rank() == 2 {
                std::thread::yield_now();
            }
            let own = [rank.rank() as u8];
            rank.all_gather(&own)
        });
        for result in gathered {
            assert_eq!(result, Ok(Gathered::new([[0], [1], [2]])));
        }
    }
}

/// Every evaluation has three exchanges. A rank leaves before one of them, by a return or a panic.
#[test]
fn a_rank_that_leaves() {
    for exchanges in 0..3 {
        for panics in [false, true] {
            for loss in [Loss::from(Gram::default()), KdKl::default().into()] {
                let results = run_any(WORLD, |mut rank| {
                    let three = numbers(3);
                    if rank.rank() != 2 {
                        let result = evaluate(&mut rank, loss, &three, &three, DIM);
                        // And no later exchange waits.
                        return (result, evaluate(&mut rank, loss, &three, &three, DIM));
                    }
                    let mut rank = Quits {
                        inner: Some(rank),
                        exchanges,
                        panics,
                    };
                    let result = evaluate(&mut rank, loss, &three, &three, DIM);
                    (result.clone(), result)
                });
                assert_eq!(results[2].is_none(), panics);
                for (first, second) in results.into_iter().take(2).flatten() {
                    assert_eq!(
                        first,
                        Err(Error::RankLeft { rank: 2 }),
                        "{loss} {exchanges}"
                    );
                    assert_eq!(second, Err(Error::RankLeft { rank: 2 }));
                }
            }
        }
    }
}

/// A rank that leaves after so many exchanges.
struct Quits {
    inner: Option<InProcess>,
    exchanges: usize,
    panics: bool,
}

impl Communicator for Quits {
    fn rank(&self) -> usize {
        2
    }

    fn world(&self) -> usize {
        WORLD
    }

    fn all_gather(&mut self, bytes: &[u8]) -> Result<Gathered> {
        if self.exchanges == 0 {
            assert!(!self.panics, "a panic that a test asks for");
            self.inner = None;
        }
        self.exchanges = self.exchanges.saturating_sub(1);
        let why = || Error::Exchange {
            why: "left".to_owned(),
        };
        self.inner.as_mut().ok_or_else(why)?.all_gather(bytes)
    }
}

#[test]
fn a_rank_that_is_late() {
    let limit = Duration::from_millis(50);
    let results = run(WORLD, |rank| {
        let mut rank = rank.with_limit(limit);
        if rank.rank() == 0 {
            std::thread::sleep(Duration::from_millis(400));
        }
        usual(&mut rank)
    });
    for result in results {
        assert_eq!(result, Err(Error::RankLate { rank: 0, limit }));
    }
}

/// What it makes of the bytes of all ranks.
type Damage = fn(Vec<Vec<u8>>) -> Vec<Vec<u8>>;

/// A communicator that gives other bytes than it was given.
struct Damages<C> {
    inner: C,
    damage: Damage,
}

impl<C: Communicator> Communicator for Damages<C> {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn world(&self) -> usize {
        self.inner.world()
    }

    fn all_gather(&mut self, bytes: &[u8]) -> Result<Gathered> {
        let gathered = self.inner.all_gather(bytes)?;
        Ok(Gathered::new((self.damage)(
            gathered.iter().map(<[u8]>::to_vec).collect(),
        )))
    }
}

#[test]
fn an_engine_that_gives_other_bytes() {
    let damages: [Damage; 6] = [
        |_| Vec::new(),
        |ranks| ranks[1..].to_vec(),
        |ranks| ranks.iter().map(|_| Vec::new()).collect(),
        |ranks| {
            ranks
                .iter()
                .map(|bytes| bytes[..bytes.len() - 1].to_vec())
                .collect()
        },
        |ranks| {
            ranks
                .iter()
                .map(|bytes| [&[9], &bytes[1..]].concat())
                .collect()
        },
        |ranks| {
            ranks
                .iter()
                .map(|bytes| [&bytes[..2], &[255; 4], &bytes[6..]].concat())
                .collect()
        },
    ];
    for damage in damages {
        for result in run(WORLD, |inner| {
            let mut rank = Damages { inner, damage };
            evaluate(&mut rank, KdKl::default(), &numbers(3), &numbers(3), DIM)
        }) {
            assert!(matches!(result, Err(Error::Exchange { .. })), "{result:?}");
        }
    }
}

#[test]
fn gathered_bytes_lie_as_their_counts_say() {
    let gathered = Gathered::from_counts(vec![1, 2, 3], &[2, 0, 1]).expect("three bytes");
    assert_eq!(gathered, Gathered::new([&[1, 2][..], &[], &[3]]));
    assert_eq!(
        gathered.iter().collect::<Vec<_>>(),
        [&[1, 2][..], &[], &[3]]
    );
    assert_eq!((gathered.world(), gathered.of_rank(3)), (3, None));
    assert_eq!(Gathered::from_counts(vec![1], &[2]), None);
    assert_eq!(Gathered::from_counts(vec![1], &[usize::MAX, 2]), None);
    assert!(matches!(
        InProcess::ranks(0),
        Err(Error::Empty { argument: "ranks" })
    ));
}
