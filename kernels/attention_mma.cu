// Computes   for every row and split of the keys, with s_k = ⟨row, key_k⟩: the largest s, Σ_k w_k and Σ_k w_k key_k
//            of w_k = 2^(scale (s_k − largest)); of a sample's two rows, with the teacher's weights v, also
//            Σ_k v_k (s_k − largest). Rows × keys are never stored. In a batch (keys are the rows of the teacher, times
//            a scale each) row i passes over key i. `_half_pair`: in the student's place Σ_k (w_k − v_k) key_k.
// Buffers    student, teacher [N, D] f16 or bf16, aligned to their element; keys [K, key_pitch] f16: zero from D on,
//            pitch a multiple of 8, aligned to 16 bytes; key_scales [K] (of a batch) f32; state [2] u32 or null;
//            stats [splits, R], means [splits, R, mean_pitch] f32 with R = N or, beside a teacher, 2N.
// Passes     the first of two beside a queue: this, rrd or info_nce; in a batch attention_rows prepares the keys before.
//            One launch: rows to shared memory, divided by their lengths but for a power of two; then one sweep over
//            the split's keys with a running maximum (FlashAttention-2, arXiv 2307.08691, with keys for values). For
//            f16 and bf16 rows taken at unit length, D ≤ WIDTH; attention_simt is for the rest.
// Grid       ⌈R / (64 TILES)⌉ × splits: 4 warps of TILES tiles of 16 rows; whole tiles of 64 keys. TILES is 2, so
//            that a key's fragments serve two tiles of rows from shared memory, or 1 where WIDTH is 256 and the means
//            alone take 128 registers.
// Block      128 threads. A warp holds 16 TILES rows over SPAN keys at a time; lane 4g + t, of each tile of 16 rows
//            (kernels/common/mma.cuh):
//
//                        keys 8n + 2t, 8n + 2t + 1 of the span (columns of the mean alike)
//              row g      sums[n][0..1]    means[n][0..1]
//              row g + 8  sums[n][2..3]    means[n][2..3]
//
//            The logits' layout is that of the left operand of the next product: weights never leave the registers.
//            Beside a queue row g is the student's of a sample and row g + 8 the teacher's of the same: a lane has
//            both weights of a key.
// Shared     dynamic: rows, and two stages of 64 keys: (64 TILES + 128)(WIDTH + 8) f16. The 8 put neighbouring rows'
//            16 bytes on different banks, for ldmatrix, and hold the scales of rows and of a batch's keys.
// Registers  at most 255 (two blocks a multiprocessor); 64-wide 168 (three).
// Resident   relata_attention_mma_64 3 of 128 threads and 36864 bytes; relata_attention_mma_128 2 of 128 threads and 69632
//            bytes; relata_attention_mma_128_half_pair 2 of 128 threads and 69632 bytes; relata_attention_mma_256 2 of 128
//            threads and 101376 bytes
// SASS       HMMA.16816.F32, LDSM.16.M88.4, LDGSTS
// Loop       relata_attention_mma_64 at most 21.9 x 64; relata_attention_mma_64_half_pair at most 20.4 x 64;
//            relata_attention_mma_128 at most 22.9 x 64; relata_attention_mma_128_half_pair at most 20.2 x 64;
//            relata_attention_mma_256 at most 34.7 x 32; relata_attention_mma_256_half_pair at most 30.7 x 32. Of the
//            weights that a lane makes of a tile of keys; the products' own loop counts once in it, as do masks for the
//            last tile.
// Work       6 R K D flop: logits, and each weight as a sum of two f16; `_half` 4 R K D. R K exponentials. K D f16 read
//            (from L2) for each block of rows. Slots, by WIDTH, in docs/kernels/rrd.md.
// Floor      arithmetic: 4 R K D flop of tensor cores for the loss as it is defined, 6 as it is computed here.
//            docs/kernels/rrd.md has them in microseconds.
// Numerics   Products of f16 are exact; their sums lose an ulp or so to tensor cores, which truncate, every 16 elements. That
//            shifts all of a row's logits alike, and with it its log-sum, by some D/16 ulp over τ: so the loss and the
//            divergence take their mean logits from here, shifted as much, and not from the means. A weight is w = hi + lo, two f16 of
//            2^15 w, so that 2^-22 of it is lost where one f16 would lose 2^-12: near convergence O_s − O_t cancels,
//            and this is what is left. `_half_pair` rounds w − v and v to one f16 each instead: 2^-12 of the
//            difference is lost, however small it is. A tile's weighted keys are summed in accumulators of their own
//            (tensor cores truncate) and added to the split's by an FFMA that also rescales, so rescaling costs
//            nothing and needs no condition. Keys are as exact as f16: off by 2^-12, which no computation here can
//            undo, unless they are the batch's own: those come as the rows they are, exact, with their lengths as scales.
//            Lengths: kernels/common/attention_row.cuh.
// Order      fixed: by key, by tile; splits by the finishing pass.
// Reference  src/reference/rrd.rs, src/reference/info_nce.rs.
#include "common/async.cuh"
#include "common/attention.cuh"
#include "common/attention_stage.cuh"
#include "common/collective.cuh"
#include "common/mma.cuh"

namespace {

using staging::Arguments, staging::Seat, staging::Stage, staging::stage_rows;
using staging::THREADS, staging::TILE, staging::WARPS;

// How weights go into the product with the keys.
enum Weights {
    // As sums of two f16.
    SPLIT,
    // As one f16.
    HALF,
    // As one f16; in the student's place its weight less the teacher's.
    DIFFERENCE
};

// The softmax of 16 rows as it runs, for the rows g and g + 8 of this lane.
struct Running {
    float scale[2];
    float largest[2] = {-infinity(), -infinity()};
    // Of this lane's keys.
    float sum[2] = {};
    // Σ v (product − largest) with the weights v of row g + 8.
    float moment[2] = {};
};

template <unsigned WIDTH, Weights WEIGHTS, bool BATCH>
struct Attention {
    static constexpr unsigned TILES = WIDTH == 256 ? 1 : 2;
    static constexpr unsigned ROWS = TILE * TILES * WARPS;
    // As many keys at a time as registers hold weights for.
    static constexpr unsigned SPAN = WIDTH == 64 || (BATCH && TILES == 2) ? KEYS / 2 : KEYS;
    // The largest weight is 2^BIAS: f16 has most room below. A batch's key scales lie in (2^-15, 2^-14].
    static constexpr float BIAS = BATCH ? 29 : 15;
    // A logit in base 2 that far below another weighs nothing. As products, at least so far that it shows beside one, which
    // is below 2^16, and at most so far that it is finite, at any temperature that there may be.
    static constexpr float FAR = 512, NEAREST = 0x1p20f, FARTHEST = 0x1p126f;
    static constexpr float UNBIAS = BATCH ? 0x1p-29f : 0x1p-15f;

    // Elements at a time in a product, which divides the depth: more where there are registers for them.
    static constexpr unsigned DEPTH = WEIGHTS == SPLIT && TILES == 2 ? 16 : 32;
    // Columns of the means at a time: four sums of a lane side by side, each of which waits for itself.
    static constexpr unsigned COLUMNS = 32 / TILES;

    const Arguments& arguments;
    const Stage<WIDTH> rows;
    Stage<WIDTH> keys;
    const uint32_t first_tile;  // of this warp
    Running running[TILES];
    float means[TILES][WIDTH / 8][4] = {};
    float decays[TILES][2];
    // The weights, left operands of 16 keys; and what is left of them where they are split.
    uint32_t hi[TILES][SPAN / 16][4], lo[TILES][SPAN / 16][4];

    DEVICE Attention(const Arguments& arguments, Stage<WIDTH> rows)
        : arguments(arguments), rows(rows), keys(rows), first_tile((blockIdx.x * WARPS + warp_index()) * TILES) {}

    DEVICE bool has_rows() const { return Seat(arguments, first_tile, 0, 0).taken(arguments); }

    DEVICE void take_scales() {
        UNROLL
        for (unsigned m = 0; m < TILES; m++) {
            UNROLL
            for (unsigned half = 0; half < 2; half++) {
                const unsigned row = (warp_index() * TILES + m) * TILE + half * 8 + lane_index() / 4;
                const bool of_teacher = arguments.teacher != nullptr && half == 1;
                running[m].scale[half] = arguments.per_temperature[of_teacher ? 1 : 0] * rows.scale(row);
            }
        }
    }

    // Products of the warp's rows with the span's keys.
    DEVICE void multiply(unsigned span, float (&sums)[TILES][SPAN / 8][4]) const {
        const unsigned lane = lane_index();
        const f16* row = rows.at(warp_index() * TILES * TILE + lane % 16, lane / 16 * 8);
        const f16* key = keys.at(span + lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8);
        UNROLL_BY(1)
        for (unsigned d = 0; d < rows.depth; d += DEPTH, row += DEPTH, key += DEPTH) {
            UNROLL
            for (unsigned e = 0; e < DEPTH; e += 16) {
                uint32_t a[TILES][4];
                UNROLL
                for (unsigned m = 0; m < TILES; m++) load_matrices(a[m], row + m * TILE * Stage<WIDTH>::STRIDE + e);
                UNROLL
                for (unsigned n = 0; n < SPAN / 8; n += 2) {
                    uint32_t b[4];
                    load_matrices(b, key + n * 8 * Stage<WIDTH>::STRIDE + e);
                    UNROLL
                    for (unsigned m = 0; m < TILES; m++) {
                        multiply_accumulate(sums[m][n], a[m], b[0], b[1]);
                        multiply_accumulate(sums[m][n + 1], a[m], b[2], b[3]);
                    }
                }
            }
        }
    }

    // Of the four lanes that hold a row.
    DEVICE static float largest_of_row(float value) {
        value = fmaxf(value, shuffle_xor(value, 1));
        return fmaxf(value, shuffle_xor(value, 2));
    }

    // Makes weights of products, and decays of what came before.
    DEVICE void weigh(unsigned m, unsigned span, uint32_t first_key, uint32_t end_key,
                      float (&products)[SPAN / 8][4]) {
        const unsigned g = lane_index() / 4, t = lane_index() % 4;
        Running& run = running[m];
        if (BATCH) {
            UNROLL
            for (unsigned n = 0; n < SPAN / 8; n++) {
                UNROLL
                for (unsigned i = 0; i < 4; i++) products[n][i] *= keys.scale(span + n * 8 + 2 * t + i % 2);
            }
        }
        if (BATCH) {
            UNROLL
            for (unsigned n = 0; n < SPAN / 8; n++) {
                UNROLL
                for (unsigned i = 0; i < 4; i++) {
                    const uint32_t key = first_key + n * 8 + 2 * t + i % 2;
                    const bool own = key == Seat(arguments, first_tile + m, g, i / 2).sample;
                    if (own || key >= end_key) products[n][i] = -infinity();
                }
            }
        }
        float origin[2];
        UNROLL
        for (unsigned half = 0; half < 2; half++) {
            const float before = run.largest[half];
            float next = before;
            UNROLL
            for (unsigned n = 0; n < SPAN / 8; n++)
                next = fmaxf(next, fmaxf(products[n][2 * half], products[n][2 * half + 1]));
            next = largest_of_row(next);
            // So far there may have been no key for the row but its own.
            origin[half] = next == -infinity() ? 0 : next;
            decays[m][half] = exp2_fast((before - origin[half]) * run.scale[half]);
            run.largest[half] = next;
            if (!BATCH && before > -infinity()) run.moment[half] = fmaf(run.sum[1], before - next, run.moment[half]);
        }
        if (!BATCH && first_key + SPAN > end_key) {
            // Beyond the end stands the last key again, which changes no maximum. It is to weigh nothing, and to be finite.
            UNROLL
            for (unsigned half = 0; half < 2; half++) {
                const float nothing = origin[half] - fminf(fmaxf(FAR / run.scale[half], NEAREST), FARTHEST);
                UNROLL
                for (unsigned n = 0; n < SPAN / 8; n++) {
                    UNROLL
                    for (unsigned i = 0; i < 2; i++)
                        if (first_key + n * 8 + 2 * t + i >= end_key) products[n][2 * half + i] = nothing;
                }
            }
        }
        float sum[2] = {}, moment[2] = {};
        UNROLL
        for (unsigned n = 0; n < SPAN / 8; n++) {
            float below[4], weights[4];
            UNROLL
            for (unsigned i = 0; i < 4; i++) {
                below[i] = products[n][i] - origin[i / 2];
                weights[i] = exp2_fast(fmaf(below[i], run.scale[i / 2], BIAS));
                sum[i / 2] += weights[i];
                if (BATCH) weights[i] *= keys.scale(span + n * 8 + 2 * t + i % 2);
            }
            UNROLL
            for (unsigned i = 0; i < 4 && !BATCH; i++) moment[i / 2] = fmaf(weights[2 + i % 2], below[i], moment[i / 2]);
            pack(weights, hi[m][n / 2] + n % 2 * 2, lo[m][n / 2] + n % 2 * 2);
        }
        UNROLL
        for (unsigned half = 0; half < 2; half++) {
            run.sum[half] = fmaf(run.sum[half], decays[m][half], sum[half]);
            run.moment[half] = fmaf(run.moment[half], decays[m][1], moment[half]);
        }
    }

    // The weights of two keys for both halves of a tile, as f16.
    DEVICE static void pack(const float (&weights)[4], uint32_t* hi, uint32_t* lo) {
        UNROLL
        for (unsigned half = 0; half < 2; half++) {
            const float a = weights[2 * half], b = weights[2 * half + 1];
            if (WEIGHTS == SPLIT) {
                // The eleven bits that an f16 keeps, so that the rest is a difference without rounding.
                const float high_a = bits_to_float(float_to_bits(a) & 0xFFFFE000u);
                const float high_b = bits_to_float(float_to_bits(b) & 0xFFFFE000u);
                hi[half] = pack_f16(high_a, high_b);
                lo[half] = pack_f16(a - high_a, b - high_b);
            } else {
                const bool both = WEIGHTS == DIFFERENCE && half == 0;
                hi[half] = pack_f16(both ? a - weights[2] : a, both ? b - weights[3] : b);
            }
        }
    }

    // Adds the span's weighted keys to the means, which decay.
    DEVICE void gather(unsigned span) {
        const unsigned lane = lane_index();
        const f16* key = keys.at(span + lane % 16, lane / 16 * 8);
        UNROLL
        for (unsigned column = 0; column < WIDTH; column += COLUMNS) {
            if (column >= keys.depth) break;
            float fresh[TILES][COLUMNS / 8][4] = {};
            UNROLL
            for (unsigned k = 0; k < SPAN; k += 16) {
                UNROLL
                for (unsigned n = 0; n < COLUMNS / 8; n += 2) {
                    uint32_t b[4];
                    load_matrices_transposed(b, key + k * Stage<WIDTH>::STRIDE + column + n * 8);
                    UNROLL
                    for (unsigned m = 0; m < TILES; m++) {
                        multiply_accumulate(fresh[m][n], hi[m][k / 16], b[0], b[1]);
                        multiply_accumulate(fresh[m][n + 1], hi[m][k / 16], b[2], b[3]);
                        if (WEIGHTS == SPLIT) {
                            multiply_accumulate(fresh[m][n], lo[m][k / 16], b[0], b[1]);
                            multiply_accumulate(fresh[m][n + 1], lo[m][k / 16], b[2], b[3]);
                        }
                    }
                }
            }
            UNROLL
            for (unsigned m = 0; m < TILES; m++) {
                UNROLL
                for (unsigned n = 0; n < COLUMNS / 8; n++) {
                    UNROLL
                    for (unsigned i = 0; i < 4; i++) add(means[m][column / 8 + n], decays[m], i, fresh[m][n][i]);
                }
            }
        }
    }

    // Element i of a tile's mean: the rows' halves in order, the student's before the teacher's.
    DEVICE static void add(float (&mean)[4], const float (&decay)[2], unsigned i, float fresh) {
        // S' - T' = S a - T b + fresh = (S - T) a + T (a - b) + fresh
        if (WEIGHTS == DIFFERENCE && i < 2) fresh = fmaf(mean[i + 2], decay[0] - decay[1], fresh);
        mean[i] = fmaf(mean[i], decay[i / 2], fresh);
    }

    DEVICE void write(uint64_t split, bool any_keys) const {
        const Attending& attending = arguments.attending;
        const unsigned g = lane_index() / 4, t = lane_index() % 4;
        UNROLL
        for (unsigned m = 0; m < TILES; m++) {
            UNROLL
            for (unsigned half = 0; half < 2; half++) {
                float sum = running[m].sum[half];
                sum += shuffle_xor(sum, 1);
                sum += shuffle_xor(sum, 2);
                float moment = running[m].moment[half];
                moment += shuffle_xor(moment, 1);
                moment += shuffle_xor(moment, 2);
                const Seat seat(arguments, first_tile + m, g, half);
                if (!seat.taken(arguments)) continue;
                const uint64_t at = split * attending.row_count + seat.row(arguments);
                if (t == 0) attending.stats[at] = {running[m].largest[half], sum * UNBIAS, moment * UNBIAS};
                float* mean = attending.means + at * attending.mean_pitch;
                UNROLL
                for (unsigned c = 0; c < WIDTH / 8; c++) {
                    const uint32_t column = c * 8 + 2 * t;
                    if (any_keys && column < attending.mean_pitch)
                        store2(mean + column, means[m][c][2 * half] * UNBIAS, means[m][c][2 * half + 1] * UNBIAS);
                }
            }
        }
    }
};

// The means of ROWS rows over a split without keys, of a queue that isn't full yet: the last pass reads them before it knows.
template <unsigned ROWS>
DEVICE void write_no_means(const Arguments& arguments, uint32_t first_tile) {
    const Attending& attending = arguments.attending;
    for (unsigned row = warp_index(); row < ROWS; row += WARPS) {
        const Seat seat(arguments, first_tile + row / TILE, row % 8, row / 8 % 2);
        if (!seat.taken(arguments)) continue;
        const uint64_t at = static_cast<uint64_t>(blockIdx.y) * attending.row_count + seat.row(arguments);
        for (uint32_t d = 4 * lane_index(); d < attending.mean_pitch; d += 4 * WARP)
            store4(attending.means + at * attending.mean_pitch + d, 0, 0, 0, 0);
    }
}

template <unsigned WIDTH, Weights WEIGHTS, bool BATCH>
DEVICE void attend(const Arguments& arguments) {
    using Rows = Attention<WIDTH, WEIGHTS, BATCH>;
    const Attending& attending = arguments.attending;
    DYNAMIC_SHARED(f16, shared);
    constexpr unsigned STAGED = KEYS * Stage<WIDTH>::STRIDE;
    const uint32_t depth = (attending.dim + Rows::DEPTH - 1) / Rows::DEPTH * Rows::DEPTH;
    const Stage<WIDTH> rows = {shared, depth};
    f16* stages = shared + Rows::ROWS * Stage<WIDTH>::STRIDE;
    const f16* keys = static_cast<const f16*>(attending.keys);
    const KeyRange range = keys_of_split(attending);

    const auto prefetch = [&](uint32_t first_key, unsigned stage) {
        const Stage<WIDTH> to = {stages + stage * STAGED, depth};
        to.template fill<KEYS>(keys, attending.key_pitch, first_key, range.end);
        if (BATCH && threadIdx.x < KEYS)
            to.scale(threadIdx.x) = first_key + threadIdx.x < range.end ? arguments.key_scales[first_key + threadIdx.x] : 0;
        copy_commit();
    };
    const bool any_keys = range.begin < range.end;
    const uint32_t first_tile = blockIdx.x * (Rows::ROWS / TILE);
    if (any_keys) {
        prefetch(range.begin, 0);
        if (arguments.is_bf16) {
            stage_rows<bf16, Rows::ROWS>(arguments, first_tile, rows);
        } else {
            stage_rows<f16, Rows::ROWS>(arguments, first_tile, rows);
        }
        block_barrier();
    } else {
        write_no_means<Rows::ROWS>(arguments, first_tile);
    }
    Rows warp(arguments, rows);
    if (any_keys) warp.take_scales();
    const bool has_rows = warp.has_rows();
    unsigned stage = 0;
    for (uint32_t first_key = range.begin; first_key < range.end; first_key += KEYS, stage ^= 1) {
        copy_wait<0>();
        // This tile is there, and the one before it has been read by all.
        block_barrier();
        if (range.end - first_key > KEYS) prefetch(first_key + KEYS, stage ^ 1);
        if (!has_rows) continue;
        warp.keys = {stages + stage * STAGED, depth};
        UNROLL
        for (unsigned span = 0; span < KEYS; span += Rows::SPAN) {
            float sums[Rows::TILES][Rows::SPAN / 8][4] = {};
            warp.multiply(span, sums);
            UNROLL
            for (unsigned m = 0; m < Rows::TILES; m++)
                warp.weigh(m, span, first_key + span, range.end, sums[m]);
            warp.gather(span);
        }
    }
    if (has_rows) warp.write(blockIdx.y, any_keys);
}

}  // namespace

EXPORT_KERNEL(relata_attention_mma_64, THREADS, 3, Arguments, attend<64, SPLIT, false>);
EXPORT_KERNEL(relata_attention_mma_64_batch, THREADS, 3, Arguments, attend<64, SPLIT, true>);
EXPORT_KERNEL(relata_attention_mma_64_half, THREADS, 3, Arguments, attend<64, HALF, false>);
EXPORT_KERNEL(relata_attention_mma_64_half_batch, THREADS, 3, Arguments, attend<64, HALF, true>);
EXPORT_KERNEL(relata_attention_mma_64_half_pair, THREADS, 3, Arguments, attend<64, DIFFERENCE, false>);
EXPORT_KERNEL(relata_attention_mma_128, THREADS, 2, Arguments, attend<128, SPLIT, false>);
EXPORT_KERNEL(relata_attention_mma_128_batch, THREADS, 2, Arguments, attend<128, SPLIT, true>);
EXPORT_KERNEL(relata_attention_mma_128_half, THREADS, 2, Arguments, attend<128, HALF, false>);
EXPORT_KERNEL(relata_attention_mma_128_half_batch, THREADS, 2, Arguments, attend<128, HALF, true>);
EXPORT_KERNEL(relata_attention_mma_128_half_pair, THREADS, 2, Arguments, attend<128, DIFFERENCE, false>);
EXPORT_KERNEL(relata_attention_mma_256, THREADS, 2, Arguments, attend<256, SPLIT, false>);
EXPORT_KERNEL(relata_attention_mma_256_batch, THREADS, 2, Arguments, attend<256, SPLIT, true>);
EXPORT_KERNEL(relata_attention_mma_256_half, THREADS, 2, Arguments, attend<256, HALF, false>);
EXPORT_KERNEL(relata_attention_mma_256_half_batch, THREADS, 2, Arguments, attend<256, HALF, true>);
EXPORT_KERNEL(relata_attention_mma_256_half_pair, THREADS, 2, Arguments, attend<256, DIFFERENCE, false>);
