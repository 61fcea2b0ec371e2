//! What can be wrong with a call, message in terms of its arguments.

use std::time::Duration;

/// The result of a call that checks its arguments.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call was refused. Every variant names the argument, what was expected of it and what came;
/// nothing has been computed, written or enqueued when one is returned.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A buffer does not hold as many elements as its shape says.
    #[error("{argument}: expected {expected} elements, got {got}")]
    Length {
        /// The argument at fault.
        argument: &'static str,
        /// The number of elements its shape asks for.
        expected: usize,
        /// The number of elements it holds.
        got: usize,
    },
    /// A dimension differs from the one it has to agree with.
    #[error("{argument}: expected {expected}, got {got}")]
    Dimension {
        /// The dimension at fault, for example `"teacher rows"`.
        argument: &'static str,
        /// The size it has to have.
        expected: usize,
        /// The size it has.
        got: usize,
    },
    /// A dimension is zero, and the loss is not defined without it.
    #[error("{argument}: expected at least 1, got 0")]
    Empty {
        /// The dimension at fault, for example `"student_dim"`.
        argument: &'static str,
    },
    /// A loss that compares with a queue was given none.
    #[error("{argument}: expected {expected}, got none")]
    Missing {
        /// The argument that is missing.
        argument: &'static str,
        /// What should have come.
        expected: &'static str,
    },
    /// An argument the loss has no use for.
    #[error("this {loss} takes no {argument}")]
    Unexpected {
        /// The argument at fault.
        argument: &'static str,
        /// The loss that has no use for it.
        loss: &'static str,
    },
    /// A parameter is outside its range.
    #[error("{argument}: expected {expected}, got {}", number(*got))]
    Parameter {
        /// The parameter at fault, for example `"delta"`.
        argument: &'static str,
        /// The range it has to lie in.
        expected: &'static str,
        /// Its value.
        got: f64,
    },
    /// The checked mode, or a queue, found an element that is NaN or infinite.
    #[error("{argument}: expected finite values, got {got} at row {row}, column {column}")]
    NotFinite {
        /// The argument at fault.
        argument: &'static str,
        /// The first row that holds such an element, from 0.
        row: usize,
        /// The first such element in that row, from 0.
        column: usize,
        /// Its value.
        got: f64,
    },
    /// A dimension is larger than a loss or a GPU's kernels can count, or than a queue on a GPU has
    /// room for.
    #[error("{argument}: expected at most {most}, got {got}")]
    TooLarge {
        /// The dimension at fault.
        argument: &'static str,
        /// The most there can be.
        most: usize,
        /// How many there are.
        got: usize,
    },
    /// A kernel did what a kernel must not, and the emulator caught it: a bug in this crate.
    #[error("{kernel}: {fault}")]
    Kernel {
        /// The kernel's entry point.
        kernel: &'static str,
        /// What it did, and where.
        fault: String,
    },
    /// A name that stands for no loss.
    #[error("loss: expected one of {expected}, got {got:?}")]
    UnknownLoss {
        /// The names there are.
        expected: String,
        /// The name that came.
        got: String,
    },
    /// A loss has no parameter of this name and kind.
    #[error("{loss}: no parameter {name} takes {value}")]
    UnknownParameter {
        /// The loss.
        loss: &'static str,
        /// The name that came.
        name: String,
        /// The value that came.
        value: String,
    },
    /// The keys of a queue are stored otherwise than the loss takes its rows.
    #[error(
        "queue: {loss} takes {} rows, but the queue stores {} keys",
        normalized(*.normalize), normalized(!.normalize)
    )]
    QueueNormalization {
        /// The loss.
        loss: &'static str,
        /// Whether the loss normalises its rows.
        normalize: bool,
    },
    /// A queue is restored from one whose keys are stored otherwise.
    #[error(
        "queue: expected {} keys, got {} ones",
        normalized(*.normalize), normalized(!.normalize)
    )]
    OtherNormalization {
        /// Whether the queue stores normalised keys.
        normalize: bool,
    },
    /// A key is neither of length 1 nor zero, though the keys are said to be normalised.
    #[error("{argument}: expected rows of length 1 or 0, got length {} at row {row}", number(*got))]
    NotNormalized {
        /// The argument at fault.
        argument: &'static str,
        /// The first such row, from 0.
        row: usize,
        /// Its length.
        got: f64,
    },
    /// The workspace or the result does not fit in memory.
    #[error("out of memory: {argument} needs {bytes} bytes")]
    OutOfMemory {
        /// What the memory was for.
        argument: &'static str,
        /// How much was asked for; `usize::MAX` where the number itself overflows.
        bytes: usize,
    },
    /// A rank came with something else than rank 0. Every rank gets this same error.
    #[error("{argument}: expected {expected} on all ranks as on rank 0, got {got} on rank {rank}")]
    RankDiffers {
        /// The first rank that differs.
        rank: usize,
        /// What differs, for example `"loss"` or `"student_dim"`.
        argument: &'static str,
        /// What rank 0 has.
        expected: String,
        /// What that rank has.
        got: String,
    },
    /// A rank could not do its part. Every rank gets this same error, the one at fault too.
    #[error("rank {rank}: {why}")]
    RankFailed {
        /// The first rank that failed.
        rank: usize,
        /// The message of its error.
        why: String,
    },
    /// A rank is gone: it returned early, or it panicked. Every other rank gets this same error.
    #[error("rank {rank}: expected to take part in an exchange, got none: it has left")]
    RankLeft {
        /// The first rank that left.
        rank: usize,
    },
    /// A rank did not come to an exchange in time. Every rank gets this same error, the late one too.
    #[error("rank {rank}: expected to take part in an exchange within {}, got none", seconds(*.limit))]
    RankLate {
        /// The first rank that did not come.
        rank: usize,
        /// How long the others waited.
        limit: Duration,
    },
    /// An exchange between ranks failed, or did not give what it has to give.
    #[error("exchange between ranks: {why}")]
    Exchange {
        /// What the engine says, or what is wrong with what it gave.
        why: String,
    },
    /// This machine has no CUDA driver.
    #[error("cuda: expected NVIDIA's driver, got none: {why}")]
    NoDriver {
        /// What the system says.
        why: String,
    },
    /// There is no such GPU.
    #[error("cuda: no GPU {ordinal}: this machine has {gpus}, counted from 0")]
    NoSuchGpu {
        /// The GPU asked for.
        ordinal: usize,
        /// How many there are.
        gpus: usize,
    },
    /// The program holds no kernels that the GPU can run.
    #[error(
        "cuda: no kernels for {gpu} of compute capability {capability}: this program was built for \
         {built_for}; set RELATA_CUDA_TARGETS to build for others"
    )]
    UnsupportedGpu {
        /// The GPU's name.
        gpu: String,
        /// Its compute capability.
        capability: String,
        /// The targets that kernels were built for.
        built_for: String,
    },
    /// The driver is older than the kernels allow.
    #[error("cuda: expected a driver for CUDA {toolkit} or later, got one for CUDA {driver}")]
    OldDriver {
        /// The newest CUDA that the driver knows.
        driver: String,
        /// The release of CUDA that they need.
        toolkit: String,
    },
    /// The CUDA context that is current on this thread is not the one the evaluator was made in.
    #[error("cuda: expected the evaluator's context to be current, got {got}")]
    NoContext {
        /// What is.
        got: &'static str,
    },
    /// An address that is not one in the memory of the evaluator's GPU and context.
    #[error("{argument}: expected memory of the evaluator's context, got {got}")]
    ForeignMemory {
        /// The argument at fault.
        argument: &'static str,
        /// What lies there.
        got: String,
    },
    /// The CUDA driver refused or failed at something else.
    #[error("cuda: {during}: {message}")]
    Cuda {
        /// What the crate was doing; for a launch, the kernel.
        during: &'static str,
        /// The driver's number for it, a `CUresult`.
        code: u32,
        /// The driver's name for it, and its explanation.
        message: String,
    },
}

/// A number in as few digits as tell it from others: with an exponent where it would be hundreds of
/// zeros without.
fn number(number: f64) -> String {
    let digits = format!("{number:?}");
    digits.strip_suffix(".0").unwrap_or(&digits).to_owned()
}

fn seconds(limit: Duration) -> String {
    format!("{} s", number(limit.as_secs_f64()))
}

fn normalized(normalize: bool) -> &'static str {
    if normalize { "normalised" } else { "raw" }
}
