//! Numbers over several seeds.

use std::fmt;

/// A mean, and its standard error where there are two values or more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Mean {
    pub(crate) mean: f64,
    pub(crate) error: Option<f64>,
}

impl Mean {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares = values
            .iter()
            .map(|value| (value - mean).powi(2))
            .sum::<f64>();
        let error = (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt());
        Mean { mean, error }
    }

    /// Whether it lies more than two standard errors from 0.
    pub(crate) fn is_clear(&self) -> bool {
        self.error
            .is_some_and(|error| self.mean.abs() > 2.0 * error)
    }
}

/// In percent: `83.1 ± 0.4`; with `+`, with its sign.
impl fmt::Display for Mean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mean = 100.0 * self.mean;
        match f.sign_plus() {
            true => write!(f, "{mean:+.1}")?,
            false => write!(f, "{mean:.1}")?,
        }
        match self.error {
            Some(error) => write!(f, " ± {:.1}", 100.0 * error),
            None => Ok(()),
        }
    }
}
