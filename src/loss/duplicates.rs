//! When unit rows count as equal.

use crate::element::{DType, Element};

/// The distance up to which two unit rows are duplicates to RKD with `normalize`.
///
/// Rows on one line through the origin are equal at length 1, but for rounding. The kernels keep
/// unit rows in f32, where four roundings make a distance of up to 2⁻²². Half types are computed in
/// f32. In f64 a long row's norm is off by more than one rounding. See docs/decisions/0019.
pub(crate) fn duplicate_distance<T: Element>() -> f64 {
    let exponent = match <T::Real as Element>::DTYPE {
        DType::F64 => -46,
        _ => -21,
    };
    2f64.powi(exponent)
}
