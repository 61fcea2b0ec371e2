//! Aligned memory, recycled by each thread.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use crate::element::Real;
use crate::error::{Error, Result};

/// A cache line's worth of bytes.
const LINE: usize = 64;
/// How many bytes a thread keeps for its next evaluations. Fresh memory costs a page fault every
/// 4 KiB, which at the batch sizes of training is as much as the arithmetic.
const KEPT: usize = 16 << 20;

thread_local! {
    static POOL: RefCell<Vec<Vec<u64>>> = const { RefCell::new(Vec::new()) };
}

/// Reals that start at the beginning of a cache line: a read of a register that straddles two lines
/// takes twice as long. The memory is that of a past buffer of the thread, if one fits.
pub(crate) struct Buffer<R: Real> {
    memory: Vec<u64>,
    /// Where the first line begins, in reals.
    start: usize,
    len: usize,
    real: std::marker::PhantomData<R>,
}

impl<R: Real> Buffer<R> {
    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Result<Self> {
        let (mut buffer, fresh) = Self::take(len)?;
        if !fresh {
            buffer.fill(R::ZERO);
        }
        Ok(buffer)
    }

    /// `len` arbitrary numbers, for callers that write before they read.
    pub(crate) fn any(len: usize) -> Result<Self> {
        Ok(Self::take(len)?.0)
    }

    /// The buffer, and whether its memory is fresh and so zero.
    fn take(len: usize) -> Result<(Self, bool)> {
        let bytes = len.saturating_mul(size_of::<R>()).saturating_add(LINE);
        let words = bytes.div_ceil(size_of::<u64>());
        let kept = POOL.with_borrow_mut(|pool| {
            // Not a buffer so large that most of it would lie idle.
            let fits = |memory: &Vec<u64>| (words..=2 * words).contains(&memory.len());
            let kept = pool.iter().position(fits).map(|at| pool.swap_remove(at));
            if bytes > KEPT {
                // An evaluation this large cannot use the buffers of smaller ones.
                pool.clear();
            }
            kept
        });
        let fresh = kept.is_none();
        let memory = match kept {
            Some(memory) => memory,
            None => {
                bytemuck::allocation::try_zeroed_vec(words).map_err(|()| Error::OutOfMemory {
                    argument: "workspace",
                    bytes,
                })?
            }
        };
        let start = (memory.as_ptr().addr().wrapping_neg() % LINE) / size_of::<R>();
        let buffer = Buffer {
            memory,
            start,
            len,
            real: std::marker::PhantomData,
        };
        Ok((buffer, fresh))
    }
}

impl<R: Real> Drop for Buffer<R> {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        // The pool no longer exists if the thread is ending. Its memory is then freed as usual.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            let kept: usize = pool.iter().map(|memory| size_of_val(&memory[..])).sum();
            if kept + size_of_val(&memory[..]) <= KEPT {
                pool.push(memory);
            }
        });
    }
}

impl<R: Real> Deref for Buffer<R> {
    type Target = [R];

    fn deref(&self) -> &[R] {
        &bytemuck::cast_slice(&self.memory)[self.start..][..self.len]
    }
}

impl<R: Real> DerefMut for Buffer<R> {
    fn deref_mut(&mut self) -> &mut [R] {
        &mut bytemuck::cast_slice_mut(&mut self.memory)[self.start..][..self.len]
    }
}
