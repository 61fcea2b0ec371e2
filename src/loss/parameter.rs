//! A loss's parameters by name: their values, defaults and ranges.

use std::ops::RangeInclusive;

use super::divergence::Divergence;
use super::spec::Enqueue;
use crate::checks::{at_most, not_empty};
use crate::error::{Error, Result};

/// The value of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ParameterValue {
    /// A temperature, a weight, δ.
    Number(f64),
    /// On or off.
    Flag(bool),
    /// How many.
    Count(usize),
    /// When the batch enters the queue.
    Enqueue(Enqueue),
    /// How far two distributions are from one another, with its own parameter.
    Divergence(Divergence),
}

/// The numbers that a parameter can take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Range {
    /// Finite and above 0: δ.
    Positive,
    /// Finite and at least 0: a weight.
    NotNegative,
    /// τ or T. The bounds keep τ and 1/τ well within f32, where the fast paths compute.
    Temperature,
    /// From 0 to 1: α, β.
    Fraction,
    /// Finite: a bias.
    Finite,
}

impl Range {
    /// Refuses a number outside of the range.
    pub(crate) fn check(self, argument: &'static str, got: f64) -> Result<()> {
        let (inside, expected) = match self {
            Range::Positive => (got.is_finite() && got > 0.0, "a finite number above 0"),
            Range::NotNegative => (
                got.is_finite() && got >= 0.0,
                "a finite number of at least 0",
            ),
            Range::Temperature => (
                (1e-30..=1e30).contains(&got),
                "a finite number above 0 (from 1e-30 to 1e30)",
            ),
            Range::Finite => (got.is_finite(), "a finite number"),
            Range::Fraction => ((0.0..=1.0).contains(&got), "a number from 0 to 1"),
        };
        if inside {
            Ok(())
        } else {
            Err(Error::Parameter {
                argument,
                expected,
                got,
            })
        }
    }
}

/// A parameter of a loss: its name, and where its value is.
#[derive(Debug)]
pub(crate) struct Parameter<'a> {
    /// The name of the field. The command's option has hyphens for underscores.
    pub(crate) name: &'static str,
    slot: Slot<'a>,
}

#[derive(Debug)]
enum Slot<'a> {
    Number(&'a mut f64, Range),
    Flag(&'a mut bool),
    Count(&'a mut usize, RangeInclusive<usize>),
    Enqueue(&'a mut Enqueue),
    Divergence(&'a mut Divergence),
}

impl<'a> Parameter<'a> {
    pub(crate) fn number(name: &'static str, range: Range, at: &'a mut f64) -> Self {
        let slot = Slot::Number(at, range);
        Parameter { name, slot }
    }

    /// `delta`, of a Huber penalty.
    pub(crate) fn delta(at: &'a mut f64) -> Self {
        Self::number("delta", Range::Positive, at)
    }

    pub(crate) fn flag(name: &'static str, at: &'a mut bool) -> Self {
        let slot = Slot::Flag(at);
        Parameter { name, slot }
    }

    pub(crate) fn count(
        name: &'static str,
        range: RangeInclusive<usize>,
        at: &'a mut usize,
    ) -> Self {
        let slot = Slot::Count(at, range);
        Parameter { name, slot }
    }

    /// `normalize`.
    pub(crate) fn normalize(at: &'a mut bool) -> Self {
        Self::flag("normalize", at)
    }

    /// `enqueue`.
    pub(crate) fn enqueue(at: &'a mut Enqueue) -> Self {
        let slot = Slot::Enqueue(at);
        Parameter {
            name: "enqueue",
            slot,
        }
    }

    /// `divergence`.
    pub(crate) fn divergence(at: &'a mut Divergence) -> Self {
        let slot = Slot::Divergence(at);
        Parameter {
            name: "divergence",
            slot,
        }
    }

    pub(crate) fn value(&self) -> ParameterValue {
        match &self.slot {
            Slot::Number(at, _) => ParameterValue::Number(**at),
            Slot::Flag(at) => ParameterValue::Flag(**at),
            Slot::Count(at, _) => ParameterValue::Count(**at),
            Slot::Enqueue(at) => ParameterValue::Enqueue(**at),
            Slot::Divergence(at) => ParameterValue::Divergence(**at),
        }
    }

    /// Refuses a number outside of its range.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.slot {
            Slot::Number(at, range) => range.check(self.name, **at),
            Slot::Count(at, range) => {
                if *range.start() > 0 {
                    not_empty(self.name, **at)?;
                }
                at_most(self.name, *range.end(), **at)
            }
            Slot::Divergence(at) => at.check(),
            Slot::Flag(_) | Slot::Enqueue(_) => Ok(()),
        }
    }

    /// Sets the value; `false` if it is of another kind.
    pub(crate) fn set(&mut self, value: ParameterValue) -> bool {
        match (&mut self.slot, value) {
            (Slot::Number(at, _), ParameterValue::Number(value)) => **at = value,
            (Slot::Flag(at), ParameterValue::Flag(value)) => **at = value,
            (Slot::Count(at, _), ParameterValue::Count(value)) => **at = value,
            (Slot::Enqueue(at), ParameterValue::Enqueue(value)) => **at = value,
            (Slot::Divergence(at), ParameterValue::Divergence(value)) => **at = value,
            _ => return false,
        }
        true
    }
}
