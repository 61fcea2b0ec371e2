//! Prefixes of the student's rows.

use crate::checks::{at_most, not_empty};
use crate::error::{Error, Result};

/// The most prefixes that a problem has.
const MOST: usize = 16;

/// The widths of prefixes, in increasing order; none where rows are taken as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Prefixes {
    /// 0 beyond `count`.
    widths: [usize; MOST],
    count: usize,
}

impl Prefixes {
    /// # Errors
    /// As [`Problem::with_prefixes`](crate::Problem::with_prefixes).
    pub(crate) fn new(widths: &[usize], dim: usize) -> Result<Self> {
        not_empty("prefixes", widths.len())?;
        at_most("number of prefixes", MOST, widths.len())?;
        let mut prefixes = Prefixes::default();
        let mut last = 0;
        for (slot, &width) in prefixes.widths.iter_mut().zip(widths) {
            if width <= last {
                return Err(Error::Parameter {
                    argument: "prefixes",
                    expected: "widths of at least 1 that increase",
                    got: width as f64,
                });
            }
            at_most("prefixes", dim, width)?;
            (*slot, last) = (width, width);
        }
        prefixes.count = widths.len();
        Ok(prefixes)
    }

    pub(crate) fn widths(&self) -> &[usize] {
        &self.widths[..self.count]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// What the loss is the mean of: the number of prefixes, or 1 of whole rows.
    pub(crate) fn parts(&self) -> f64 {
        self.count.max(1) as f64
    }
}
