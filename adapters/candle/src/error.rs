//! relata's errors as candle's, and back.

use candle_core::Error;

/// The error of relata's inside candle's, if there is one.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// # fn main() -> candle_core::Result<()> {
/// let student = Tensor::zeros((4, 8), DType::F32, &Device::Cpu)?;
/// let teacher = Tensor::zeros((3, 8), DType::F32, &Device::Cpu)?;
/// let error = relata_candle::rkd(&student, &teacher, Default::default()).unwrap_err();
/// assert!(matches!(
///     relata_candle::cause(&error),
///     Some(relata::Error::Dimension { argument: "teacher rows", expected: 4, got: 3 })
/// ));
/// # Ok(()) }
/// ```
#[must_use]
pub fn cause(error: &Error) -> Option<&relata::Error> {
    match error {
        Error::WrappedContext { wrapped, .. } => wrapped.downcast_ref(),
        Error::WithBacktrace { inner, .. }
        | Error::Context { inner, .. }
        | Error::WithPath { inner, .. } => cause(inner),
        _ => None,
    }
}

/// A result of relata's as candle's, on behalf of `name`.
pub(crate) trait OrCandle<T> {
    fn or_candle(self, name: &'static str) -> candle_core::Result<T>;
}

impl<T> OrCandle<T> for relata::Result<T> {
    fn or_candle(self, name: &'static str) -> candle_core::Result<T> {
        self.map_err(|error| {
            let context = format!("{name}: {error}");
            Error::WrappedContext {
                wrapped: Box::new(error),
                context,
            }
            .bt()
        })
    }
}
