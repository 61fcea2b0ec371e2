// Computes   The order of pairs. Over the C = N(N − 1)/2 pairs a = (i < j), row by row, with s of the
//            student and t of the teacher: a is before b if t_a < t_b, or if they are equal and a
//            comes first. For two pairs, low before high, term = max(0, s_low − s_high + margin).
//              net_a = #{high behind a, term > 0} − #{low before a, term > 0}
//              loss  = Σ_a s_a net_a + margin · #{term > 0}, which is the sum of all terms
//            net_a = ∂loss/∂s_a is the coefficient k_ij of the contraction, which divides.
// Buffers    slots [slices, P, P] f32 of student and teacher, P the rows up to a multiple of 64; k
//            overwrites the student's first. pairs [C] of 8 bytes; rows [C] u32; sums [P] f64;
//            poison [1] f32; partials [blocks] f64; losses [P] f64.
// Passes     two launches between pairwise_relation and pairwise_contraction. `collect` puts the
//            upper triangle in a row, `count` compares every pair with every pair.
// Grid       collect: P rows. count: C/64 blocks of 64 pairs.
// Block      collect: 128 threads. count: 256 threads; each of 16 threads has 4 of the block's pairs
//            in registers, and each of 16 such groups a 16th of the pairs that pass through shared
//            memory, 512 at a time.
// Shared     12 KiB: 512 pairs, and in the end the groups' counts.
// Registers  at most 64.
// SASS       relata_pairwise_order_count: LDS
// Work       C² comparisons, about N⁴/4, of 7 instructions; C²/64 · 8 bytes read, through L2.
// Floor      issue: 7 C² / 33.4e12 s on an H200: 14 µs at N = 128, 220 µs at 256, 3.6 ms at 512, 57 ms
//            at 1024. Sorting would take N² log N; the host takes at most 4096 rows.
// Numerics   counts are exact, of similarities in f32: rounding s or t turns over the terms whose
//            sign, or the pairs whose order, is within it. The loss in f64. NaN: comparisons drop it,
//            so `collect` looks for it, and adds it to the loss and to all coefficients.
// Order      counts have none. Losses by block, then blocks in a fixed order.
// Reference  src/reference/order.rs; docs/maths/pairwise.md.
#include "common/collective.cuh"
#include "common/math.cuh"
#include "common/pairwise.cuh"

namespace {

constexpr unsigned COLLECT_THREADS = 128;
constexpr unsigned THREADS = 256;
// Pairs of a thread, and of a block.
constexpr unsigned PER = 4, OWN = 64;
constexpr unsigned ACROSS = OWN / PER, GROUPS = THREADS / ACROSS;
// Pairs in shared memory at a time.
constexpr unsigned TILE = 512;
static_assert(TILE % GROUPS == 0);

struct alignas(8) Similarities {
    float student, teacher;
};

// Mirrored in src/gpu/pairwise/arguments.rs.
struct Arguments {
    float* r[2];  // [slices, P, P]
    Similarities* pairs;
    uint32_t* rows;  // i 2^16 + j
    double* sums;
    float* poison;
    double* partials;
    double* losses;
    unsigned* counter;
    uint32_t slices[2];
    uint32_t n;
    uint32_t count;  // C
    float margin;
    uint32_t padding;
};
ARGUMENTS(Arguments, r, pairs, rows, sums, poison, partials, losses, counter, slices, n, count, margin, padding);

// The block's row of both similarities, from the diagonal on.
DEVICE void collect(const Arguments& arguments) {
    const uint32_t n = arguments.n, padded = pairwise::padded(n), i = blockIdx.x;
    const uint64_t slot = static_cast<uint64_t>(padded) * padded, row = static_cast<uint64_t>(i) * padded;
    // Where the pairs (i, i + 1), ... begin, less i + 1.
    const uint64_t before = static_cast<uint64_t>(i) * (2 * static_cast<uint64_t>(n) - i - 1) / 2 - i - 1;
    double poison = 0;
    UNROLL_BY(1)
    for (uint32_t j = i + threadIdx.x; j < n; j += COLLECT_THREADS) {
        float of[2];
        UNROLL
        for (unsigned which = 0; which < 2; which++) {
            float sum = 0;
            UNROLL_BY(2)
            for (uint32_t s = 0; s < arguments.slices[which]; s++) sum += arguments.r[which][s * slot + row + j];
            of[which] = sum;
            poison += static_cast<double>(sum) * 0;
        }
        if (j > i) {
            arguments.pairs[before + j] = {of[0], of[1]};
            arguments.rows[before + j] = i << 16 | j;
        } else {
            // A row's similarity with itself is no pair's.
            arguments.r[0][row + j] = 0;
        }
    }
    poison = block_reduce<COLLECT_THREADS>(poison, Sum());
    if (threadIdx.x == 0) {
        arguments.sums[i] = poison;
        arguments.losses[i] = 0;
    }
    if (!is_last_block(arguments.counter)) return;
    poison = block_sum_of<COLLECT_THREADS>(arguments.sums, padded);
    if (threadIdx.x == 0) arguments.poison[0] = static_cast<float>(poison);
}

// Where the pairs of a tile are in the order of rows, as seen from all pairs of the block.
enum class Place { Before, Among, Behind };

// The terms above 0 of the thread's pairs.
struct Counts {
    uint32_t low[PER], high[PER];

    // With the thread's part of the tile, whose first pair is number `b0`.
    template <Place PLACE>
    DEVICE void add(const Similarities* tile, uint32_t b0, const Similarities (&own)[PER], uint32_t a0, float margin) {
        // Both counts in one word: a tile has fewer pairs than half a word counts.
        static_assert(TILE / GROUPS < 1 << 16);
        uint32_t both[PER] = {};
        UNROLL_BY(4)
        for (unsigned e = threadIdx.x / ACROSS; e < TILE; e += GROUPS) {
            const Similarities other = tile[e];
            UNROLL
            for (unsigned p = 0; p < PER; p++) {
                bool before = PLACE == Place::Before ? other.teacher <= own[p].teacher : other.teacher < own[p].teacher;
                bool itself = false;
                if (PLACE == Place::Among) {
                    before = before || (other.teacher == own[p].teacher && b0 + e < a0 + p);
                    itself = b0 + e == a0 + p;
                }
                const float difference = other.student - own[p].student;
                const float excess = before ? -difference : difference;
                both[p] += excess < margin && !itself ? (before ? 1u << 16 : 1u) : 0u;
            }
        }
        UNROLL
        for (unsigned p = 0; p < PER; p++) {
            low[p] += both[p] & 0xFFFF;
            high[p] += both[p] >> 16;
        }
    }
};

DEVICE void count(const Arguments& arguments) {
    SHARED_ARRAY(Similarities, tile, TILE);
    SHARED_ARRAY(uint32_t, counts, 2 * GROUPS * OWN);
    const uint32_t pairs = arguments.count, first = blockIdx.x * OWN, a0 = first + threadIdx.x % ACROSS * PER;
    // What is compared with it has no term above 0.
    const Similarities none = {nan(), nan()};

    // Load the thread's pairs.
    Similarities own[PER];
    UNROLL
    for (unsigned p = 0; p < PER; p++) own[p] = a0 + p < pairs ? arguments.pairs[a0 + p] : none;

    // Compare.
    Counts mine = {};
    for (uint32_t b0 = 0; b0 < pairs; b0 += TILE) {
        block_barrier();
        for (unsigned e = threadIdx.x; e < TILE; e += THREADS) tile[e] = b0 + e < pairs ? arguments.pairs[b0 + e] : none;
        block_barrier();
        if (b0 + TILE <= first) {
            mine.add<Place::Before>(tile, b0, own, a0, arguments.margin);
        } else if (b0 >= first + OWN) {
            mine.add<Place::Behind>(tile, b0, own, a0, arguments.margin);
        } else {
            mine.add<Place::Among>(tile, b0, own, a0, arguments.margin);
        }
    }

    // Reduce: [low, high][group][pair].
    UNROLL
    for (unsigned p = 0; p < PER; p++) {
        counts[threadIdx.x / ACROSS * OWN + threadIdx.x % ACROSS * PER + p] = mine.low[p];
        counts[(GROUPS + threadIdx.x / ACROSS) * OWN + threadIdx.x % ACROSS * PER + p] = mine.high[p];
    }
    block_barrier();

    // Store.
    const float poison = arguments.poison[0];
    double loss = 0;
    const uint32_t a = first + threadIdx.x;
    if (threadIdx.x < OWN && a < pairs) {
        uint32_t low = 0, high = 0;
        UNROLL
        for (unsigned group = 0; group < GROUPS; group++) {
            low += counts[group * OWN + threadIdx.x];
            high += counts[(GROUPS + group) * OWN + threadIdx.x];
        }
        const float net = static_cast<float>(static_cast<int32_t>(low - high)) + poison;
        const uint32_t padded = pairwise::padded(arguments.n), i = arguments.rows[a] >> 16, j = arguments.rows[a] & 0xFFFF;
        arguments.r[0][static_cast<uint64_t>(i) * padded + j] = net;
        arguments.r[0][static_cast<uint64_t>(j) * padded + i] = net;
        loss = static_cast<double>(arguments.pairs[a].student) * net + static_cast<double>(arguments.margin) * low;
    }
    loss = block_reduce<THREADS>(loss, Sum());
    if (threadIdx.x == 0) arguments.partials[blockIdx.x] = loss;
    if (!is_last_block(arguments.counter)) return;
    loss = block_sum_of<THREADS>(arguments.partials, gridDim.x);
    if (threadIdx.x == 0) arguments.losses[0] = loss + poison;
}

}  // namespace

EXPORT_KERNEL(relata_pairwise_order_collect, COLLECT_THREADS, 8, Arguments, collect);
EXPORT_KERNEL(relata_pairwise_order_count, THREADS, 4, Arguments, count);
