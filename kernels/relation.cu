// Computes   The relation of every two rows: ‖x_i − x_j‖, its square, or ⟨x_i, x_j⟩. The last is
//            the cosine where rows are normalised.
// Buffers    rows [N, D] f32, f16 or bf16, aligned to their element; matrix [N, N] f32.
// Passes     One launch; for the cosine after `normalize`.
// Grid       Tile pairs a ≤ b of 64 rows a side.
// Block      256 threads, 16 pairs a thread: see common/pair_tile.cuh.
// Shared     34 KiB: both sides of the tile, 32 dimensions at a time, and the next 32.
// Registers  at most 128.
// SASS       LDG.E.128, LDS.128
// Work       N² D flop; N²/64 D elements read, 4 N² bytes written.
// Floor      FP32 issue: N² D / 33.4e12 s on an H200, half of that for products.
// Numerics   Distances come from differences, so they are right however close rows lie. Where a
//            square leaves the range of f32, a square that was asked for leaves it too; a distance
//            is then computed again, in f64.
// Order      Fixed: dimensions in order, 32 at a time.
// Reference  src/reference/mod.rs, relation_matrix.
#include "common/pair_tile.cuh"
#include "ops/relation.cuh"

namespace {

using pair_tile::THREADS;

// Mirrored, with Arguments, in src/gpu/relation.rs.
enum Relation : uint32_t { DISTANCE = 0, SQUARED_DISTANCE = 1, DOT = 2, POSITIVE = 3, SHIFTED = 4 };

struct Arguments {
    const void* rows;
    float* matrix;
    uint32_t n;
    uint32_t dim;
    uint32_t relation;
    uint32_t padding;
};
ARGUMENTS(Arguments, rows, matrix, n, dim, relation, padding);

// ‖x_i − x_j‖ where its square is not in the range of f32. This thread alone computes it again. It
// is rare, so there is one copy of the code, and not one for each of a thread's pairs.
template <typename T>
DEVICE_CALL float distance_in_f64(const T* x, const T* y, uint32_t dim) {
    double sum = 0;
    for (uint32_t d = 0; d < dim; d++) {
        const double difference =
            static_cast<double>(to_float(x[d])) - static_cast<double>(to_float(y[d]));
        sum = fma(difference, difference, sum);
    }
    return static_cast<float>(sqrt(sum));
}

template <typename T>
DEVICE void relations(const Arguments& arguments) {
    constexpr unsigned PER = 4, SIDE = 16 * PER;
    SHARED_ARRAY(float, shared, pair_tile::SHARED<float>);
    const uint32_t n = arguments.n, dim = arguments.dim;
    const T* rows = static_cast<const T*>(arguments.rows);
    const auto [a, b] = pair_tile::pair_of(blockIdx.x);
    // Sums over the dimensions
    float sum[PER][PER];
    const bool product = arguments.relation >= DOT;
    if (product) {
        pair_tile::sums<PER, pair_tile::Product>(rows, n, dim, a * SIDE, b * SIDE, shared, sum);
    } else {
        pair_tile::sums<PER, pair_tile::SquaredDifference>(rows, n, dim, a * SIDE, b * SIDE, shared,
                                                           sum);
    }
    // Store both halves of the matrix
    UNROLL
    for (unsigned p = 0; p < PER; p++) {
        UNROLL
        for (unsigned q = 0; q < PER; q++) {
            const uint32_t i = a * SIDE + threadIdx.x / 16 * PER + p;
            const uint32_t j = b * SIDE + threadIdx.x % 16 * PER + q;
            if (i >= n || j >= n) continue;
            float value = sum[p][q];
            if (i == j && !product) {
                // A row's distance from itself is 0. It is NaN if the row is not finite.
                value *= 0.0f;
            } else if (arguments.relation == DISTANCE) {
                const bool in_range = value > 1e-30f && value < 1e38f;
                value = in_range ? sqrtf(value)
                                 : distance_in_f64(rows + static_cast<uint64_t>(i) * dim,
                                                   rows + static_cast<uint64_t>(j) * dim, dim);
            } else if (arguments.relation == POSITIVE) {
                value = relation::Positive::of_sum(value);
            } else if (arguments.relation == SHIFTED) {
                value = relation::Shifted::of_sum(value);
            }
            arguments.matrix[static_cast<uint64_t>(i) * n + j] = value;
            if (a != b) arguments.matrix[static_cast<uint64_t>(j) * n + i] = value;
        }
    }
}

}  // namespace

EXPORT_KERNEL(relata_relation_f32, THREADS, 2, Arguments, relations<float>);
EXPORT_KERNEL(relata_relation_f16, THREADS, 2, Arguments, relations<f16>);
EXPORT_KERNEL(relata_relation_bf16, THREADS, 2, Arguments, relations<bf16>);
