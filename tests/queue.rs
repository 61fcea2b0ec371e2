//! The queue against a simple model, and the changes that a loss makes to it.

mod common;

use std::collections::VecDeque;

use common::compare::{assert_same_bits, assert_zero, norm};
use common::{Random, cast, for_every_dtype};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use relata::{
    Cpu, Element, Enqueue, Error, Evaluation, InfoNce, Loss, Queue, QueueUse, Real, Reference,
    Rows, Rrd,
};

fn rows<T: Element>(data: &[T], dim: usize) -> Rows<'_, T> {
    Rows::new(data, [data.len() / dim, dim]).expect("whole rows")
}

/// Keys in a `VecDeque`, normalised by the formula.
struct Model {
    keys: VecDeque<Vec<f64>>,
    capacity: usize,
}

impl Model {
    fn enqueue(&mut self, batch: &[f64], dim: usize) {
        for key in batch.chunks(dim) {
            let norm = norm(key);
            let unit = if norm == 0.0 { 1.0 } else { norm };
            self.keys.push_back(key.iter().map(|x| x / unit).collect());
            if self.keys.len() > self.capacity {
                self.keys.pop_front();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        rng_seed: RngSeed::Fixed(240_712_073),
        failure_persistence: None,
        ..ProptestConfig::with_cases(200)
    })]

    #[test]
    fn queue_is_first_in_first_out(
        capacity in 1..12usize,
        dim in 1..5usize,
        batches in prop::collection::vec(0..30usize, 0..12),
        seed: u64,
    ) {
        let mut random = Random::new(seed);
        let mut queue = Queue::<f64>::new(capacity, dim).expect("a queue");
        let mut model = Model { keys: VecDeque::new(), capacity };
        for batch in batches {
            let mut keys = random.normals(batch * dim);
            if batch > 3 {
                keys[dim..2 * dim].fill(0.0);
            }
            queue.enqueue(rows(&keys, dim)).expect("finite keys");
            model.enqueue(&keys, dim);

            prop_assert_eq!(queue.len(), model.keys.len());
            prop_assert_eq!(queue.is_empty(), model.keys.is_empty());
            prop_assert_eq!((queue.capacity(), queue.dim()), (capacity, dim));
            let want: Vec<f64> = model.keys.iter().flatten().copied().collect();
            let got = queue.to_vec();
            prop_assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(&want) {
                prop_assert!((got - want).abs() <= 1e-15, "{got} {want}");
            }
            // The slots hold the same keys, in some rotation.
            let doubled = [queue.keys(), queue.keys()].concat();
            let found = got.is_empty() || doubled.windows(got.len()).step_by(dim).any(|w| w == got);
            prop_assert!(found);
        }
    }

    /// Saved and restored: the same keys, of the same age, so that the next ones push out the same.
    #[test]
    fn queue_survives_a_round_trip(capacity in 1..9usize, first in 0..20usize, then in 0..20usize, seed: u64) {
        let dim = 3;
        let mut random = Random::new(seed);
        let mut queue = Queue::<f32>::new(capacity, dim).expect("a queue");
        queue.enqueue(rows(&cast::<f32>(&random.normals(first * dim)), dim)).expect("finite keys");

        let saved = queue.to_vec();
        // They are normalised; normalising them again may round.
        let mut restored = Queue::<f32>::new(capacity, dim).expect("a queue").with_normalize(false);
        restored.enqueue(rows(&saved, dim)).expect("finite keys");
        let mut restored = restored.with_normalize(true);
        assert_same_bits("restored", &restored.to_vec(), &saved);

        let next = cast::<f32>(&random.normals(then * dim));
        queue.enqueue(rows(&next, dim)).expect("finite keys");
        restored.enqueue(rows(&next, dim)).expect("finite keys");
        assert_same_bits("continued", &restored.to_vec(), &queue.to_vec());
    }
}

#[test]
fn queue_normalises_keys_of_any_length() {
    fn assert_normalises<T: Element>() {
        let mut queue = Queue::<T::Real>::new(4, 5).expect("a queue");
        let mut keys = Random::new(1).normals(20);
        // Squares that overflow in f16 or f32, and squares that vanish in them.
        keys[..5].fill(300.0);
        keys[5..10].fill(6e-5);
        keys[10..15].fill(0.0);
        let elements = cast::<T>(&keys);
        queue.enqueue(rows(&elements, 5)).expect("finite keys");
        for (i, key) in queue.keys().chunks(5).enumerate() {
            let wide: Vec<f64> = key.iter().map(|k| k.to_f64()).collect();
            let norm = norm(&wide);
            let want = if i == 2 { 0.0 } else { 1.0 };
            assert!((norm - want).abs() <= 3e-7, "{}: key {i}: {norm}", T::DTYPE);
        }
        assert_zero("a zero key", &queue.keys()[10..15]);

        let mut raw = Queue::<T::Real>::new(4, 5)
            .expect("a queue")
            .with_normalize(false);
        raw.enqueue(rows(&elements, 5)).expect("finite keys");
        let mut want = vec![T::Real::from_f64(0.0); 20];
        T::widen(&elements, &mut want);
        assert_same_bits("as they come", raw.keys(), &want);
    }
    for_every_dtype!(assert_normalises());
    // Of any size that the type holds.
    let mut queue = Queue::<f64>::new(2, 2).expect("a queue");
    queue
        .enqueue(rows(&[3e300, 4e300, 3e-310, 4e-310], 2))
        .expect("finite keys");
    for key in queue.keys().chunks(2) {
        assert!(
            (key[0] - 0.6).abs() < 1e-12 && (key[1] - 0.8).abs() < 1e-12,
            "{key:?}"
        );
    }
}

/// All that a queue shows.
fn contents<R: Real>(queue: &Queue<R>) -> (Vec<f64>, Vec<f64>, usize) {
    let wide = |keys: &[R]| keys.iter().map(|k| k.to_f64()).collect();
    (wide(&queue.to_vec()), wide(queue.keys()), queue.len())
}

/// Four keys in a queue for `capacity`.
fn filled(capacity: usize) -> Queue<f32> {
    let mut queue = Queue::new(capacity, 3).expect("a queue");
    queue
        .enqueue(rows(&cast::<f32>(&Random::new(9).normals(12)), 3))
        .expect("finite keys");
    queue
}

#[test]
fn queue_refuses_bad_keys_and_stays_as_it_was() {
    for capacity in [3, 4, 10] {
        let mut queue = filled(capacity);
        let before = contents(&queue);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            // Also in a row that a queue of this capacity would not keep.
            for at in [0, 7, 35] {
                let mut keys = vec![0.5; 36];
                keys[at] = bad;
                let error = queue.enqueue(rows(&keys, 3)).expect_err("a bad key");
                let Error::NotFinite {
                    argument,
                    row,
                    column,
                    got,
                } = error
                else {
                    panic!("{error:?}");
                };
                assert_eq!((argument, row, column), ("keys", at / 3, at % 3));
                assert!(got == f64::from(bad) || got.is_nan() && bad.is_nan());
                assert_eq!(contents(&queue), before);
            }
        }
        let error = queue
            .enqueue(rows(&[1.0f32; 8], 4))
            .expect_err("keys of another length");
        let want = Error::Dimension {
            argument: "queue_dim",
            expected: 3,
            got: 4,
        };
        assert_eq!(error, want);
        assert_eq!(contents(&queue), before);
        queue.enqueue(rows(&[0.0f32; 0], 3)).expect("no keys");
        assert_eq!(contents(&queue), before);
        queue.clear();
        assert_eq!(
            (queue.len(), queue.is_empty(), queue.capacity()),
            (0, true, capacity)
        );
        assert!(queue.to_vec().is_empty());
        queue.enqueue(rows(&[0.0f32, 2.0, 0.0], 3)).expect("a key");
        assert_eq!(queue.to_vec(), [0.0, 1.0, 0.0]);
    }
}

/// The losses with a queue, under one method.
#[derive(Clone, Copy, Debug)]
enum Queued {
    Rrd,
    InfoNce,
}

impl Queued {
    fn evaluate(
        self,
        enqueue: Enqueue,
        student: Rows<'_, f32>,
        teacher: Rows<'_, f32>,
        queue: &mut Queue<f32>,
    ) -> relata::Result<Evaluation<f32>> {
        match self {
            Queued::Rrd => {
                let loss = Rrd {
                    enqueue,
                    ..Rrd::default()
                };
                loss.evaluate_with_queue(&Cpu, student, teacher, queue)
            }
            Queued::InfoNce => {
                let loss = InfoNce {
                    enqueue,
                    ..InfoNce::default()
                };
                loss.evaluate_with_queue(&Cpu, student, teacher, queue)
            }
        }
    }
}

const BOTH: [Queued; 2] = [Queued::Rrd, Queued::InfoNce];

#[test]
fn losses_enqueue_before_or_after_or_never() {
    let mut random = Random::new(4);
    for loss in BOTH {
        // A queue that the batch fits in, one that it makes wrap, and one that it fills.
        for capacity in [20, 6, 4] {
            let (x, y) = (
                cast::<f32>(&random.normals(15)),
                cast::<f32>(&random.normals(15)),
            );
            let (student, teacher) = (rows(&x, 3), rows(&y, 3));
            let evaluate = |enqueue, queue: &mut Queue<f32>| {
                loss.evaluate(enqueue, student, teacher, queue)
                    .expect("a valid batch")
            };
            let start = filled(capacity);
            let mut with_batch = start.clone();
            with_batch.enqueue(teacher).expect("finite keys");

            let mut queue = start.clone();
            let with_past = evaluate(Enqueue::Never, &mut queue);
            assert_eq!(contents(&queue), contents(&start));

            let mut queue = start.clone();
            assert_eq!(evaluate(Enqueue::After, &mut queue), with_past);
            assert_eq!(contents(&queue), contents(&with_batch));

            let mut queue = start.clone();
            let with_own = evaluate(Enqueue::Before, &mut queue);
            assert_eq!(contents(&queue), contents(&with_batch));
            assert_eq!(with_own, evaluate(Enqueue::Never, &mut with_batch));
            assert_ne!(
                with_own, with_past,
                "{loss:?}: the own keys make no difference"
            );
        }
        assert_eq!(Rrd::default().enqueue, Enqueue::Before);
        assert_eq!(InfoNce::default().enqueue, Enqueue::After);
    }
}

#[test]
fn losses_take_an_empty_queue_only_if_the_batch_enters_first() {
    for loss in BOTH {
        let (x, y) = (
            [0.5f32, 1.0, 0.0, -1.0, 0.5, 0.25],
            [1.0f32, 0.0, 0.5, 0.5, 1.0, 0.0],
        );
        for enqueue in [Enqueue::After, Enqueue::Never] {
            let mut queue = Queue::new(4, 3).expect("a queue");
            let error = loss.evaluate(enqueue, rows(&x, 3), rows(&y, 3), &mut queue);
            let want = Error::Empty {
                argument: "queue keys",
            };
            assert_eq!(error.expect_err("nothing to compare with"), want);
            assert!(queue.is_empty());
        }
        let mut queue = Queue::new(4, 3).expect("a queue");
        let evaluation = loss.evaluate(Enqueue::Before, rows(&x, 3), rows(&y, 3), &mut queue);
        assert!(evaluation.expect("the batch's own keys").loss.is_finite());
        assert_eq!(queue.len(), 2);
    }
}

#[test]
fn errors_leave_the_queue_as_it_was() {
    let x = cast::<f32>(&Random::new(5).normals(12));
    for loss in BOTH {
        for enqueue in [Enqueue::Before, Enqueue::After, Enqueue::Never] {
            let mut queue = filled(6);
            let before = contents(&queue);
            let mut refused = |student: Rows<'_, f32>, teacher: Rows<'_, f32>| {
                let error = loss.evaluate(enqueue, student, teacher, &mut queue);
                assert_eq!(contents(&queue), before, "{loss:?} {enqueue:?}");
                error.expect_err("a batch that does not fit")
            };
            let fewer = refused(rows(&x, 3), rows(&x[..9], 3));
            let want = Error::Dimension {
                argument: "teacher rows",
                expected: 4,
                got: 3,
            };
            assert_eq!(fewer, want);
            let wider = refused(rows(&x, 3), rows(&x, 4));
            assert!(matches!(
                wider,
                Error::Dimension {
                    argument: "teacher_dim",
                    ..
                }
            ));
            let other = refused(rows(&x, 4), rows(&x, 4));
            let want = Error::Dimension {
                argument: "queue_dim",
                expected: 4,
                got: 3,
            };
            assert_eq!(other, want);
            let none = refused(rows(&[], 3), rows(&[], 3));
            assert_eq!(none, Error::Empty { argument: "rows" });
        }
        // So does a parameter out of range.
        let mut queue = filled(6);
        let before = contents(&queue);
        let rrd = Rrd {
            student_temperature: 0.0,
            ..Rrd::default()
        };
        assert!(
            rrd.evaluate_with_queue(&Reference, rows(&x, 3), rows(&x, 3), &mut queue)
                .is_err()
        );
        let info_nce = InfoNce {
            temperature: f64::NAN,
            ..InfoNce::default()
        };
        let refused = info_nce.evaluate_with_queue(&Cpu, rows(&x, 3), rows(&x, 3), &mut queue);
        assert!(refused.is_err());
        assert_eq!(contents(&queue), before);
    }
}

// A device may refuse a batch after its keys have entered: here because the rows are longer than
// the kernels can count, on a GPU because memory ran out.
#[cfg(feature = "emulator")]
#[test]
fn errors_of_the_device_leave_the_queue_as_it_was() {
    let dim = 65_535 * 128 + 1;
    let batch = vec![7.0f32; dim];
    // The batch finds room in the queue, or it pushes keys out.
    for past in [1, 3] {
        let mut queue = Queue::new(2, dim).expect("a queue").with_normalize(false);
        for key in 0..past {
            let key = vec![key as f32; dim];
            queue.enqueue(rows(&key, dim)).expect("finite keys");
        }
        let before = (queue.to_vec(), queue.keys().to_vec());
        let rrd = Rrd {
            normalize: false,
            ..Rrd::default()
        };
        let error = rrd
            .evaluate_with_queue(
                &relata::Emulator::new(),
                rows(&batch, dim),
                rows(&batch, dim),
                &mut queue,
            )
            .expect_err("too many columns");
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
        // Not printed: millions of numbers.
        assert!(
            before == (queue.to_vec(), queue.keys().to_vec()),
            "{past} keys"
        );
    }
}

// A loss with a use for a queue takes it, with and without the enum; another refuses it.
#[test]
fn loss_enum_evaluates_as_the_loss_itself_does() {
    let mut random = Random::new(9);
    let [x, y] = [(); 2].map(|()| cast::<f32>(&random.normals(15)));
    let (student, teacher) = (rows(&x, 3), rows(&y, 3));
    let start = filled(6);
    for loss in Loss::all() {
        let mut queue = start.clone();
        let with = loss.evaluate_with_queue(&Cpu, student, teacher, &mut queue);
        let without = loss.evaluate(&Cpu, student, teacher);
        match loss.spec().queue {
            QueueUse::Never => {
                let (argument, loss) = ("queue", loss.name());
                assert_eq!(with, Err(Error::Unexpected { argument, loss }));
                assert_eq!(contents(&queue), contents(&start), "{loss}");
                assert!(without.is_ok(), "{loss}");
            }
            QueueUse::Optional => {
                assert_ne!(contents(&queue), contents(&start), "{loss}: it enters");
                assert!(with.is_ok() && without.is_ok(), "{loss}");
            }
            QueueUse::Required => {
                assert_ne!(contents(&queue), contents(&start), "{loss}: it enters");
                assert!(with.is_ok(), "{loss}");
                let missing = matches!(
                    without,
                    Err(Error::Missing {
                        argument: "queue",
                        ..
                    })
                );
                assert!(missing, "{loss}");
            }
        }
    }
    let [mut own, mut queue] = [(); 2].map(|()| start.clone());
    let loss = Rrd::default();
    let want = loss.evaluate_with_queue(&Cpu, student, teacher, &mut own);
    let got = Loss::from(loss).evaluate_with_queue(&Cpu, student, teacher, &mut queue);
    assert_eq!((got, contents(&queue)), (want, contents(&own)));
    let loss = InfoNce::default();
    let got = Loss::from(loss).evaluate(&Cpu, student, teacher);
    assert_eq!(got, loss.evaluate(&Cpu, student, teacher));
}

#[test]
fn queue_stays_as_it_was_if_the_teacher_is_not_finite() {
    let x = cast::<f32>(&Random::new(6).normals(12));
    for loss in BOTH {
        for enqueue in [Enqueue::Before, Enqueue::After, Enqueue::Never] {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut y = cast::<f32>(&Random::new(7).normals(12));
                y[5] = bad;
                let mut queue = filled(6);
                let before = contents(&queue);
                let evaluation = loss
                    .evaluate(enqueue, rows(&x, 3), rows(&y, 3), &mut queue)
                    .expect("a NaN is a result");
                assert!(evaluation.loss.is_nan(), "{loss:?} {enqueue:?}");
                assert_eq!(evaluation.term("kl").is_some(), matches!(loss, Queued::Rrd));
                assert!(evaluation.term("kl").is_none_or(f64::is_nan));
                assert_eq!(evaluation.gradient.len(), x.len());
                assert!(evaluation.gradient.iter().all(|g| g.is_nan()));
                assert_eq!(contents(&queue), before);

                // A bad student does not harm the queue: the keys are the teacher's.
                let (mut bad_x, good_y) = (x.clone(), x.clone());
                bad_x[2] = bad;
                let evaluation = loss
                    .evaluate(enqueue, rows(&bad_x, 3), rows(&good_y, 3), &mut queue)
                    .expect("a NaN is a result");
                assert!(evaluation.loss.is_nan());
                let kept = if enqueue == Enqueue::Never { 4 } else { 6 };
                assert_eq!(queue.len(), kept);
                assert!(queue.to_vec().iter().all(|k| k.is_finite()));
            }
        }
    }
}
