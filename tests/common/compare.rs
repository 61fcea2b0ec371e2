//! Comparers. All are written so that a NaN fails. A failure says how much of the budget was used
//! and where the worst element lies.

use relata::Real;

/// ‖got − want‖ / ‖want‖; the numerator alone where `want` is zero. NaN or infinite if an element
/// is.
pub(crate) fn relative_error<R: Real>(got: &[R], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "lengths differ");
    let difference: Vec<f64> = got.iter().zip(want).map(|(g, w)| g.to_f64() - w).collect();
    let unit = norm(want);
    norm(&difference) / if unit == 0.0 { 1.0 } else { unit }
}

/// ‖x‖, of numbers of any size.
pub(crate) fn norm(x: &[f64]) -> f64 {
    // `f64::max` passes over a NaN, a sum does not.
    let poison: f64 = x.iter().map(|x| x * 0.0).sum();
    let largest = x.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    if largest == 0.0 || !poison.is_finite() {
        return poison;
    }
    largest * x.iter().map(|x| (x / largest).powi(2)).sum::<f64>().sqrt()
}

/// Asserts that a gradient `[N, dim]` is within `tolerance` of the right one, relative to its
/// length.
#[track_caller]
pub(crate) fn assert_gradient<R: Real>(
    label: &str,
    got: &[R],
    want: &[f64],
    dim: usize,
    tolerance: f64,
) {
    let error = relative_error(got, want);
    if error <= tolerance {
        return; // NaN does not come here
    }
    // The first NaN is the worst there is.
    let deviation = |at: usize| (got[at].to_f64() - want[at]).abs();
    let worst = (0..got.len())
        .max_by(|&a, &b| deviation(a).total_cmp(&deviation(b)))
        .unwrap_or(0);
    panic!(
        "{label}: ‖got − want‖/‖want‖ = {error:.3e}, allowed {tolerance:.1e}: {:.0} % of the budget; \
         worst at row {}, column {}: got {:e}, want {:e}",
        100.0 * error / tolerance,
        worst / dim,
        worst % dim,
        got[worst].to_f64(),
        want[worst],
    );
}

/// A loss whose every penalty is a rounding error squared: it counts as 0.
const NOTHING: f64 = 1e-28;

/// Asserts |got − want| ≤ tolerance · |want|, or ≤ tolerance where `want` is as good as 0.
#[track_caller]
pub(crate) fn assert_loss(label: &str, got: f64, want: f64, tolerance: f64) {
    let unit = if want.abs() <= NOTHING {
        1.0
    } else {
        want.abs()
    };
    let error = (got - want).abs() / unit;
    if error <= tolerance {
        return; // NaN does not come here
    }
    panic!(
        "{label}: got {got:e}, want {want:e}: off by {error:.3e}, allowed {tolerance:.1e}: {:.0} % of \
         the budget",
        100.0 * error / tolerance
    );
}

/// Asserts that every element is exactly 0.
#[track_caller]
pub(crate) fn assert_zero<R: Real>(label: &str, got: &[R]) {
    for (at, g) in got.iter().enumerate() {
        assert!(
            g.to_f64() == 0.0,
            "{label}: element {at} is {}, want 0",
            g.to_f64()
        );
    }
}

/// Asserts that every element is finite.
#[track_caller]
pub(crate) fn assert_finite<R: Real>(label: &str, got: &[R]) {
    for (at, g) in got.iter().enumerate() {
        assert!(
            g.to_f64().is_finite(),
            "{label}: element {at} is {}",
            g.to_f64()
        );
    }
}

/// Asserts that both hold the same bits; every NaN counts as the same.
#[track_caller]
pub(crate) fn assert_same_bits<R: Real>(label: &str, got: &[R], want: &[R]) {
    assert_eq!(got.len(), want.len(), "{label}: lengths differ");
    for (at, (g, w)) in got.iter().zip(want).enumerate() {
        // Widening is exact and keeps the sign of zero.
        assert!(
            canonical(g.to_f64()) == canonical(w.to_f64()),
            "{label}: element {at}: got {:e}, want {:e}, bit for bit",
            g.to_f64(),
            w.to_f64()
        );
    }
}

fn canonical(x: f64) -> u64 {
    if x.is_nan() { f64::NAN } else { x }.to_bits()
}
