// Computes   The ranking of neighbours. For each row i the other rows that are nearest to it in the
//            teacher, the nearest first and of equally near ones the lower index first; the student's
//            scores s_k = −α d_k^β of these; and
//              l_i = Σ_k (log Σ_{m≥k} exp s_m − s_k)     w_m = Σ_{k≤m} exp(s_m − log Σ_{l≥k} exp s_l) − 1
//            The contraction's k_ij is the sum of −w α β d^(β−2) where j is among i's neighbours, and
//            the same where i is among j's.
// Buffers    rows [N, D] of the student f32, f16 or bf16; slots [slices, P, P] f32 of student and
//            teacher, P the rows up to a multiple of 64: squared distances; k overwrites the student's
//            first. neighbors [N, length] of 8 bytes; poisons [P] f64; losses [P] f64; units [2] f32.
// Passes     two launches between pairwise_relation and pairwise_contraction: `select` has all but the
//            matrix k, which `spread` writes.
// Grid       P rows: blocks of rows beyond N write the zeros that the next passes read.
// Block      128 threads. A round of `select` finds the next neighbour and measures its distance.
// Shared     less than 2 KiB.
// Registers  at most 128.
// Work       select: 4 slices bytes read of a pair in each round, through L2, and D differences in
//            f64. spread: 2 length comparisons and 8 length bytes read of a pair.
// Floor      bandwidth of L2: 4 N² (2 slices length + 1) bytes, and 8 N² length.
// Numerics   neighbours by squared distances in f32, so two that are nearer to one another than their
//            rounding may be exchanged. Scores magnify rounding by their size, so the student's
//            distances to the neighbours are taken again, from the rows, in f64, and so is all else
//            but k. NaN: comparisons drop it, so `select` looks for it in the row's distances, of which
//            one is NaN if any row has one, and adds it to the loss and to all k of the row.
// Order      fixed: sums of distances by thread, warp and block; the loss by neighbour.
// Reference  src/reference/dark_rank.rs
#include "common/collective.cuh"
#include "common/element.cuh"
#include "common/math.cuh"
#include "common/pairwise.cuh"

namespace {

constexpr unsigned THREADS = 128;
// The most neighbours: `DarkRank::MOST_LENGTH`.
constexpr unsigned MOST = 32;
constexpr uint32_t NOBODY = 0xFFFFFFFF;

struct Neighbor {
    uint32_t row;
    float k;
};

// Mirrored in src/gpu/pairwise/arguments.rs.
struct Arguments {
    const void* rows;
    float* r[2];  // [slices, P, P]
    Neighbor* neighbors;
    double* poisons;
    double* losses;
    const float* units;  // null if both are 1
    double alpha, beta;
    uint32_t slices[2];
    uint32_t n;
    uint32_t dim;
    uint32_t length;
    uint32_t count;  // of neighbours: length, or N − 1
};
ARGUMENTS(Arguments, rows, r, neighbors, poisons, losses, units, alpha, beta, slices, n, dim, length, count);

// A row and its squared distance.
struct Candidate {
    float square;
    uint32_t row;

    DEVICE bool is_before(Candidate other) const {
        return square < other.square || (square == other.square && row < other.row);
    }
};

struct Nearer {
    DEVICE Candidate operator()(Candidate a, Candidate b) const { return a.is_before(b) ? a : b; }
};

// A squared distance, from the parts of its slices.
DEVICE float square_of(const Arguments& arguments, unsigned which, uint32_t i, uint32_t j) {
    const uint32_t padded = pairwise::padded(arguments.n);
    const uint64_t slot = static_cast<uint64_t>(padded) * padded;
    const float* at = arguments.r[which] + static_cast<uint64_t>(i) * padded + j;
    float sum = 0;
    UNROLL_BY(1)
    for (uint32_t s = 0; s < arguments.slices[which]; s++) sum += at[s * slot];
    return sum;
}

template <typename T>
DEVICE void select(const Arguments& arguments) {
    SHARED_ARRAY(uint32_t, found, MOST);
    SHARED_ARRAY(double, distances, MOST);
    SHARED_ARRAY(double, scores, MOST);
    SHARED_ARRAY(double, sums, MOST);    // Σ_{m≥k} exp(s_m − largest)
    SHARED_ARRAY(double, largest, MOST);
    const uint32_t n = arguments.n, dim = arguments.dim, count = arguments.count, i = blockIdx.x;
    if (i >= n) {
        if (threadIdx.x == 0) arguments.losses[i] = 0;
        return;
    }

    // Look for NaN.
    double poison = 0;
    for (uint32_t j = threadIdx.x; j < n; j += THREADS)
        poison += static_cast<double>(square_of(arguments, 0, i, j)) * 0 + static_cast<double>(square_of(arguments, 1, i, j)) * 0;
    poison = block_reduce<THREADS>(poison, Sum());

    // Select and measure, the nearest first.
    Candidate last = {-1, 0};
    const T* rows = static_cast<const T*>(arguments.rows);
    for (uint32_t k = 0; k < count; k++) {
        Candidate next = {infinity(), NOBODY};
        for (uint32_t j = threadIdx.x; j < n; j += THREADS) {
            const Candidate candidate = {square_of(arguments, 1, i, j), j};
            if (j != i && last.is_before(candidate) && candidate.is_before(next)) next = candidate;
        }
        next = block_reduce<THREADS>(next, Nearer());
        // Of NaN there is no next: the row itself takes its place.
        if (next.row == NOBODY) next.row = i;
        double square = 0;
        for (uint32_t d = threadIdx.x; d < dim; d += THREADS) {
            const double difference = static_cast<double>(to_float(rows[static_cast<uint64_t>(i) * dim + d])) -
                                      static_cast<double>(to_float(rows[static_cast<uint64_t>(next.row) * dim + d]));
            square = fma(difference, difference, square);
        }
        square = block_reduce<THREADS>(square, Sum());
        if (threadIdx.x == 0) {
            found[k] = next.row;
            distances[k] = sqrt(square);
        }
        last = next;
    }
    block_barrier();

    // Rank: a neighbour a thread.
    const unsigned mine = threadIdx.x;
    if (mine < count) scores[mine] = -arguments.alpha * pow(distances[mine], arguments.beta);
    block_barrier();
    if (mine < count) {
        double most = scores[mine], sum = 0;
        for (unsigned m = mine; m < count; m++) most = scores[m] > most ? scores[m] : most;
        for (unsigned m = mine; m < count; m++) sum += exp(scores[m] - most);
        largest[mine] = most;
        sums[mine] = sum;
    }
    block_barrier();
    if (mine < count) {
        double slope = -1;
        for (unsigned k = 0; k <= mine; k++) slope += exp(scores[mine] - largest[k]) / sums[k];
        const double d = distances[mine];
        double unit = arguments.units == nullptr ? 1.0 : static_cast<double>(arguments.units[0]);
        // The rows that are contracted are `unit` times these, and so is their gradient.
        double k = -slope * arguments.alpha * arguments.beta * pow(d, arguments.beta - 2) / (unit * unit);
        if (d == 0) k = 0;
        arguments.neighbors[static_cast<uint64_t>(i) * arguments.length + mine] = {found[mine], static_cast<float>(k)};
    }

    // Store.
    if (threadIdx.x == 0) {
        double loss = poison;
        for (unsigned k = 0; k < count; k++) loss += (largest[k] - scores[k]) + log(sums[k]);
        arguments.losses[i] = loss;
        arguments.poisons[i] = poison;
    }
}

DEVICE void spread(const Arguments& arguments) {
    const uint32_t n = arguments.n, padded = pairwise::padded(n), count = arguments.count, i = blockIdx.x;
    float* k = arguments.r[0] + static_cast<uint64_t>(i) * padded;
    const Neighbor* of_i = arguments.neighbors + static_cast<uint64_t>(i) * arguments.length;
    for (uint32_t j = threadIdx.x; j < padded; j += THREADS) {
        float sum = 0;
        if (i < n && j < n) {
            const Neighbor* of_j = arguments.neighbors + static_cast<uint64_t>(j) * arguments.length;
            UNROLL_BY(1)
            for (uint32_t m = 0; m < count; m++) {
                if (of_i[m].row == j) sum += of_i[m].k;
                if (of_j[m].row == i) sum += of_j[m].k;
            }
            sum += static_cast<float>(arguments.poisons[i]);
        }
        k[j] = sum;
    }
}

}  // namespace

EXPORT_KERNEL(relata_pairwise_ranking_select_f32, THREADS, 4, Arguments, select<float>);
EXPORT_KERNEL(relata_pairwise_ranking_select_f16, THREADS, 4, Arguments, select<f16>);
EXPORT_KERNEL(relata_pairwise_ranking_select_bf16, THREADS, 4, Arguments, select<bf16>);
EXPORT_KERNEL(relata_pairwise_ranking_spread, THREADS, 8, Arguments, spread);
