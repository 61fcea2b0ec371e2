// Computes   RRD's KL(p‖q) of the rows whose student is near its teacher, and the mean over all
//            rows. The difference of two log-sums is lost in rounding there. With v = y/τ_t − z/τ_s
//            and d_k = ⟨v, key_k⟩ less its mean under p, log p_k − log q_k is d_k + KL. So
//              KL = log(1 + Σ p (e^−d − 1 + d)),
//            and no term is negative.
// Algorithm  For each tile of 64 rows with a row that is near, and each split of the keys:
//
//              for each tile of 64 keys:
//                logits, differences ← ⟨y, key⟩/τ_t, ⟨v, key⟩
//                p ← 2^(logit − log-sum);  d ← difference − mean
//                P += p;  F += p d;  S += p (e^−d − 1 + d)
//              store P, F, S
//            the last block: KL ← log(1 + (S − F)/P) + F/P of each near row; their mean
//
//            P is 1 and F is 0, but for rounding. The formula is exact whatever they are.
// Buffers    student, teacher [N, D] f32, f16 or bf16, aligned to their element; keys and state as
//            in attention_simt; rows [N], losses [2, N] f64 as rrd writes them, in which the KL
//            of near rows is replaced; sums [splits, N];
//            any_near: whether rrd found a near row, 0 after the launch; value [2] f32.
// Passes     The last: attention, rrd, this. One launch. It returns at once if no row is near.
// Grid       ⌈N/64⌉ × splits: 64 rows, whole tiles of 64 keys.
// Block      256 threads, which lie over the 64 × 64 logits as in attention_simt.
// Shared     28 KiB: 32 elements of 64 rows y, of 64 rows v and of 64 keys, (32 + 4) f32 each.
// Registers  at most 128 (two blocks a multiprocessor).
// Resident   relata_rrd_divergence_f32 2 of 256 threads
// Work       4 N K D flop for the tiles with a near row, and 2 N K exponentials.
// Floor      Arithmetic: 2 N K D FFMA.
// Numerics   v is formed in f64 from the rows as they came, and then rounded. So it has all its
//            digits, however close the rows are.
// Order      Fixed: by element, by key, by tile of keys, by split. The last block adds up the rows.
// Reference  src/reference/divergence.rs; docs/maths/rrd.md.
#include "common/attention.cuh"
#include "common/collective.cuh"
#include "common/divergence.cuh"
#include "common/stage.cuh"

namespace {

constexpr unsigned THREADS = 256;
constexpr unsigned ROWS = 64;
// Elements of rows and keys in shared memory at a time, and the distance between rows.
constexpr unsigned DEPTH = 32, STRIDE = DEPTH + 4;

// P, F and S of a row, over some keys. Mirrored in src/gpu/contrastive/arguments.rs.
struct DivergenceSums {
    double weight, first_order, excess;

    DEVICE DivergenceSums operator+(const DivergenceSums& other) const {
        return {weight + other.weight, first_order + other.first_order, excess + other.excess};
    }
};
ARGUMENTS(DivergenceSums, weight, first_order, excess);

// Mirrored in src/gpu/contrastive/arguments.rs.
struct Arguments {
    // Keys, state, counts and pitch. It has no stats and no means.
    AttentionCommon common;
    const void* student;
    const void* teacher;
    const NearRow* rows;
    double* losses;
    DivergenceSums* sums;
    float* value;
    unsigned* counter;
    uint32_t* any_near;
    uint32_t f16_keys;
    uint32_t padding;
};
ARGUMENTS(Arguments, common, student, teacher, rows, losses, sums, value, counter, any_near,
          f16_keys, padding);

// The rows of a tile.
struct TileRows {
    NearRow* rows;  // [ROWS], in shared memory

    // Before: nothing. After: the rows are in shared memory, and every thread knows whether one of
    // them is near. A row that is not near has a log-sum of ∞, so that its weights are 0.
    DEVICE bool load(const Arguments& arguments, uint32_t first) const {
        const uint32_t count = arguments.common.row_count, row = first + threadIdx.x;
        const bool near =
            threadIdx.x < ROWS && row < count && arguments.losses[count + row] < NEAR_KL;
        if (threadIdx.x < ROWS) {
            NearRow found = {};
            if (near) found = arguments.rows[row];
            if (!near) found.log_sum = infinity();
            rows[threadIdx.x] = found;
        }
        // It holds barriers.
        return block_reduce<THREADS>(near ? 1.0f : 0.0f, Max()) > 0;
    }

    // Stages columns of y/τ_t and v. Rows and columns beyond the end are zeros.
    template <typename T>
    DEVICE void stage(const Arguments& arguments, uint32_t first, uint32_t column, float* logits,
                      float* differences) const {
        const uint32_t count = arguments.common.row_count, dim = arguments.common.dim;
        const T* x = static_cast<const T*>(arguments.student);
        const T* y = static_cast<const T*>(arguments.teacher);
        UNROLL_BY(2)
        for (unsigned i = threadIdx.x; i < ROWS * DEPTH; i += THREADS) {
            const unsigned row = i / DEPTH, d = i % DEPTH;
            double scaled_x = 0, scaled_y = 0;
            if (first + row < count && column + d < dim) {
                const uint64_t at = (static_cast<uint64_t>(first) + row) * dim + column + d;
                scaled_x = static_cast<double>(to_float(x[at])) * rows[row].factors[0];
                scaled_y = static_cast<double>(to_float(y[at])) * rows[row].factors[1];
            }
            logits[row * STRIDE + d] = static_cast<float>(scaled_y);
            differences[row * STRIDE + d] = static_cast<float>(scaled_y - scaled_x);
        }
    }
};

// The products of a thread's 4 rows with its 4 keys.
struct Products {
    float logits[4][4] = {}, differences[4][4] = {};

    // Adds DEPTH columns. `r` and `c` are the thread's group of rows and of keys.
    DEVICE void add(unsigned r, unsigned c, const float* teacher, const float* difference,
                    const float* keys) {
        UNROLL_BY(1)
        for (unsigned d = 0; d < DEPTH; d += 4) {
            float y[4][4], v[4][4], key[4][4];
            UNROLL
            for (unsigned i = 0; i < 4; i++) {
                load_chunk(teacher + (r + 16 * i) * STRIDE + d, y[i]);
                load_chunk(difference + (r + 16 * i) * STRIDE + d, v[i]);
                load_chunk(keys + (c + 16 * i) * STRIDE + d, key[i]);
            }
            UNROLL
            for (unsigned e = 0; e < 4; e++) {
                UNROLL
                for (unsigned i = 0; i < 4; i++) {
                    UNROLL
                    for (unsigned j = 0; j < 4; j++) {
                        logits[i][j] = fmaf(y[i][e], key[j][e], logits[i][j]);
                        differences[i][j] = fmaf(v[i][e], key[j][e], differences[i][j]);
                    }
                }
            }
        }
    }
};

// Sums over this thread's keys, in f32.
struct ThreadSums {
    float weight = 0, first_order = 0, excess = 0;

    // Adds a key: its logit in base 2 less the row's log-sum, and the difference less its mean.
    DEVICE void add(float logit, float difference) {
        const float p = exp2_fast(logit), d = difference * LN_2, first = p * d;
        // p e^−d is a weight of the student's.
        const float far = exp2_fast(logit - difference) - p + first;
        weight += p;
        first_order += first;
        excess += fabsf(d) < 0.5f ? p * excess_near(d) : far;
    }

    // The sums of the eight lanes that hold the same rows, in each of them.
    DEVICE DivergenceSums of_row() const {
        return warp_reduce<8>(
            DivergenceSums{static_cast<double>(weight), static_cast<double>(first_order),
                           static_cast<double>(excess)},
            Sum());
    }
};

// The exact KL of the near rows, which replaces that in `losses`, and the mean over all rows. The
// last block calls it.
DEVICE void finish(const Arguments& arguments) {
    const uint32_t count = arguments.common.row_count, splits = gridDim.y;
    double total = 0;
    for (uint32_t row = threadIdx.x; row < count; row += THREADS) {
        double kl = arguments.losses[count + row];
        if (kl < NEAR_KL) {
            DivergenceSums sums = {};
            for (uint32_t s = 0; s < splits; s++)
                sums = sums + arguments.sums[static_cast<uint64_t>(s) * count + row];
            const double first = sums.first_order / sums.weight;
            const double exact = log1p((sums.excess - sums.first_order) / sums.weight) + first;
            // Rows so long that a product over τ overflows keep what they have. The rounding of
            // what is 0 may be negative.
            if (exact - exact == 0) kl = exact < 0 ? 0 : exact;
            arguments.losses[count + row] = kl;
        }
        total += kl;
    }
    total = block_reduce<THREADS>(total, Sum());
    if (threadIdx.x > 0) return;
    arguments.value[1] = static_cast<float>(total / count);
    *arguments.any_near = 0;
}

template <typename T>
DEVICE void rrd_divergence(const Arguments& arguments) {
    if (*arguments.any_near == 0) return;
    const AttentionCommon& common = arguments.common;
    SHARED_ARRAY(float, teacher, ROWS * STRIDE);
    SHARED_ARRAY(float, difference, ROWS * STRIDE);
    SHARED_ARRAY(float, keys, KEYS * STRIDE);
    SHARED_ARRAY(NearRow, near_rows, ROWS);
    SHARED_ARRAY(DivergenceSums, halves, 2 * ROWS);
    const uint32_t first_row = blockIdx.x * ROWS;
    const unsigned r = 4 * (warp_index() / 2) + lane_index() / 8,
                   c = 8 * (warp_index() % 2) + lane_index() % 8;
    const TileRows rows = {near_rows};
    // All threads have read `any_near` before the last block clears it: its ticket comes after.
    if (rows.load(arguments, first_row)) {
        const KeyRange range = keys_of_split(common);
        ThreadSums sums[4];
        for (uint32_t first_key = range.begin; first_key < range.end; first_key += KEYS) {
            Products products;
            for (uint32_t column = 0; column < common.dim; column += DEPTH) {
                // Load rows and keys
                block_barrier();
                rows.stage<T>(arguments, first_row, column, teacher, difference);
                if (arguments.f16_keys) {
                    stage_rows<THREADS, KEYS, DEPTH>(keys, STRIDE,
                                                     static_cast<const f16*>(common.keys),
                                                     common.key_pitch, first_key, range.end, column);
                } else {
                    stage_rows<THREADS, KEYS, DEPTH>(keys, STRIDE,
                                                     static_cast<const float*>(common.keys),
                                                     common.key_pitch, first_key, range.end, column);
                }
                block_barrier();
                // Multiply
                products.add(r, c, teacher, difference, keys);
            }
            // Accumulate
            UNROLL
            for (unsigned i = 0; i < 4; i++) {
                const NearRow& row = near_rows[r + 16 * i];
                UNROLL
                for (unsigned j = 0; j < 4; j++) {
                    if (first_key + c + 16 * j < range.end)
                        sums[i].add(products.logits[i][j] - row.log_sum,
                                    products.differences[i][j] - row.mean);
                }
            }
        }
        // Store: two warps hold the keys of a row.
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            const DivergenceSums of_row = sums[i].of_row();
            if (lane_index() % 8 == 0) halves[warp_index() % 2 * ROWS + r + 16 * i] = of_row;
        }
        block_barrier();
        const uint32_t row = first_row + threadIdx.x;
        if (threadIdx.x < ROWS && row < common.row_count)
            arguments.sums[static_cast<uint64_t>(blockIdx.y) * common.row_count + row] =
                halves[threadIdx.x] + halves[ROWS + threadIdx.x];
    }
    if (is_last_block(arguments.counter)) finish(arguments);
}

}  // namespace

EXPORT_KERNEL(relata_rrd_divergence_f32, THREADS, 2, Arguments, rrd_divergence<float>);
EXPORT_KERNEL(relata_rrd_divergence_f16, THREADS, 2, Arguments, rrd_divergence<f16>);
EXPORT_KERNEL(relata_rrd_divergence_bf16, THREADS, 2, Arguments, rrd_divergence<bf16>);
