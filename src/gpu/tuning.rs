//! Tunables of the plans: tile sizes, thresholds and costs, each with its origin.
//!
//! A number is "fixed by" a kernel where the kernel's code has the same number: change both. It is
//! "counted" where it comes from machine code (SASS, nvcc 13.0), and a "guess" where nothing has
//! confirmed it on a GPU.

/// RRD and InfoNCE: the attention of rows to keys.
pub(crate) mod contrastive {
    /// Keys in a tile. Fixed by `KEYS` in kernels/common/attention.cuh.
    pub(crate) const KEYS: usize = 64;
    /// The most splits of the keys. Fixed by `MAX_SPLITS` in kernels/common/attention_merge.cuh:
    /// the last pass has shared memory for so many weights.
    pub(crate) const MAX_SPLITS: usize = 512;
    /// Rows of a block of kernels/attention_rows.cu. Fixed by its 4 warps.
    pub(crate) const PREPARED_ROWS_PER_BLOCK: u32 = 4;

    /// kernels/attention_mma.cu. Its rows and columns follow from its registers.
    pub(crate) mod mma {
        /// Rows of a block for rows of up to 128 elements. Fixed by 4 warps of `TILES` = 2 tiles.
        pub(crate) const ROWS: usize = 128;
        /// Rows of a block for wider rows. Fixed by `TILES` = 1: the means alone take 128
        /// registers.
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

    /// kernels/rrd_divergence.cu.
    pub(crate) mod divergence {
        /// Rows of a block. Fixed.
        pub(crate) const ROWS: usize = 64;
        /// Blocks of a multiprocessor. Counted, and checked by `Resident` in the kernel's header.
        pub(crate) const BLOCKS: usize = 2;
        /// The most splits of the keys. Guess: the last block adds up so many for each row.
        pub(crate) const MAX_SPLITS: usize = 64;
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
        /// The means of one split of a block: they are written, and the last pass reads them.
        /// Guess: L2 takes 128 means of 128 elements in about one 64th of the time of a tile.
        pub(crate) const MERGE: usize = 1;
        /// The most splits, as a multiple of what fills the GPU once. Guess.
        pub(crate) const MAX_WAVES: usize = 4;
    }
}

/// KD: the softmax of logits.
pub(crate) mod logits {
    /// Bytes of a chunk, the widest load. Fixed by `Bytes16` in kernels/common/element.cuh.
    pub(crate) const CHUNK: usize = 16;
    /// The most chunks of a thread of a short row: 40 KiB a block. Longer rows take bytes, and not
    /// blocks. Counted.
    pub(crate) const MAX_SHORT: usize = 5;
    /// Blocks of a short row that a multiprocessor holds by registers, 64 a thread. Shared memory
    /// leaves room for as many. Counted.
    pub(crate) const BLOCKS: usize = 4;
    /// Bytes of shared memory for the kernels' reductions, 256 or 384, rounded up. Counted.
    pub(crate) const REDUCTIONS: usize = 1024;
}

/// Towers: kernels/towers_log_sums.cu, towers_rows.cu and towers_gradient.cu.
pub(crate) mod towers {
    /// Rows and keys of a tile. Fixed by `TILE` in kernels/common/towers.cuh.
    pub(crate) const TILE: usize = 64;
    /// Columns of the gradient of a block. Fixed by `COLUMNS`.
    pub(crate) const COLUMNS: usize = 128;
    /// Rows of a block of towers_rows. Fixed by its 8 warps.
    pub(crate) const ROWS_PER_BLOCK: usize = 8;
    /// Blocks of a multiprocessor: `Resident` in the kernels' headers.
    pub(crate) const BLOCKS: usize = 2;
}

/// Sampled keys: kernels/sampled_products.cu and sampled_gradient.cu.
pub(crate) mod sampled {
    /// Columns of the gradient of a block. Fixed by `COLUMNS` in kernels/sampled_gradient.cu.
    pub(crate) const COLUMNS: usize = 128;
    /// Blocks of a multiprocessor. Guess: twice what `EXPORT_KERNEL` asks for, as keys of other
    /// blocks are not equally near.
    pub(crate) const BLOCKS: usize = 8;
    /// Keys of a split, at least. Guess: so that a block does not read its row for less.
    pub(crate) const LEAST_KEYS_OF_SPLIT: usize = 128;
}

/// The order of pairs: kernels/pairwise_order.cu.
pub(crate) mod order {
    /// Pairs of a block. Fixed by `OWN`.
    pub(crate) const PAIRS_PER_BLOCK: usize = 64;
    /// The most rows. Every pair is compared with every pair: 7e13 comparisons of 7 instructions, 15
    /// seconds of an H200 by the count. Coefficients are whole numbers below 2^23, so f32 holds them.
    pub(crate) const MAX_ROWS: usize = 4096;
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

/// RKD: the angles of triples, and the distances of pairs.
pub(crate) mod triplet {
    /// Side of the tiles in which matrices over pairs of rows are stored. Fixed by `rkd::TILE` in
    /// kernels/common/rkd.cuh.
    pub(crate) const TILE: usize = 64;

    /// How far the fast path, in f32, is trusted. Its error must stay within twice the error of the
    /// definition in f32.
    pub(crate) mod trust {
        /// For angles: the longest length over the shortest. The law of cosines loses accuracy by
        /// about this factor, and if lengths are alike the error stays within the bound. From
        /// docs/decisions/0008; tested in the emulator, not measured on a GPU.
        pub(crate) const SPREAD_ANGLE: f32 = 1.75;
        /// For distances: they only have to stay within the range of f32.
        pub(crate) const SPREAD_DISTANCE: f32 = 1e15;
        /// The least mean penalty of angles: below it, the difference of the cosines is mostly
        /// rounding. From docs/decisions/0008; tested in the emulator, not measured on a GPU.
        pub(crate) const PENALTY: f64 = 1e-4;
    }

    /// kernels/rkd_angle.cu: triples by groups of three.
    pub(crate) mod groups {
        /// Bytes of shared memory of a block, fast. Fixed, and checked by a `static_assert` there.
        pub(crate) const SHARED: u32 = 41_600;
        /// The same of the accurate kernel.
        pub(crate) const SHARED_ACCURATE: u32 = 58_496;
        /// Vertices that a block takes at a time. Fixed by `VERTICES`.
        pub(crate) const VERTICES: usize = 4;
        /// Blocks of the fast kernel that a multiprocessor holds. Counted, and checked by
        /// `Resident` in the kernel's header.
        pub(crate) const RESIDENT: usize = 2;
        /// The most partial buffers of a tile, on average. More of them make more blocks, which
        /// balance better, and take more memory: 2 N² bytes each. This limit holds for any size and
        /// means at most 55 bytes a pair of rows, while the memory of the papers' code grows as N³.
        /// By the cost model: with 16, some sizes up to 4096 would take half as long again.
        pub(crate) const MAX_BUFFERS: usize = 24;
        /// The most tiles of partial buffers up to N = 512, where the papers' code needs least
        /// memory: tiles of 16 KiB, 9.4 MB in all, 16 partial buffers at N = 512.
        pub(crate) const MAX_SMALL_TILES: usize = 16 * 36;
        /// The most parts of a group's vertices. By the cost model: no size up to 4096 that was
        /// tried would take more.
        pub(crate) const MAX_PARTS: usize = 8;
        /// The cost of a pair of tiles besides its triples, in vertices: a block fills registers,
        /// and clears a partial buffer and adds to it. Guess, not measured on a GPU.
        pub(crate) const OVERHEAD: usize = 2;
        /// Tiles of partial buffers that are cleared and read again in the time of one vertex and
        /// one tile. That time is 1200 cycles, counted, where two blocks share a multiprocessor;
        /// the memory's 4 TB/s are a guess, not measured on a GPU.
        pub(crate) const TILES_PER_STEP: usize = 64;
    }

    /// kernels/rkd_angle_small_batch.cu, and when it is used.
    pub(crate) mod small_batch {
        /// The most rows of a small batch. Guess, not measured on a GPU: up to this size launch
        /// overhead dominates. So we use the f64 path directly, with two launches fewer and smaller
        /// tiles.
        pub(crate) const MAX_ROWS: usize = 256;
        /// GPUs whose f64 is at most this many times slower than f32 always take the small-batch
        /// path. Separates GPUs whose f64 is 2 times slower from those where it is 32 or 64 times
        /// slower (CUDA programming guide, arithmetic throughput).
        pub(crate) const FAST_F64: u32 = 4;
        /// On other GPUs the lengths in f64 may take this many cycles, 13 µs at 2.5 GHz. That is
        /// more than the two launches and the f32 pass that they save. Guess, not measured on a
        /// GPU.
        pub(crate) const MAX_CYCLES: u64 = 1 << 15;
        /// f32 operations of a multiprocessor in a cycle. From the CUDA programming guide.
        pub(crate) const F32_LANES: u64 = 128;
        /// Ends of a tile. Fixed by `SIDE` in the kernel.
        pub(crate) const SIDE: usize = super::TILE / 2;
        /// Bytes of shared memory of a block. Fixed, and checked by a `static_assert` there.
        pub(crate) const SHARED: u32 = 58_368;
        /// Vertices that a block takes at a time. Fixed by `VERTICES`.
        pub(crate) const VERTICES: usize = 4;
        /// The cost of a block besides its vertices, in steps of four: it loads the first edges and
        /// stores its sums. Guess, not measured on a GPU.
        pub(crate) const OVERHEAD: usize = 2;
        /// Tiles of partial buffers that are read again in the time of a step. Guess, not measured
        /// on a GPU.
        pub(crate) const TILES_PER_STEP: usize = 256;
        /// Tiles of the relation: their side, and the cycles that one takes for 512 dimensions.
        /// Sides are fixed by `SmallTile` in kernels/common/pair_tile.cuh. Cycles are counted in
        /// SASS (sm_90a, nvcc 13.0) as issue slots.
        pub(crate) const RELATION_TILES: [(usize, usize); 2] = [(8, 2356), (12, 3632)];
    }

    /// kernels/rkd_relation.cu, but for small batches: sides of the tiles, the largest first.
    /// Fixed.
    pub(crate) const RELATION_SIDES: [usize; 3] = [64, 32, 16];

    /// kernels/rkd_coefficients.cu.
    pub(crate) mod coefficients {
        /// Sides of the tiles, the largest first. Fixed.
        pub(crate) const SIDES: [usize; 2] = [32, 16];
        /// Blocks of a multiprocessor. Counted, and checked by `Resident` in the kernel's header.
        pub(crate) const RESIDENT: usize = 4;
    }

    /// kernels/contraction.cu: the rows of a block, the rows that it sums over at a time, and the
    /// cycles that these take. Rows are fixed. Cycles are counted in SASS (sm_90a, nvcc 13.0) as
    /// issue slots.
    pub(crate) const CONTRACTION_TILES: [(usize, usize, usize); 3] =
        [(64, 32, 2630), (16, 64, 1550), (8, 64, 1000)];
    /// Dimensions of a block of the contraction. Fixed by `DIMENSIONS`.
    pub(crate) const CONTRACTION_DIMENSIONS: usize = 64;
}
