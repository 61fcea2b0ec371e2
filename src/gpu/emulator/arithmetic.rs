//! How exactly the emulated GPU computes: its approximations and its tensor cores.

/// How the emulator rounds the functions that a GPU approximates: the exponential and the
/// logarithm of f32.
///
/// CUDA documents how far they may be off the nearest float: 2 and 1 units in the last place. A
/// function gives the same result for the same argument every time, whatever the
/// [seed](crate::Emulator::seed) of the schedule, as on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ApproximationErrors {
    /// As near as the CPU's library comes.
    #[default]
    None,
    /// Every result is as large as it may be.
    Up,
    /// Every result is as small as it may be.
    Down,
    /// Every result is off by anything up to what it may be. This seed and the argument decide.
    Hashed(u64),
}

/// The arithmetic of tensor cores: how many products they add at once, and how many bits they keep
/// behind the leading bit of the largest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TensorCores {
    products: u32,
    bits: u32,
}

impl TensorCores {
    /// Of compute capability 8.0 to 8.9.
    pub(super) const AMPERE: Self = TensorCores {
        products: 8,
        bits: 24,
    };
    /// Of compute capability 9.0 and 10.0.
    pub(super) const HOPPER: Self = TensorCores {
        products: 16,
        bits: 25,
    };
}

/// Mirrors `emulator::Arithmetic` in emulator/emulator.h.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Arithmetic {
    errors: u32,
    tensor_products: u32,
    tensor_bits: u32,
    padding: u32,
    seed: u64,
}

impl Arithmetic {
    pub(super) fn new(errors: ApproximationErrors, tensor_cores: TensorCores) -> Self {
        let (errors, seed) = match errors {
            ApproximationErrors::None => (0, 0),
            ApproximationErrors::Up => (1, 0),
            ApproximationErrors::Down => (2, 0),
            ApproximationErrors::Hashed(seed) => (3, seed),
        };
        Arithmetic {
            errors,
            tensor_products: tensor_cores.products,
            tensor_bits: tensor_cores.bits,
            padding: 0,
            seed,
        }
    }
}
