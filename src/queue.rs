//! The ring of past teacher keys that RRD and InfoNCE compare with.

use crate::checks::{not_empty, same, zeroed};
use crate::element::{Element, Real};
use crate::error::{Error, Result};
use crate::rows::{Rows, normalize_row};

/// A first-in first-out ring of `capacity` keys of length `dim`, empty at first.
///
/// Keys are L2-normalised as they enter (a zero row stays zero). Only keys that have entered take
/// part in a loss: there is no initial noise. Any number of rows may enter at once. The number need
/// not divide the capacity; of more rows than the capacity, the last ones stay.
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
    /// [`Error::Empty`](crate::Error::Empty) if either is 0.
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) if there is no room for the ring.
    pub fn new(capacity: usize, dim: usize) -> Result<Self> {
        not_empty("queue capacity", capacity)?;
        not_empty("queue_dim", dim)?;
        Ok(Queue {
            keys: zeroed("queue", capacity.saturating_mul(dim))?,
            capacity,
            dim,
            next: 0,
            len: 0,
            normalize: true,
        })
    }

    /// Sets whether keys are L2-normalised as they enter; on at first. Off, they are stored as they
    /// come, for a loss whose own `normalize` is off. An evaluation refuses a queue that differs
    /// from its loss ([`Error::QueueNormalization`](crate::Error::QueueNormalization)).
    #[must_use]
    pub fn with_normalize(self, normalize: bool) -> Self {
        Queue { normalize, ..self }
    }

    /// Whether keys are L2-normalised as they enter.
    #[must_use]
    pub fn normalize(&self) -> bool {
        self.normalize
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

    /// What a checkpoint has to hold. [`from_state`](Self::from_state) makes the same queue of it.
    #[must_use]
    pub fn state(&self) -> QueueState<'_, R> {
        QueueState {
            keys: Rows::of(self.keys(), self.dim),
            capacity: self.capacity,
            next: self.next,
            normalize: self.normalize,
        }
    }

    /// The queue that had this [`state`](Self::state), with each key in its slot as it was. From
    /// then on both give the same bits.
    ///
    /// # Errors
    /// [`Error::Empty`] if the capacity or the length of a key is 0. [`Error::TooLarge`] for more
    /// keys than the capacity, or for a next slot beyond it. [`Error::Dimension`] if the ring is
    /// not full and the next slot is not the one behind the keys. [`Error::NotFinite`] for a NaN or
    /// an infinity. [`Error::NotNormalized`] if the state says that keys are normalised, and one is
    /// neither of length 1 nor zero. [`Error::OutOfMemory`] if there is no room for the ring.
    pub fn from_state(state: QueueState<'_, R>) -> Result<Self> {
        let QueueState {
            keys,
            capacity,
            next,
            normalize,
        } = state;
        let at_most = |argument, most, got| {
            if got <= most {
                return Ok(());
            }
            Err(Error::TooLarge {
                argument,
                most,
                got,
            })
        };
        let mut queue = Queue::new(capacity, keys.dim())?.with_normalize(normalize);
        at_most("queue keys", capacity, keys.len())?;
        if keys.len() < capacity {
            same("next slot", keys.len(), next)?;
        } else {
            at_most("next slot", capacity - 1, next)?;
        }
        keys.check_finite("queue keys")?;
        if normalize {
            check_normalized(keys)?;
        }
        queue.keys[..keys.as_slice().len()].copy_from_slice(keys.as_slice());
        (queue.next, queue.len) = (next, keys.len());
        Ok(queue)
    }

    /// A copy of the keys, the oldest first. For a checkpoint take [`state`](Self::state): a queue
    /// that these keys enter again has them in other slots, and sums in another order.
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

    /// Adds `keys` `[B, D]`, in order. Where there is no room, they replace the oldest keys.
    ///
    /// # Errors
    /// [`Error::Dimension`](crate::Error::Dimension) if the keys are not of length D.
    /// [`Error::NotFinite`](crate::Error::NotFinite) if one holds a NaN or an infinity, which would
    /// spoil every loss until it leaves the queue. Nothing is enqueued then.
    pub fn enqueue<T: Element<Real = R>>(&mut self, keys: Rows<'_, T>) -> Result<()> {
        same("queue_dim", self.dim, keys.dim())?;
        keys.check_finite("keys")?;
        let skipped = keys.len().saturating_sub(self.capacity);
        for key in keys.iter().skip(skipped) {
            let slot = &mut self.keys[self.next * self.dim..][..self.dim];
            T::widen(key, slot);
            if self.normalize {
                normalize_row(slot);
            }
            self.next = (self.next + 1) % self.capacity;
            self.len = self.capacity.min(self.len + 1);
        }
        Ok(())
    }

    /// A copy of what entering `rows` keys changes, for [`restore`](Self::restore).
    pub(crate) fn save(&self, rows: usize) -> Result<Saved<R>> {
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

    /// Undoes what has entered since [`save`](Self::save).
    pub(crate) fn restore(&mut self, saved: &Saved<R>) {
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

/// What a [`Queue`] holds, borrowed: all that a checkpoint needs. `keys` is one flat slice, and the
/// rest are three numbers.
///
/// Sums over the keys run slot by slot. So a queue that is restored from its state gives the bits of
/// the one that went on, and a queue that only has the same keys may not.
///
/// ```
/// use relata::{Queue, QueueState, Rows};
/// # fn main() -> relata::Result<()> {
/// let mut queue = Queue::<f32>::new(2, 2)?;
/// queue.enqueue(Rows::new(&[3.0f32, 4.0, 0.0, 2.0], [2, 2])?)?;
/// queue.enqueue(Rows::new(&[2.0f32, 0.0], [1, 2])?)?;
/// let state = queue.state();
/// // Save these four.
/// let (keys, capacity, next, normalize) =
///     (state.keys.as_slice().to_vec(), state.capacity, state.next, state.normalize);
/// assert_eq!((&keys[..], next), (&[1.0, 0.0, 0.0, 1.0][..], 1)); // the newest key is in slot 0
///
/// let keys = Rows::new(&keys, [keys.len() / 2, 2])?;
/// let restored = Queue::from_state(QueueState { keys, capacity, next, normalize })?;
/// assert_eq!(restored.keys(), queue.keys());
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct QueueState<'a, R> {
    /// The keys `[K, D]` in the order of their slots.
    pub keys: Rows<'a, R>,
    /// The most keys that the queue holds.
    pub capacity: usize,
    /// The slot that the next key goes to: K until the ring is full, then that of the oldest key.
    pub next: usize,
    /// Whether keys are L2-normalised as they enter.
    pub normalize: bool,
}

/// Keys that are about to be overwritten.
pub(crate) struct Saved<R> {
    keys: Vec<R>,
    next: usize,
    len: usize,
}

/// Refuses keys that did not enter a queue that normalises: those neither of length 1 nor zero.
fn check_normalized<R: Real>(keys: Rows<'_, R>) -> Result<()> {
    // A GPU stores keys as f16. That takes a length 2^-11 from 1, and subnormal elements a little
    // farther.
    const ROUNDING: f64 = 1.0 / 256.0;
    for (row, key) in keys.iter().enumerate() {
        let length = key.iter().map(|x| x.to_f64().powi(2)).sum::<f64>().sqrt();
        if length != 0.0 && (length - 1.0).abs() > ROUNDING {
            return Err(Error::NotNormalized {
                argument: "queue keys",
                row,
                got: length,
            });
        }
    }
    Ok(())
}
