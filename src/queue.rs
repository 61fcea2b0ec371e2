//! The memory of past teacher keys that RRD and InfoNCE compare with.

use crate::device::Device;
use crate::element::{Element, Real};
use crate::error::{Error, Result};
use crate::problem::{Batch, Evaluation, Problem, same, zeroed};
use crate::rows::Rows;

/// When a loss puts the teacher's rows of a batch into the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Enqueue {
    /// Before the loss: the batch's own keys are among those it is compared with.
    Before,
    /// After the loss.
    After,
    /// Not at all: the caller calls [`Queue::enqueue`].
    Never,
}

/// A first-in first-out ring of `capacity` keys of length `dim`, empty at first.
///
/// Keys are L2-normalised as they enter (a zero row stays zero). Only keys that have entered take
/// part in a loss: there is no initial noise. Any number of rows may be enqueued at once; it need not
/// divide the capacity, and of more rows than the capacity the last ones stay.
///
/// ```
/// # fn main() -> relata::Result<()> {
/// let mut queue = relata::Queue::<f32>::new(3, 2)?;
/// queue.enqueue(relata::Rows::new(&[3.0f32, 4.0, 0.0, 2.0], [2, 2])?)?;
/// assert_eq!(queue.len(), 2);
/// assert_eq!(queue.to_vec(), [0.6, 0.8, 0.0, 1.0]);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Queue<R> {
    /// `[capacity, dim]`; the first `len` rows are in use.
    keys: Vec<R>,
    capacity: usize,
    dim: usize,
    /// The slot the next key goes to.
    next: usize,
    len: usize,
    normalize: bool,
}

impl<R: Real> Queue<R> {
    /// An empty queue for `capacity` keys of `dim` elements.
    ///
    /// # Errors
    /// [`Error::Empty`] if either is 0, [`Error::OutOfMemory`] if there is no room for the ring.
    pub fn new(capacity: usize, dim: usize) -> Result<Self> {
        for (argument, size) in [("queue capacity", capacity), ("queue_dim", dim)] {
            if size == 0 {
                return Err(Error::Empty { argument });
            }
        }
        Ok(Queue {
            keys: zeroed("queue", capacity.saturating_mul(dim))?,
            capacity,
            dim,
            next: 0,
            len: 0,
            normalize: true,
        })
    }

    /// Whether keys are L2-normalised as they enter (on at first). Off, they are stored as they
    /// come, to go with a loss whose own `normalize` is off.
    #[must_use]
    pub fn normalize(self, normalize: bool) -> Self {
        Queue { normalize, ..self }
    }

    /// The number of keys in the queue, K.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no key has entered yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The most keys it holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The length of a key, D.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The keys `[K, D]` in the order of their slots, which is not the order of their age once the
    /// ring has wrapped.
    #[must_use]
    pub fn keys(&self) -> &[R] {
        &self.keys[..self.len * self.dim]
    }

    /// A copy of the keys, the oldest first: what to save, and to enqueue again to restore.
    #[must_use]
    pub fn to_vec(&self) -> Vec<R> {
        let (newer, older) = self.keys().split_at(self.oldest() * self.dim);
        [older, newer].concat()
    }

    /// Forgets all keys.
    pub fn clear(&mut self) {
        self.next = 0;
        self.len = 0;
    }

    /// Adds `keys` `[B, D]`, in order, over the oldest ones where there is no room.
    ///
    /// # Errors
    /// [`Error::Dimension`] if the keys are not of length D; [`Error::NotFinite`] if one holds a NaN
    /// or an infinity, which would spoil every loss until it leaves the queue. Nothing is enqueued
    /// then.
    pub fn enqueue<T: Element<Real = R>>(&mut self, keys: Rows<'_, T>) -> Result<()> {
        same("queue_dim", self.dim, keys.dim())?;
        keys.check_finite("keys")?;
        let skipped = keys.len().saturating_sub(self.capacity);
        for key in keys.iter().skip(skipped) {
            let slot = &mut self.keys[self.next * self.dim..][..self.dim];
            T::widen(key, slot);
            if self.normalize {
                normalize(slot);
            }
            self.next = (self.next + 1) % self.capacity;
            self.len = self.capacity.min(self.len + 1);
        }
        Ok(())
    }

    /// What putting in `rows` keys changes.
    fn save(&self, rows: usize) -> Result<Saved<R>> {
        let mut keys = zeroed("queue", rows.min(self.capacity).saturating_mul(self.dim))?;
        for (saved, slot) in keys.chunks_exact_mut(self.dim).zip(self.slots()) {
            saved.copy_from_slice(&self.keys[slot * self.dim..][..self.dim]);
        }
        Ok(Saved {
            keys,
            next: self.next,
            len: self.len,
        })
    }

    /// Undoes what has been put in since.
    fn restore(&mut self, saved: &Saved<R>) {
        (self.next, self.len) = (saved.next, saved.len);
        for (key, slot) in saved.keys.chunks_exact(self.dim).zip(self.slots()) {
            self.keys[slot * self.dim..][..self.dim].copy_from_slice(key);
        }
    }

    /// The slots that the next keys go to, over and over.
    fn slots(&self) -> impl Iterator<Item = usize> + use<R> {
        let capacity = self.capacity;
        (self.next..capacity).chain((0..capacity).cycle())
    }

    /// The key that `age` others have entered after; the oldest if there are not so many.
    pub(crate) fn recent(&self, age: usize) -> &[R] {
        let age = age.min(self.len - 1);
        let slot = (self.next + self.capacity - 1 - age) % self.capacity;
        &self.keys[slot * self.dim..][..self.dim]
    }

    /// The slot of the oldest key.
    fn oldest(&self) -> usize {
        if self.len < self.capacity {
            0
        } else {
            self.next
        }
    }
}

/// Keys that are about to be overwritten.
struct Saved<R> {
    keys: Vec<R>,
    next: usize,
    len: usize,
}

/// Scales `row` to length 1, or leaves it if it is zero; the arithmetic is f64, and scaled so that
/// no row's square overflows or vanishes.
fn normalize<R: Real>(row: &mut [R]) {
    let largest = row.iter().fold(0.0, |m: f64, x| m.max(x.to_f64().abs()));
    if largest > 0.0 {
        let norm = row
            .iter()
            .map(|x| (x.to_f64() / largest).powi(2))
            .sum::<f64>()
            .sqrt();
        for x in row {
            *x = R::from_f64(x.to_f64() / largest / norm);
        }
    }
}

/// Evaluates a loss beside a queue that takes the batch's keys before or after it.
pub(crate) fn evaluate_with_queue<T: Element, D: Device<T>>(
    problem: impl Fn(usize) -> Result<Problem>,
    enqueue: Enqueue,
    device: &D,
    student: Rows<'_, T>,
    teacher: Rows<'_, T>,
    queue: &mut Queue<T::Real>,
) -> Result<Evaluation<D::Gradient>> {
    let keys = match enqueue {
        Enqueue::Before => queue
            .capacity()
            .min(queue.len().saturating_add(teacher.len())),
        Enqueue::After | Enqueue::Never => queue.len(),
    };
    // Everything that can be refused is refused before the queue changes.
    let problem = problem(keys)?;
    same("queue_dim", student.dim(), queue.dim())?;
    same("teacher rows", student.len(), teacher.len())?;
    if teacher.check_finite("teacher").is_err() {
        return problem.not_a_number();
    }
    if enqueue != Enqueue::Before {
        let evaluation =
            problem.evaluate(device, Batch::new(student, teacher).with_queue(queue))?;
        if enqueue == Enqueue::After {
            queue.enqueue(teacher)?;
        }
        return Ok(evaluation);
    }
    // What a device refuses it finds out when the batch is in.
    let saved = queue.save(teacher.len())?;
    queue.enqueue(teacher)?;
    let evaluation = problem.evaluate(device, Batch::new(student, teacher).with_queue(queue));
    if evaluation.is_err() {
        queue.restore(&saved);
    }
    evaluation
}
