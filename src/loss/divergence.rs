use super::Range;
use crate::error::Result;

/// How far q of the student is from p of the teacher: what [`KdKl`](super::KdKl) measures.
///
/// | divergence | definition | where it is used |
/// |---|---|---|
/// | `Forward` | KL(p‖q) | Hinton's distillation; covers all that the teacher does |
/// | `Reverse` | KL(q‖p) | MiniLLM and on-policy distillation; keeps to the teacher's modes |
/// | `Js` | β KL(p‖m) + (1−β) KL(q‖m), m = βp + (1−β)q | GKD |
/// | `Skew` | KL(p‖m), m = αp + (1−α)q | DistiLLM |
/// | `SkewReverse` | KL(q‖m), m = αq + (1−α)p | DistiLLM |
///
/// None is below 0. At the ends of the parameters' ranges:
///
/// - `Js` with β = 0 is `Forward` and with β = 1 is `Reverse`, as in TRL. This is a convention, not
///   a limit: near 0 and 1 the formula goes to 0.
/// - `Skew` with α = 0 is `Forward`, and `SkewReverse` with α = 0 is `Reverse`. With α = 1 both are
///   0.
///
/// Logits of −∞:
///
/// | student | teacher | `Forward` | `Reverse` | `Js`, `Skew`, `SkewReverse` |
/// |---|---|---|---|---|
/// | −∞ | −∞ | masked | masked | masked |
/// | −∞ | a number | loss +∞, gradient NaN | q = 0 | q = 0 |
/// | a number | −∞ | p = 0 | loss +∞, gradient NaN | p = 0 |
/// | −∞ in all classes | a number | loss +∞, gradient NaN | both NaN | both NaN |
/// | a number | −∞ in all classes | both NaN | both NaN | both NaN |
///
/// The gradient is that of the row. A masked class counts in no sum and has gradient 0. +∞ or NaN
/// anywhere in a row make both NaN.
///
/// The official code differs in these points:
///
/// - TRL (`generalized_jsd_loss`) does not multiply by T². Its earlier versions took the mean of
///   the logarithms for m, which is another divergence, and exchanged β and 1 − β.
/// - DistiLLM (`distillm/losses.py`) has no temperature. Its `js_distance` calls 1 − β `lam`. Its
///   forward losses leave out the teacher's entropy: their gradients are the same. It drops the
///   classes where a logit is infinite, even where the divergence is then +∞.
///
/// Agarwal et al.: *On-Policy Distillation of Language Models*, arXiv 2306.13649 (GKD). Ko et al.:
/// *DistiLLM*, arXiv 2402.03898. Gu et al.: *MiniLLM*, arXiv 2306.08543.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Divergence {
    /// KL(p‖q)
    #[default]
    Forward,
    /// KL(q‖p)
    Reverse,
    /// Generalised Jensen-Shannon: β KL(p‖m) + (1−β) KL(q‖m), m = βp + (1−β)q.
    Js {
        /// β, from 0 to 1; [`BETA`](Divergence::BETA) by default.
        beta: f64,
    },
    /// KL(p‖m), m = αp + (1−α)q.
    Skew {
        /// α, from 0 to 1; [`ALPHA`](Divergence::ALPHA) by default.
        alpha: f64,
    },
    /// KL(q‖m), m = αq + (1−α)p.
    SkewReverse {
        /// α, from 0 to 1; [`ALPHA`](Divergence::ALPHA) by default.
        alpha: f64,
    },
}

impl Divergence {
    /// The usual β: the symmetric divergence.
    pub const BETA: f64 = 0.5;
    /// The usual α, DistiLLM's.
    pub const ALPHA: f64 = 0.1;
    /// Every divergence with its default parameter.
    pub const ALL: [Divergence; 5] = [
        Divergence::Forward,
        Divergence::Reverse,
        Divergence::Js { beta: Self::BETA },
        Divergence::Skew { alpha: Self::ALPHA },
        Divergence::SkewReverse { alpha: Self::ALPHA },
    ];

    /// The divergence's name in the command and the benchmarks, for example `"skew-reverse"`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Divergence::Forward => "forward",
            Divergence::Reverse => "reverse",
            Divergence::Js { .. } => "js",
            Divergence::Skew { .. } => "skew",
            Divergence::SkewReverse { .. } => "skew-reverse",
        }
    }

    /// Refuses a parameter outside of its range.
    pub(crate) fn check(self) -> Result<()> {
        match self {
            Divergence::Forward | Divergence::Reverse => Ok(()),
            Divergence::Js { beta } => Range::Fraction.check("beta", beta),
            Divergence::Skew { alpha } | Divergence::SkewReverse { alpha } => {
                Range::Fraction.check("alpha", alpha)
            }
        }
    }

    /// The same divergence; one that is `Forward` or `Reverse` by another name is called so. `Js`
    /// then has 0 < β < 1, and the skews have α > 0.
    pub(super) fn plainest(self) -> Self {
        match self {
            Divergence::Js { beta: 0.0 } | Divergence::Skew { alpha: 0.0 } => Divergence::Forward,
            Divergence::Js { beta: 1.0 } | Divergence::SkewReverse { alpha: 0.0 } => {
                Divergence::Reverse
            }
            other => other,
        }
    }
}
