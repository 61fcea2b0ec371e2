//! The queue against a simple model, and the changes that a loss makes to it.

mod common;

use std::collections::VecDeque;

use common::compare::{assert_same_bits, assert_zero, norm};
use common::{Random, cast, for_every_dtype};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use relata::{
    Cpu, Device, Element, Enqueue, Error, Evaluation, InfoNce, Loss, Queue, QueueState, QueueUse,
    Real, Reference, Rows, Rrd,
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
}

/// A queue from nothing but the numbers that a checkpoint holds.
fn through_a_checkpoint<R: Real>(queue: &Queue<R>) -> Queue<R> {
    let QueueState {
        keys,
        capacity,
        next,
        normalize,
    } = queue.state();
    let (saved, shape) = (keys.as_slice().to_vec(), [keys.len(), keys.dim()]);
    Queue::from_state(QueueState {
        keys: Rows::new(&saved, shape).expect("whole rows"),
        capacity,
        next,
        normalize,
    })
    .expect("a state of a queue")
}

/// Trains on with a queue and with one restored from its checkpoint.
fn goes_on_with_the_same_bits<T: Element, D: Device<T>>(device: &D) {
    let (capacity, dim, batch) = (13, 20, 6);
    for normalize in [true, false] {
        // Not full, just full, wrapped, and after a batch larger than the ring.
        for past in [&[5][..], &[13], &[9, 4], &[9, 9], &[30], &[2, 30, 1]] {
            let mut random = Random::new(past.iter().sum::<usize>() as u64);
            let mut queue = Queue::<T::Real>::new(capacity, dim)
                .expect("a queue")
                .with_normalize(normalize);
            for keys in past {
                let keys = cast::<T>(&random.normals(keys * dim));
                queue.enqueue(rows(&keys, dim)).expect("finite keys");
            }
            let mut restored = through_a_checkpoint(&queue);
            for step in 0..2 {
                let name = format!("{} {past:?} {normalize} step {step}", T::DTYPE);
                let [x, y] = [(); 2].map(|()| cast::<T>(&random.normals(batch * dim)));
                for enqueue in [Enqueue::Before, Enqueue::After] {
                    let losses: [Loss; 2] = [
                        Rrd {
                            normalize,
                            enqueue,
                            ..Rrd::default()
                        }
                        .into(),
                        InfoNce {
                            normalize,
                            enqueue,
                            ..InfoNce::default()
                        }
                        .into(),
                    ];
                    for loss in losses {
                        let [want, got] = [&mut queue, &mut restored].map(|queue| {
                            loss.evaluate_with_queue(device, rows(&x, dim), rows(&y, dim), queue)
                                .expect("a batch that fits")
                        });
                        assert_eq!(got.loss.to_bits(), want.loss.to_bits(), "{name} {loss}");
                        assert_eq!(got.terms, want.terms, "{name} {loss}");
                        assert_same_bits(&name, &got.gradient, &want.gradient);
                    }
                    assert_same_bits(&name, restored.keys(), queue.keys());
                }
                restored = through_a_checkpoint(&restored);
            }
        }
    }
}

#[test]
fn a_restored_queue_goes_on_with_the_same_bits() {
    fn on_the_host<T: Element>() {
        goes_on_with_the_same_bits::<T, _>(&Cpu);
        goes_on_with_the_same_bits::<T, _>(&Reference);
    }
    for_every_dtype!(on_the_host());
    #[cfg(feature = "emulator")]
    {
        let emulator = relata::Emulator::new();
        goes_on_with_the_same_bits::<f32, _>(&emulator);
        goes_on_with_the_same_bits::<half::f16, _>(&emulator);
    }
}

#[test]
fn a_state_that_no_queue_has_is_refused() {
    let keys = [0.6f32, 0.8, 1.0, 0.0, 0.0, 0.0];
    let of = |keys, capacity, next, normalize| {
        Queue::from_state(QueueState {
            keys: rows(keys, 2),
            capacity,
            next,
            normalize,
        })
    };
    for (capacity, next) in [(3, 0), (3, 2), (4, 3), (9, 3)] {
        let queue = of(&keys, capacity, next, true).expect("a state of a queue");
        assert_eq!((queue.len(), queue.state().next), (3, next));
    }
    let too_large = |argument, most, got| Error::TooLarge {
        argument,
        most,
        got,
    };
    let dimension = |argument, expected, got| Error::Dimension {
        argument,
        expected,
        got,
    };
    let long = [3.0f32, 0.0, 0.0, 4.0, 0.5, 0.5];
    let short = [1.0f32, 0.0, 0.0, 0.5, 0.0, 0.0];
    let bad = [0.0f32, 1.0, 1.0, f32::NAN, f32::INFINITY, 0.0];
    let empty = |argument| Error::Empty { argument };
    for (got, want) in [
        (of(&keys, 0, 0, true), empty("queue capacity")),
        (of(&keys, 2, 0, true), too_large("queue keys", 2, 3)),
        (of(&keys, 3, 3, true), too_large("next slot", 2, 3)),
        (of(&keys, 4, 0, true), dimension("next slot", 3, 0)),
        (of(&keys, 4, 4, true), dimension("next slot", 3, 4)),
        (of(&[], 4, 1, true), dimension("next slot", 0, 1)),
        (
            of(&long, 3, 0, true),
            Error::NotNormalized {
                argument: "queue keys",
                row: 0,
                got: 3.0,
            },
        ),
        (
            of(&short, 3, 0, true),
            Error::NotNormalized {
                argument: "queue keys",
                row: 1,
                got: 0.5,
            },
        ),
    ] {
        assert_eq!(got.expect_err("no queue has this state"), want);
    }
    assert!(of(&long, 3, 0, false).is_ok());
    let not_finite = of(&bad, 3, 0, false).expect_err("a NaN");
    let place = matches!(
        not_finite,
        Error::NotFinite {
            argument: "queue keys",
            row: 1,
            column: 1,
            ..
        }
    );
    assert!(place, "{not_finite}");
    let no_columns = Queue::<f32>::from_state(QueueState {
        keys: Rows::new(&[], [0, 0]).expect("no rows"),
        capacity: 3,
        next: 0,
        normalize: true,
    });
    assert_eq!(
        no_columns.expect_err("keys of length 0"),
        empty("queue_dim")
    );
    let huge = of(&keys, usize::MAX, 3, true).expect_err("no room");
    assert!(matches!(huge, Error::OutOfMemory { .. }), "{huge}");
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
    for loss in common::losses::against_teachers() {
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
