// Computes   For every row and every split of the keys, with s_k = ⟨row, key_k⟩: the largest s, Σ_k
//            w_k and Σ_k w_k key_k, where w_k = 2^(scale (s_k − largest)). Where both rows of a
//            sample attend, also Σ_k v_k (s_k − largest) for each, with the teacher's weights v.
//            The matrix of rows × keys is never stored. In a batch the keys are the rows of the
//            teacher, each times a scale, and row i skips key i. `_half_pair` computes Σ_k (w_k −
//            v_k) key_k in the place of the student's Σ_k w_k key_k.
// Algorithm  It is FlashAttention-2 (arXiv 2307.08691) with the keys as values. For each warp:
//
//              rows ← rows of the batch in f16, each with its scale     (attention_stage.cuh)
//              largest ← −∞;  sum, moment, means ← 0
//              for each tile of 64 keys of the split:
//                wait for the tile; start the copy of the next tile
//                for each span of the tile:                             (32 or 64 keys)
//                  products ← rows · keysᵀ                              tensor cores
//                  next ← max(largest, products)
//                  decay ← 2^(scale (largest − next));  largest ← next
//                  w ← 2^(scale (products − largest))
//                  sum ← sum · decay + Σ w;  moment likewise
//                  means ← means · decay + w · keys                     tensor cores
//              store largest, sum, moment, means
//
// Tricks     1. The products' register layout is that of the left operand of the next product. So
//               the weights never leave the registers (see Block).
//            2. Rows go to f16 without rounding: they are multiplied by a power of two, and the
//               rest of 1/‖x‖ goes into the row's scale (common/attention_row.cuh).
//            3. With a queue, row g of a tile is the student's of a sample and row g + 8 the
//               teacher's of the same sample. So a lane has both weights of a key.
//            4. A weight is the sum of two f16, hi + lo, and takes two products with the key. See
//               Numerics.
//            5. A span's weighted keys are summed in fresh accumulators. The FFMA that adds them to
//               the means also multiplies the means by the decay. So rescaling costs nothing and
//               needs no branch.
//            6. Beyond the last key the last key is copied again. It changes no maximum, and a mask
//               in the last tile gives it a weight of 0.
//            7. TILES is 2: a key's fragments from shared memory then serve two tiles of rows. It
//               is 1 where WIDTH is 256, since there the means alone take 128 registers.
// Buffers    student, teacher [N, D] f16 or bf16, aligned to their element; keys [K, key_pitch]
//            f16: zero from D on, the pitch a multiple of 8, aligned to 16 bytes; key_scales [K]
//            f32, in a batch; state [2] u32 or null; stats [splits, R], means [splits, R,
//            mean_pitch] f32. R is N, or 2N where the teacher attends too.
// Passes     With a queue it is the first: this, then rrd and rrd_divergence, or info_nce. In a batch
//            attention_rows prepares the keys before it. It is one launch: rows to shared memory,
//            then one sweep over the split's keys. It is for f16 and bf16 rows taken at unit
//            length, D ≤ WIDTH; attention_simt does the rest.
// Grid       ⌈R / (64 TILES)⌉ × splits. A block has 4 warps of TILES tiles of 16 rows. A split is a
//            run of whole tiles of 64 keys.
// Block      128 threads. A warp holds 16 TILES rows over SPAN keys at a time. Lane 4g + t holds,
//            of each tile of 16 rows (common/mma.cuh):
//
//                        keys 8n + 2t, 8n + 2t + 1 of the span; the same columns of the mean
//              row g      sums[n][0..1]    means[n][0..1]
//              row g + 8  sums[n][2..3]    means[n][2..3]
//
// Shared     Dynamic: the rows and two stages of 64 keys, (64 TILES + 128)(WIDTH + 8) f16. The 8
//            put the 16 bytes of neighbouring rows on different banks, for ldmatrix. They also hold
//            the scales of the rows and of a batch's keys.
// Registers  at most 255 (two blocks a multiprocessor). The 64-wide kernels take 168 (three
//            blocks).
// Resident   relata_attention_mma_64 3 of 128 threads and 36864 bytes;
//            relata_attention_mma_128 2 of 128 threads and 69632 bytes;
//            relata_attention_mma_128_half_pair 2 of 128 threads and 69632 bytes;
//            relata_attention_mma_256 2 of 128 threads and 101376 bytes
// SASS       HMMA.16816.F32, LDSM.16.M88.4, LDGSTS
// Loop       relata_attention_mma_64 at most 21.9 x 64;
//            relata_attention_mma_64_half_pair at most 20.4 x 64;
//            relata_attention_mma_128 at most 22.9 x 64;
//            relata_attention_mma_128_half_pair at most 20.2 x 64;
//            relata_attention_mma_256 at most 34.7 x 32;
//            relata_attention_mma_256_half_pair at most 30.7 x 32.
//            The second factor is the number of weights that a lane makes from a tile of keys. The
//            loop of the products counts once in it, and so do the masks of the last tile.
// Work       6 R K D flop: the products, and each weight as a sum of two f16. `_half` takes 4 R K
//            D. R K exponentials. K D f16 are read, from L2, for each block of rows.
//            docs/kernels/rrd.md has the issue slots by WIDTH.
// Floor      Arithmetic: the loss as it is defined takes 4 R K D flop of tensor cores, and 6 as it
//            is computed here. docs/kernels/rrd.md has both in microseconds.
// Numerics   Products: products of f16 are exact. Tensor cores truncate, so the sums lose about an
//            ulp every 16 elements. That shifts all logits of a row alike, and its log-sum with
//            them, by about D/16 ulp over τ. So the loss and the divergence take their mean logits
//            from here, where they are shifted by the same amount, and not from the means.
//            Weights: a weight is w = hi + lo, two f16 of 2^15 w. That loses 2^-22 of it; one f16
//            would lose 2^-12. Near convergence O_s − O_t cancels, and this loss is what remains.
//            `_half_pair` rounds w − v and v to one f16 each instead. It loses 2^-12 of the
//            difference, however small the difference is.
//            Means: tensor cores truncate, so a tile's weighted keys have accumulators of their
//            own. Keys: those of a queue are as exact as f16, 2^-12, and no computation here can
//            undo that. The keys of a batch are the rows as they are: exact, with their lengths as
//            scales. Lengths: common/attention_row.cuh.
// Order      Fixed: by key, by tile. The last pass adds up the splits in order.
// Reference  src/reference/rrd.rs, src/reference/info_nce.rs.
#include "common/async.cuh"
#include "common/attention.cuh"
#include "common/attention_stage.cuh"
#include "common/collective.cuh"
#include "common/mma.cuh"

namespace {

using staging::Arguments, staging::RowSlot, staging::stage_rows, staging::StagedRows;
using staging::THREADS, staging::TILE, staging::WARPS;

// How weights go into the product with the keys.
enum Weights {
    // As sums of two f16.
    SPLIT,
    // As one f16.
    HALF,
    // As one f16: the student's weight minus the teacher's, and the teacher's weight.
    DIFFERENCE
};

// ptxas needs more registers for the same code for compute capability 10.0 and above. With 64 keys
// at a time the kernels of 128 columns and split weights would spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr bool FEW_REGISTERS = true;
#else
constexpr bool FEW_REGISTERS = false;
#endif

// The running softmax of the rows g and g + 8 that this lane shares, over the keys seen so far.
struct OnlineSoftmax {
    // From products to logits in base 2.
    float scale[2];
    // Product of the row, in all four lanes that hold the row.
    float largest[2] = {-infinity(), -infinity()};
    // Σ w over this lane's keys.
    float sum[2] = {};
    // Σ v (product − largest) over this lane's keys, with the weights v of row g + 8.
    float moment[2] = {};
};

// The state of one warp, and the steps of the algorithm above.
template <unsigned WIDTH, Weights WEIGHTS, bool BATCH>
struct WarpAttention {
    static constexpr unsigned TILES = WIDTH == 256 ? 1 : 2;
    static constexpr unsigned ROWS = TILE * TILES * WARPS;
    // Keys at a time: as many as registers hold weights for.
    static constexpr unsigned SPAN =
        WIDTH == 64 || (BATCH && TILES == 2) || (FEW_REGISTERS && TILES == 2 && WEIGHTS == SPLIT)
            ? KEYS / 2
            : KEYS;
    // The largest weight is 2^BIAS, so that the small ones keep their bits in f16. In a batch a
    // weight is multiplied by its key's scale, in (2^-15, 2^-14], which brings it back to 2^15.
    static constexpr float BIAS = BATCH ? 29 : 15;
    static constexpr float UNBIAS = BATCH ? 0x1p-29f : 0x1p-15f;
    // A masked key gets a product this far below the largest. As a logit in base 2 the distance is
    // MASK_LOGIT, which gives a weight of 0. As a product it is at least MASK_LEAST, since products
    // lie below 2^16 and must change by it, and at most MASK_MOST, which keeps it finite at any
    // temperature.
    static constexpr float MASK_LOGIT = 512, MASK_LEAST = 0x1p20f, MASK_MOST = 0x1p126f;

    // Elements at a time in a product: more where registers allow it. It divides the depth.
    static constexpr unsigned DEPTH = WEIGHTS == SPLIT && TILES == 2 ? 16 : 32;
    // Columns of the means at a time. A lane then has four independent chains of HMMA: each HMMA
    // waits for the one before it in its chain.
    static constexpr unsigned COLUMNS = 32 / TILES;

    const Arguments& arguments;
    const StagedRows<WIDTH> rows;
    StagedRows<WIDTH> keys;
    const uint32_t first_tile;  // of this warp
    OnlineSoftmax softmax[TILES];
    float means[TILES][WIDTH / 8][4] = {};
    float decays[TILES][2];
    // The weights as left operands of 16 keys each. Where they are split, `lo` is what `hi` leaves.
    uint32_t hi[TILES][SPAN / 16][4], lo[TILES][SPAN / 16][4];

    DEVICE WarpAttention(const Arguments& arguments, StagedRows<WIDTH> rows)
        : arguments(arguments),
          rows(rows),
          keys(rows),
          first_tile((blockIdx.x * WARPS + warp_index()) * TILES) {}

    DEVICE bool has_rows() const { return RowSlot(arguments, first_tile, 0, 0).exists(arguments); }

    DEVICE void load_scales() {
        UNROLL
        for (unsigned m = 0; m < TILES; m++) {
            UNROLL
            for (unsigned half = 0; half < 2; half++) {
                const unsigned tile = warp_index() * TILES + m;
                const unsigned row = tile * TILE + half * 8 + lane_index() / 4;
                const bool of_teacher = arguments.teacher != nullptr && half == 1;
                softmax[m].scale[half] =
                    arguments.per_temperature[of_teacher ? 1 : 0] * rows.scale(row);
            }
        }
    }

    // Adds the products of the warp's rows with the span's keys to `sums`.
    DEVICE void add_products(unsigned span, float (&sums)[TILES][SPAN / 8][4]) const {
        const unsigned lane = lane_index();
        const f16* row = rows.at(warp_index() * TILES * TILE + lane % 16, lane / 16 * 8);
        const f16* key = keys.at(span + lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8);
        UNROLL_BY(1)
        for (unsigned d = 0; d < rows.depth; d += DEPTH, row += DEPTH, key += DEPTH) {
            UNROLL
            for (unsigned e = 0; e < DEPTH; e += 16) {
                // Load the rows
                uint32_t a[TILES][4];
                UNROLL
                for (unsigned m = 0; m < TILES; m++)
                    load_matrices(a[m], row + m * TILE * StagedRows<WIDTH>::STRIDE + e);
                UNROLL
                for (unsigned n = 0; n < SPAN / 8; n += 2) {
                    // Load 16 keys
                    uint32_t b[4];
                    load_matrices(b, key + n * 8 * StagedRows<WIDTH>::STRIDE + e);
                    // Multiply
                    UNROLL
                    for (unsigned m = 0; m < TILES; m++) {
                        multiply_accumulate(sums[m][n], a[m], b[0], b[1]);
                        multiply_accumulate(sums[m][n + 1], a[m], b[2], b[3]);
                    }
                }
            }
        }
    }

    // The largest value of the four lanes that hold a row.
    DEVICE static float largest_of_row(float value) {
        value = fmaxf(value, shuffle_xor(value, 1));
        return fmaxf(value, shuffle_xor(value, 2));
    }

    // Turns the products of tile m into weights, and updates its running softmax. The factors that
    // rescale the earlier sums go to `decays`.
    DEVICE void compute_weights(unsigned m, unsigned span, uint32_t first_key, uint32_t end_key,
                                float (&products)[SPAN / 8][4]) {
        const unsigned g = lane_index() / 4, t = lane_index() % 4;
        OnlineSoftmax& run = softmax[m];
        // Scale and mask the keys of a batch
        if (BATCH) {
            UNROLL
            for (unsigned n = 0; n < SPAN / 8; n++) {
                UNROLL
                for (unsigned i = 0; i < 4; i++)
                    products[n][i] *= keys.scale(span + n * 8 + 2 * t + i % 2);
            }
        }
        if (BATCH) {
            UNROLL
            for (unsigned n = 0; n < SPAN / 8; n++) {
                UNROLL
                for (unsigned i = 0; i < 4; i++) {
                    const uint32_t key = first_key + n * 8 + 2 * t + i % 2;
                    const bool own = key == RowSlot(arguments, first_tile + m, g, i / 2).sample;
                    if (own || key >= end_key) products[n][i] = -infinity();
                }
            }
        }
        // Update the maximum
        float origin[2];
        UNROLL
        for (unsigned half = 0; half < 2; half++) {
            const float before = run.largest[half];
            float next = before;
            UNROLL
            for (unsigned n = 0; n < SPAN / 8; n++)
                next = fmaxf(next, fmaxf(products[n][2 * half], products[n][2 * half + 1]));
            next = largest_of_row(next);
            // The row may have met no key yet but its own, which it skips.
            origin[half] = next == -infinity() ? 0 : next;
            decays[m][half] = exp2_fast((before - origin[half]) * run.scale[half]);
            run.largest[half] = next;
            if (!BATCH && before > -infinity())
                run.moment[half] = fmaf(run.sum[1], before - next, run.moment[half]);
        }
        // Mask the keys beyond the end of a queue. There stands the last key again, which changes
        // no maximum. It gets a weight of 0, and its product stays finite.
        if (!BATCH && first_key + SPAN > end_key) {
            UNROLL
            for (unsigned half = 0; half < 2; half++) {
                const float distance =
                    fminf(fmaxf(MASK_LOGIT / run.scale[half], MASK_LEAST), MASK_MOST);
                const float masked = origin[half] - distance;
                UNROLL
                for (unsigned n = 0; n < SPAN / 8; n++) {
                    UNROLL
                    for (unsigned i = 0; i < 2; i++)
                        if (first_key + n * 8 + 2 * t + i >= end_key)
                            products[n][2 * half + i] = masked;
                }
            }
        }
        // Softmax
        float sum[2] = {}, moment[2] = {};
        UNROLL
        for (unsigned n = 0; n < SPAN / 8; n++) {
            float shifted[4], weights[4];
            UNROLL
            for (unsigned i = 0; i < 4; i++) {
                shifted[i] = products[n][i] - origin[i / 2];
                weights[i] = exp2_fast(fmaf(shifted[i], run.scale[i / 2], BIAS));
                sum[i / 2] += weights[i];
                if (BATCH) weights[i] *= keys.scale(span + n * 8 + 2 * t + i % 2);
            }
            UNROLL
            for (unsigned i = 0; i < 4 && !BATCH; i++)
                moment[i / 2] = fmaf(weights[2 + i % 2], shifted[i], moment[i / 2]);
            pack(weights, hi[m][n / 2] + n % 2 * 2, lo[m][n / 2] + n % 2 * 2);
        }
        UNROLL
        for (unsigned half = 0; half < 2; half++) {
            run.sum[half] = fmaf(run.sum[half], decays[m][half], sum[half]);
            run.moment[half] = fmaf(run.moment[half], decays[m][1], moment[half]);
        }
    }

    // Rounds the weights of two keys for both halves of a tile to f16.
    DEVICE static void pack(const float (&weights)[4], uint32_t* hi, uint32_t* lo) {
        UNROLL
        for (unsigned half = 0; half < 2; half++) {
            const float a = weights[2 * half], b = weights[2 * half + 1];
            if (WEIGHTS == SPLIT) {
                // These are the eleven bits that an f16 keeps, so the subtraction below is exact.
                const float high_a = bits_to_float(float_to_bits(a) & 0xFFFFE000u);
                const float high_b = bits_to_float(float_to_bits(b) & 0xFFFFE000u);
                hi[half] = pack_f16(high_a, high_b);
                lo[half] = pack_f16(a - high_a, b - high_b);
            } else {
                const bool subtract = WEIGHTS == DIFFERENCE && half == 0;
                hi[half] = pack_f16(subtract ? a - weights[2] : a, subtract ? b - weights[3] : b);
            }
        }
    }

    // Rescales the means by `decays`, and adds the span's weighted keys to them.
    DEVICE void accumulate_means(unsigned span) {
        const unsigned lane = lane_index();
        const f16* key = keys.at(span + lane % 16, lane / 16 * 8);
        UNROLL
        for (unsigned column = 0; column < WIDTH; column += COLUMNS) {
            if (column >= keys.depth) break;
            // Multiply weights and keys
            float tile_sums[TILES][COLUMNS / 8][4] = {};
            UNROLL
            for (unsigned k = 0; k < SPAN; k += 16) {
                UNROLL
                for (unsigned n = 0; n < COLUMNS / 8; n += 2) {
                    uint32_t b[4];
                    load_matrices_transposed(b,
                                             key + k * StagedRows<WIDTH>::STRIDE + column + n * 8);
                    UNROLL
                    for (unsigned m = 0; m < TILES; m++) {
                        multiply_accumulate(tile_sums[m][n], hi[m][k / 16], b[0], b[1]);
                        multiply_accumulate(tile_sums[m][n + 1], hi[m][k / 16], b[2], b[3]);
                        if (WEIGHTS == SPLIT) {
                            multiply_accumulate(tile_sums[m][n], lo[m][k / 16], b[0], b[1]);
                            multiply_accumulate(tile_sums[m][n + 1], lo[m][k / 16], b[2], b[3]);
                        }
                    }
                }
            }
            // Accumulate
            UNROLL
            for (unsigned m = 0; m < TILES; m++) {
                UNROLL
                for (unsigned n = 0; n < COLUMNS / 8; n++) {
                    UNROLL
                    for (unsigned i = 0; i < 4; i++)
                        rescale_and_add(means[m][column / 8 + n], decays[m], i, tile_sums[m][n][i]);
                }
            }
        }
    }

    // Updates element i of a tile's mean. The halves come in order, so the student's element is
    // updated before the teacher's.
    DEVICE static void rescale_and_add(float (&mean)[4], const float (&decay)[2], unsigned i,
                                       float tile_sum) {
        // S' − T' = S a − T b + tile_sum = (S − T) a + T (a − b) + tile_sum
        if (WEIGHTS == DIFFERENCE && i < 2)
            tile_sum = fmaf(mean[i + 2], decay[0] - decay[1], tile_sum);
        mean[i] = fmaf(mean[i], decay[i / 2], tile_sum);
    }

    // Writes the stats and means of the warp's rows. A split without keys leaves the means to
    // `store_zero_means`.
    DEVICE void store(uint64_t split, bool any_keys) const {
        const AttentionCommon& common = arguments.common;
        const unsigned g = lane_index() / 4, t = lane_index() % 4;
        UNROLL
        for (unsigned m = 0; m < TILES; m++) {
            UNROLL
            for (unsigned half = 0; half < 2; half++) {
                // Reduce over the four lanes that hold the row
                float sum = softmax[m].sum[half];
                sum += shuffle_xor(sum, 1);
                sum += shuffle_xor(sum, 2);
                float moment = softmax[m].moment[half];
                moment += shuffle_xor(moment, 1);
                moment += shuffle_xor(moment, 2);
                // Store
                const RowSlot slot(arguments, first_tile + m, g, half);
                if (!slot.exists(arguments)) continue;
                const uint64_t at = split * common.row_count + slot.row(arguments);
                if (t == 0)
                    common.stats[at] = {softmax[m].largest[half], sum * UNBIAS, moment * UNBIAS};
                float* mean = common.means + at * common.mean_pitch;
                UNROLL
                for (unsigned c = 0; c < WIDTH / 8; c++) {
                    const uint32_t column = c * 8 + 2 * t;
                    if (any_keys && column < common.mean_pitch)
                        store2(mean + column, means[m][c][2 * half] * UNBIAS,
                               means[m][c][2 * half + 1] * UNBIAS);
                }
            }
        }
    }
};

// Writes zeros to the means of ROWS rows over a split without keys. A queue that is not full has
// such splits, and the last pass reads their means before it knows.
template <unsigned ROWS>
DEVICE void store_zero_means(const Arguments& arguments, uint32_t first_tile) {
    const AttentionCommon& common = arguments.common;
    for (unsigned row = warp_index(); row < ROWS; row += WARPS) {
        const RowSlot slot(arguments, first_tile + row / TILE, row % 8, row / 8 % 2);
        if (!slot.exists(arguments)) continue;
        const uint64_t at =
            static_cast<uint64_t>(blockIdx.y) * common.row_count + slot.row(arguments);
        for (uint32_t d = 4 * lane_index(); d < common.mean_pitch; d += 4 * WARP)
            store4(common.means + at * common.mean_pitch + d, 0, 0, 0, 0);
    }
}

template <unsigned WIDTH, Weights WEIGHTS, bool BATCH>
DEVICE void attention_forward(const Arguments& arguments) {
    using Warp = WarpAttention<WIDTH, WEIGHTS, BATCH>;
    const AttentionCommon& common = arguments.common;
    DYNAMIC_SHARED(f16, shared);
    constexpr unsigned STAGE = KEYS * StagedRows<WIDTH>::STRIDE;
    const uint32_t depth = (common.dim + Warp::DEPTH - 1) / Warp::DEPTH * Warp::DEPTH;
    const StagedRows<WIDTH> rows = {shared, depth};
    f16* stages = shared + Warp::ROWS * StagedRows<WIDTH>::STRIDE;
    const f16* keys = static_cast<const f16*>(common.keys);
    const KeyRange range = keys_of_split(common);

    const auto prefetch = [&](uint32_t first_key, unsigned stage) {
        const StagedRows<WIDTH> to = {stages + stage * STAGE, depth};
        to.template fill<KEYS>(keys, common.key_pitch, first_key, range.end);
        if (BATCH && threadIdx.x < KEYS)
            to.scale(threadIdx.x) = first_key + threadIdx.x < range.end
                                        ? arguments.key_scales[first_key + threadIdx.x]
                                        : 0;
        copy_commit();
    };
    const bool any_keys = range.begin < range.end;
    const uint32_t first_tile = blockIdx.x * (Warp::ROWS / TILE);
    // Load the rows and the first tile of keys
    if (any_keys) {
        prefetch(range.begin, 0);
        if (arguments.is_bf16) {
            stage_rows<bf16, Warp::ROWS>(arguments, first_tile, rows);
        } else {
            stage_rows<f16, Warp::ROWS>(arguments, first_tile, rows);
        }
        block_barrier();
    } else {
        store_zero_means<Warp::ROWS>(arguments, first_tile);
    }
    Warp warp(arguments, rows);
    if (any_keys) warp.load_scales();
    const bool has_rows = warp.has_rows();
    unsigned stage = 0;
    for (uint32_t first_key = range.begin; first_key < range.end; first_key += KEYS, stage ^= 1) {
        // Wait for this tile of keys, and until all warps have read the one before
        copy_wait<0>();
        block_barrier();
        // Load the next tile
        if (range.end - first_key > KEYS) prefetch(first_key + KEYS, stage ^ 1);
        if (!has_rows) continue;
        warp.keys = {stages + stage * STAGE, depth};
        UNROLL
        for (unsigned span = 0; span < KEYS; span += Warp::SPAN) {
            // Products
            float products[Warp::TILES][Warp::SPAN / 8][4] = {};
            warp.add_products(span, products);
            // Softmax
            UNROLL
            for (unsigned m = 0; m < Warp::TILES; m++)
                warp.compute_weights(m, span, first_key + span, range.end, products[m]);
            // Accumulate
            warp.accumulate_means(span);
        }
    }
    if (has_rows) warp.store(blockIdx.y, any_keys);
}

}  // namespace

EXPORT_KERNEL(relata_attention_mma_64, THREADS, 3, Arguments,
              attention_forward<64, SPLIT, false>);
EXPORT_KERNEL(relata_attention_mma_64_batch, THREADS, 3, Arguments,
              attention_forward<64, SPLIT, true>);
EXPORT_KERNEL(relata_attention_mma_64_half, THREADS, 3, Arguments,
              attention_forward<64, HALF, false>);
EXPORT_KERNEL(relata_attention_mma_64_half_batch, THREADS, 3, Arguments,
              attention_forward<64, HALF, true>);
EXPORT_KERNEL(relata_attention_mma_64_half_pair, THREADS, 3, Arguments,
              attention_forward<64, DIFFERENCE, false>);
EXPORT_KERNEL(relata_attention_mma_128, THREADS, 2, Arguments,
              attention_forward<128, SPLIT, false>);
EXPORT_KERNEL(relata_attention_mma_128_batch, THREADS, 2, Arguments,
              attention_forward<128, SPLIT, true>);
EXPORT_KERNEL(relata_attention_mma_128_half, THREADS, 2, Arguments,
              attention_forward<128, HALF, false>);
EXPORT_KERNEL(relata_attention_mma_128_half_batch, THREADS, 2, Arguments,
              attention_forward<128, HALF, true>);
EXPORT_KERNEL(relata_attention_mma_128_half_pair, THREADS, 2, Arguments,
              attention_forward<128, DIFFERENCE, false>);
EXPORT_KERNEL(relata_attention_mma_256, THREADS, 2, Arguments,
              attention_forward<256, SPLIT, false>);
EXPORT_KERNEL(relata_attention_mma_256_batch, THREADS, 2, Arguments,
              attention_forward<256, SPLIT, true>);
EXPORT_KERNEL(relata_attention_mma_256_half, THREADS, 2, Arguments,
              attention_forward<256, HALF, false>);
EXPORT_KERNEL(relata_attention_mma_256_half_batch, THREADS, 2, Arguments,
              attention_forward<256, HALF, true>);
EXPORT_KERNEL(relata_attention_mma_256_half_pair, THREADS, 2, Arguments,
              attention_forward<256, DIFFERENCE, false>);
