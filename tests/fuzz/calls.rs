//! Random calls with random arguments, of which most are wrong. A call returns a value or a typed
//! error, and never panics. What is accepted has the right size, and is finite where the numbers
//! are ordinary. A failure names its seed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::common::Random;
use crate::long_enough;
use half::{bf16, f16};
use relata::{
    Batch, Cpu, Device, Divergence, Element, Enqueue, Loss, ParameterValue, Problem, Queue,
    QueueState, Reference, Relation, Result, Rows, WeightPrecision, relation_matrix, softmax,
};

/// Runs `call` with one seed after the other. Returns how many calls were accepted and refused.
fn run(call: impl Fn(&mut Fuzz) -> Result<()>) {
    let (mut accepted, mut refused) = (0u64, 0u64);
    let begin = Instant::now();
    for seed in (0..).take_while(|_| !long_enough(begin)) {
        let mut fuzz = Fuzz(Random::new(seed));
        match catch_unwind(AssertUnwindSafe(|| call(&mut fuzz))) {
            Ok(Ok(())) => accepted += 1,
            Ok(Err(error)) => {
                assert!(!error.to_string().is_empty(), "seed {seed}: {error:?}");
                refused += 1;
            }
            Err(_) => panic!("seed {seed}"),
        }
    }
    println!("{accepted} calls accepted, {refused} refused");
    assert!(accepted > 0 && refused > 0, "the calls are of one kind");
}

struct Fuzz(Random);

impl Fuzz {
    fn below(&mut self, count: usize) -> usize {
        (self.0.next() % count as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 0
    }

    /// A size: usually small, sometimes 0 or absurd.
    fn size(&mut self) -> usize {
        match self.below(40) {
            0 => 0,
            1 => self.one_of(&[usize::MAX, usize::MAX / 8 + 1, 1 << 40, 1 << 62]),
            2 => 17 + self.below(60),
            _ => 1 + self.below(6),
        }
    }

    fn ordinary(&mut self) -> f64 {
        (self.below(41) as f64 - 20.0) / 8.0
    }

    fn hostile(&mut self) -> f64 {
        let number = self.one_of(&[
            0.0,
            f64::NAN,
            f64::INFINITY,
            f64::MAX,
            f64::MIN_POSITIVE,
            5e-324,
            1e300,
            3e38,
            1e-38,
            65504.0,
            1e-8,
            1.0,
        ]);
        if self.flag() { -number } else { number }
    }

    /// Numbers of a batch: ordinary, or with hostile ones among them.
    fn numbers<T: Element>(&mut self, len: usize, hostile: bool) -> Vec<T> {
        let number = |fuzz: &mut Self| match fuzz.below(8) {
            0 if hostile => fuzz.hostile(),
            _ => fuzz.ordinary(),
        };
        (0..len).map(|_| T::from_f64(number(self))).collect()
    }

    /// A loss with some parameters changed, most of them to what is in range.
    fn loss(&mut self) -> Loss {
        let mut loss = self.one_of(&Loss::all());
        for (name, value) in loss.parameters() {
            if self.below(3) > 0 {
                continue;
            }
            let value = match value {
                ParameterValue::Number(_) if self.below(4) == 0 => {
                    ParameterValue::Number(self.hostile())
                }
                ParameterValue::Number(_) => {
                    ParameterValue::Number(self.one_of(&[0.02, 0.5, 1.0, 4.0, 1e3]))
                }
                ParameterValue::Count(_) => ParameterValue::Count(self.one_of(&[0, 1, 3, 32, 33])),
                ParameterValue::Flag(_) => ParameterValue::Flag(self.flag()),
                ParameterValue::Enqueue(_) => ParameterValue::Enqueue(self.one_of(&[
                    Enqueue::Before,
                    Enqueue::After,
                    Enqueue::Never,
                ])),
                ParameterValue::Divergence(_) => {
                    let share = if self.below(4) == 0 {
                        self.hostile()
                    } else {
                        self.one_of(&[0.0, 1e-3, 0.1, 0.5, 1.0])
                    };
                    ParameterValue::Divergence(self.one_of(&[
                        Divergence::Forward,
                        Divergence::Reverse,
                        Divergence::Js { beta: share },
                        Divergence::Skew { alpha: share },
                        Divergence::SkewReverse { alpha: share },
                    ]))
                }
            };
            loss = loss.with_parameter(name, value).expect("its own parameter");
        }
        loss
    }
}

/// A size that memory can hold, or an error of `Rows::new` for the others.
fn rows<T: Element>(data: &[T], shape: [usize; 2]) -> Result<Rows<'_, T>> {
    Rows::new(data, shape)
}

/// How many numbers are made for a claimed shape: its size if that is sane, sometimes one off.
fn len_of(fuzz: &mut Fuzz, [rows, dim]: [usize; 2]) -> usize {
    let len = rows.checked_mul(dim).filter(|&len| len <= 100_000);
    match fuzz.below(30) {
        0 => len.unwrap_or(7).saturating_sub(1),
        1 => len.unwrap_or(7) + 1,
        _ => len.unwrap_or(7),
    }
}

fn evaluate<T: Element>(fuzz: &mut Fuzz) -> Result<()> {
    let loss = fuzz.loss();
    let hostile = fuzz.below(3) == 0;
    let (n, dim) = (fuzz.size(), fuzz.size());
    let teacher_dim = if fuzz.below(4) == 0 { fuzz.size() } else { dim };
    let teacher_rows = if fuzz.below(20) == 0 { fuzz.size() } else { n };
    let shapes = [[n, dim], [teacher_rows, teacher_dim]];
    let [x, y] = shapes.map(|shape| {
        let len = len_of(fuzz, shape);
        fuzz.numbers::<T>(len, hostile)
    });
    let [x, y] = [rows(&x, shapes[0])?, rows(&y, shapes[1])?];

    let mut queue = None;
    if fuzz.below(4) > 0 {
        let capacity = fuzz.size().min(1 << 20);
        let width = if fuzz.below(6) == 0 {
            fuzz.size().min(1 << 10)
        } else {
            dim
        };
        let normalize = fuzz.below(4) > 0;
        let mut ring = Queue::<T::Real>::new(capacity, width)?.with_normalize(normalize);
        for _ in 0..fuzz.below(4) {
            let keys = fuzz.below(5) + 1;
            let numbers = fuzz.numbers::<T>(keys * width, false);
            ring.enqueue(Rows::new(&numbers, [keys, width])?)?;
        }
        queue = Some(ring);
    }
    if let Some(ring) = queue.as_mut()
        && fuzz.flag()
    {
        let before = ring.to_vec();
        let result = loss.evaluate_with_queue(&Cpu, x, y, ring);
        if result.is_err() {
            assert!(ring.to_vec() == before, "a queue that was half-written");
        }
        return result.map(|evaluation| assert_eq!(evaluation.gradient.len(), n * dim));
    }

    let mut batch = Batch::new(x, y);
    if let Some(ring) = &queue {
        batch = batch.with_queue(ring);
    }
    let upstream = if fuzz.below(8) == 0 {
        fuzz.hostile()
    } else {
        1.0
    };
    let mut problem = Problem::new(loss, batch.shapes())?;
    if fuzz.below(3) == 0 {
        let groups = [fuzz.size(), 1, 2, n];
        problem = problem.with_groups(fuzz.one_of(&groups))?;
    }
    if fuzz.below(6) == 0 {
        problem = problem.with_prefixes(&[1, fuzz.size()])?;
    }
    let problem = problem
        .with_checked(fuzz.flag())
        .with_upstream(upstream)
        .with_weight_precision(fuzz.one_of(&[WeightPrecision::Split, WeightPrecision::Half]));
    let want = problem.evaluate(&Reference, batch);
    let got = problem.evaluate(&Cpu, batch);
    // Both accept, or both refuse.
    let (want, got) = match (want, got) {
        (Err(want), Err(got)) => {
            assert_eq!(want.to_string(), got.to_string());
            return Err(got);
        }
        (want, got) => (want?, got?),
    };
    assert_eq!([want.gradient.len(), got.gradient.len()], [n * dim; 2]);
    let extreme = loss.parameters().iter().any(|(_, value)| {
        matches!(value, ParameterValue::Number(number) if !(1e-3..=1e4).contains(number))
    });
    // A score is a distance to the power of β.
    let steep = matches!(loss, Loss::DarkRank(loss) if loss.beta > 10.0);
    if hostile || extreme || steep || upstream != 1.0 {
        return Ok(());
    }
    assert!(got.loss.is_finite(), "{loss:?}: {}", got.loss);
    assert!(
        got.gradient.iter().all(|g| g.to_f64().is_finite()),
        "{loss:?}"
    );
    if matches!(loss, Loss::Order(_)) {
        // Eighths have cosines that are equal but for their rounding, which has no order.
        return Ok(());
    }
    let off = (got.loss - want.loss).abs();
    let allowed = 1e-4 * (1.0 + want.loss.abs());
    assert!(off <= allowed, "{loss:?}: {} and {}", got.loss, want.loss);
    Ok(())
}

#[test]
fn an_evaluation_is_right_or_refused() {
    run(|fuzz| match fuzz.below(4) {
        0 => evaluate::<f64>(fuzz),
        1 => evaluate::<f16>(fuzz),
        2 => evaluate::<bf16>(fuzz),
        _ => evaluate::<f32>(fuzz),
    });
}

fn building_blocks<T: Element, D: Device<T>>(fuzz: &mut Fuzz, device: &D) -> Result<()> {
    let shape = [fuzz.size(), fuzz.size()];
    let len = len_of(fuzz, shape);
    let hostile = fuzz.flag();
    let data = fuzz.numbers::<T>(len, hostile);
    let x = rows(&data, shape)?;
    if fuzz.flag() {
        let temperature = if fuzz.flag() { fuzz.hostile() } else { 2.0 };
        let p = softmax(device, x, temperature)?;
        assert_eq!(p.len(), len);
    } else {
        let relation = fuzz.one_of(&[
            Relation::Distance,
            Relation::SquaredDistance,
            Relation::Dot,
            Relation::Cosine,
            Relation::PositiveCosine,
            Relation::ShiftedCosine,
        ]);
        let matrix = relation_matrix(device, relation, x)?;
        assert_eq!(matrix.len(), shape[0] * shape[0]);
    }
    Ok(())
}

#[test]
fn a_building_block_returns_or_refuses() {
    run(|fuzz| match fuzz.below(3) {
        0 => building_blocks::<f64, _>(fuzz, &Reference),
        1 => building_blocks::<f32, _>(fuzz, &Cpu),
        _ => building_blocks::<f16, _>(fuzz, &Cpu),
    });
}

/// States of queues, as a damaged checkpoint has them.
#[test]
fn a_state_is_a_queue_or_refused() {
    run(|fuzz| {
        let (len, dim) = (fuzz.size(), fuzz.size());
        let count = len_of(fuzz, [len, dim]);
        let hostile = fuzz.below(4) == 0;
        let mut keys = fuzz.numbers::<f32>(count, hostile);
        if fuzz.flag() {
            // At length 1, as the keys of a normalised queue are.
            for key in keys.chunks_mut(dim.clamp(1, 1 << 20)) {
                key.fill(0.0);
                if let Some(first) = key.first_mut() {
                    *first = 1.0;
                }
            }
        }
        let keys = rows(&keys, [len, dim])?;
        let capacity = if fuzz.flag() {
            len
        } else {
            fuzz.size().min(1 << 20)
        };
        let next = if fuzz.flag() {
            len % capacity.max(1)
        } else {
            fuzz.size()
        };
        let queue = Queue::from_state(QueueState {
            keys,
            capacity,
            next,
            normalize: fuzz.flag(),
        })?;
        let state = queue.state();
        assert_eq!((state.capacity, state.next), (capacity, next));
        assert_eq!(queue.len(), len);
        assert_eq!(state.keys.as_slice(), keys.as_slice());
        Ok(())
    });
}
