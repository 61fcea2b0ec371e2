//! A teacher's most likely classes on the GPU.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::driver;
use super::memory::{Memory, bind};
use crate::checks::{at_most, same};
use crate::error::{Error, Result};
use crate::problem::Problem;

/// A teacher's most likely classes on the GPU, for [`Evaluator::launch_with`].
///
/// The classes come from host memory, where they are checked: a kernel reads the student's logits at
/// these places. So it is safe to evaluate the list.
///
/// [`Evaluator::launch_with`]: super::Evaluator::launch_with
#[derive(Debug)]
pub struct TopK {
    classes: Memory,
    log_probabilities: Memory,
    rows: usize,
    k: usize,
    /// All classes are below.
    below: usize,
    stream: Arc<CudaStream>,
}

impl TopK {
    /// Copies lists to the GPU of `stream`, and waits. They are of a student that has `classes`
    /// classes, or of which so many are compared.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for a class that is not below `classes`.
    /// [`Error::Parameter`] for one that a row has twice, and for
    /// probabilities that add up to more than 1. [`Error::OutOfMemory`].
    pub fn new(
        stream: &Arc<CudaStream>,
        lists: crate::TopK<'_, f32>,
        classes: usize,
    ) -> Result<Self> {
        lists.check(classes)?;
        driver::ready()?;
        bind(stream)?;
        let copy = |argument, bytes: &[u8]| -> Result<Memory> {
            let mut memory = Memory::new(stream, argument, bytes.len())?;
            memory.write(bytes)?;
            Ok(memory)
        };
        Ok(TopK {
            classes: copy("teacher classes", bytemuck::cast_slice(lists.classes()))?,
            log_probabilities: copy(
                "teacher log_probabilities",
                bytemuck::cast_slice(lists.log_probabilities()),
            )?,
            rows: lists.len(),
            k: lists.k(),
            below: classes,
            stream: Arc::clone(stream),
        })
    }

    /// The number of rows, N.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The number of entries of a row, k.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// Refuses lists of another shape, with other classes, or on another stream.
    pub(super) fn fits(&self, problem: &Problem, k: usize, stream: &CudaStream) -> Result<()> {
        same("teacher rows", problem.shapes().rows, self.rows)?;
        same("teacher k", k, self.k)?;
        at_most("teacher classes", problem.classes(), self.below)?;
        if *self.stream != *stream {
            return Err(Error::ForeignMemory {
                argument: "top_k",
                got: "lists of another stream".to_owned(),
            });
        }
        Ok(())
    }

    /// The addresses of the logarithms and of the classes, for a launch on the stream.
    pub(super) fn bind(&mut self) -> Result<[u64; 2]> {
        self.classes.bind()?;
        self.log_probabilities.bind()?;
        Ok([self.log_probabilities.address(), self.classes.address()])
    }
}
