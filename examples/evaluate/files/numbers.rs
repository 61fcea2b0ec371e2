//! How files store numbers.

use std::fmt;

use half::{bf16, f16};
use relata::DType;

use super::Holds;

/// How a file stores a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    Float(DType),
    /// Integers by their bytes.
    Signed(u8),
    Unsigned(u8),
}

impl Stored {
    pub(super) fn bytes(self) -> u64 {
        match self {
            Stored::Float(DType::F64) => 8,
            Stored::Float(DType::F32) => 4,
            Stored::Float(_) => 2,
            Stored::Signed(bytes) | Stored::Unsigned(bytes) => u64::from(bytes),
        }
    }

    pub(super) fn is(self, holds: Holds) -> bool {
        match holds {
            Holds::Rows | Holds::Weights => matches!(self, Stored::Float(_)),
            Holds::Classes | Holds::Labels => !matches!(self, Stored::Float(_)),
        }
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stored::Float(dtype) => dtype.fmt(f),
            Stored::Signed(bytes) => write!(f, "i{}", 8 * bytes),
            Stored::Unsigned(bytes) => write!(f, "u{}", 8 * bytes),
        }
    }
}

/// Appends the elements in some bytes, a whole number of them.
pub(super) type Decode<V> = fn(&[u8], Stored, &mut Vec<V>);

/// Appends the elements in `bytes`, a whole number of them. Integers too large for f64 to hold are
/// rounded: no class is as large.
pub(super) fn decode(bytes: &[u8], stored: Stored, values: &mut Vec<f64>) {
    fn each<const B: usize>(bytes: &[u8], values: &mut Vec<f64>, value: fn([u8; B]) -> f64) {
        values.extend(
            bytes
                .as_chunks::<B>()
                .0
                .iter()
                .map(|&element| value(element)),
        );
    }
    match stored {
        Stored::Float(DType::F64) => each(bytes, values, f64::from_le_bytes),
        Stored::Float(DType::F32) => each(bytes, values, |b| f64::from(f32::from_le_bytes(b))),
        Stored::Float(DType::F16) => each(bytes, values, |b| f16::from_le_bytes(b).to_f64()),
        Stored::Float(_) => each(bytes, values, |b| bf16::from_le_bytes(b).to_f64()),
        Stored::Signed(size) | Stored::Unsigned(size) => {
            let is_signed = matches!(stored, Stored::Signed(_));
            let integers = bytes.chunks_exact(usize::from(size));
            values.extend(integers.map(|integer| decode_integer(integer, is_signed)));
        }
    }
}

/// The same of integers, as their bits: f64 does not tell all large ones apart.
pub(super) fn decode_bits(bytes: &[u8], stored: Stored, values: &mut Vec<u64>) {
    let integers = bytes.chunks_exact(stored.bytes() as usize);
    values.extend(integers.map(|integer| u64::from_le_bytes(widened(integer))));
}

/// At most 8 bytes, followed by zeros.
fn widened(bytes: &[u8]) -> [u8; 8] {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    wide
}

/// An integer of at most 8 bytes.
fn decode_integer(bytes: &[u8], is_signed: bool) -> f64 {
    let wide = widened(bytes);
    if is_signed {
        // To the top and back again, which repeats the sign.
        let unused = 64 - 8 * bytes.len();
        (i64::from_le_bytes(wide) << unused >> unused) as f64
    } else {
        u64::from_le_bytes(wide) as f64
    }
}
