//! Tunables of the plans: tile sizes, thresholds and costs, each with its origin.
//!
//! A number is "fixed by" a kernel where the kernel's code has the same number: change both. It is
//! "counted" where it comes from machine code (SASS, nvcc 13.0), and a "guess" where nothing has
//! confirmed it on a GPU.

/// RRD and InfoNCE: the attention of rows to keys.
pub(crate) mod contrastive {
    /// Keys in a tile. Fixed by `KEYS` in kernels/common/attention.cuh.
    pub(crate) const KEYS: usize = 64;
    /// The most splits of the keys. Fixed by `MAX_SPLITS` in kernels/common/attention_merge.cuh: the
    /// last pass has shared memory for so many weights.
    pub(crate) const MAX_SPLITS: usize = 512;
    /// Rows of a block of kernels/attention_rows.cu. Fixed by its 4 warps.
    pub(crate) const PREPARED_ROWS_PER_BLOCK: u32 = 4;

    /// kernels/attention_mma.cu. Its rows and columns follow from its registers.
    pub(crate) mod mma {
        /// Rows of a block for rows of up to 128 elements. Fixed by 4 warps of `TILES` = 2 tiles.
        pub(crate) const ROWS: usize = 128;
        /// Rows of a block for wider rows. Fixed by `TILES` = 1: the means alone take 128 registers.
        pub(crate) const ROWS_WIDE: usize = 64;
        /// Columns of the mean of a block. Fixed: the widest kernel keeps a whole row.
        pub(crate) const COLUMNS: usize = 256;
        /// f16 elements between the rows in shared memory, in addition to the width. Fixed by
        /// `StagedRows::STRIDE`.
        pub(crate) const PADDING: usize = 8;
        /// Tiles of keys in shared memory: one to read, and one on its way. Fixed.
        pub(crate) const STAGES: usize = 2;
        /// Blocks of a multiprocessor by registers, for rows of up to 64 elements. Counted, and
        /// checked by `Resident` in the kernel's header.
        pub(crate) const BLOCKS_NARROW: usize = 3;
        /// Blocks of a multiprocessor by registers, for wider rows. Counted in the same way.
        pub(crate) const BLOCKS: usize = 2;
    }

    /// kernels/attention_simt.cu.
    pub(crate) mod simt {
        /// Rows of a block. Fixed.
        pub(crate) const ROWS: usize = 64;
        /// Columns of the mean of a block. Fixed.
        pub(crate) const COLUMNS: usize = 128;
        /// Blocks of a multiprocessor by registers. Counted, and checked by `Resident` in the
        /// kernel's header.
        pub(crate) const BLOCKS: usize = 2;
    }

    /// Bytes of shared memory that the driver takes for itself in each block. From the CUDA
    /// programming guide, for compute capability 8.0 and later.
    pub(crate) const SYSTEM_SHARED: usize = 1024;

    /// The cost of a split, in 64ths of the time that a block takes for a tile of keys.
    pub(crate) mod cost {
        /// A tile of keys: the unit.
        pub(crate) const TILE: usize = 64;
        /// The start of a block. Guess: as long as a tile.
        pub(crate) const START: usize = TILE;
        /// The means of one split of a block: they are written, and the last pass reads them. Guess:
        /// L2 takes 128 means of 128 elements in about one 64th of the time of a tile.
        pub(crate) const MERGE: usize = 1;
        /// The most splits, as a multiple of what fills the GPU once. Guess.
        pub(crate) const MAX_WAVES: usize = 4;
    }
}

/// KD: the softmax of logits.
pub(crate) mod logits {
    /// Bytes of a chunk, the widest load. Fixed by `Bytes16` in kernels/common/element.cuh.
    pub(crate) const CHUNK: usize = 16;
    /// The most chunks that a thread of a short row keeps: 40 KiB a block. Then the registers, 64 a
    /// thread, hold a multiprocessor to four blocks, and not the shared memory. Counted.
    pub(crate) const MAX_SHORT: usize = 5;
    /// Bytes of shared memory for the kernels' reductions, 256 or 384, rounded up. Counted.
    pub(crate) const REDUCTIONS: usize = 1024;
}

/// The queue of keys on a device.
pub(crate) mod queue {
    /// Elements to which a key's pitch is rounded up. Fixed: keys are copied 16 bytes at a time, in
    /// f16 and in f32.
    pub(crate) const PITCH: usize = 8;
    /// Keys of a block of kernels/enqueue.cu. Fixed by its 4 warps.
    pub(crate) const KEYS_PER_BLOCK: u32 = 4;
}

/// The public relation matrices.
pub(crate) mod relation {
    /// Rows of a tile of kernels/relation.cu. Fixed.
    pub(crate) const SIDE: usize = 64;
}
