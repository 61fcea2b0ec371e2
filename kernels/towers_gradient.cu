// Computes   For every row and every split of its keys but the own one: Σ_j C_ij x_j, with the
//            coefficients C_ij = C_ji of pairs, and what pairs add to the row's losses.
//              CLIP    C = (h + s)(q_ij + q_ji) − s (p_ij + p_ji);  Σ_j p_ij (largest_i − s_ij).
//                      q_ij and p_ij are 0 where row i leaves key j out
//              SigLIP  C = σ(a s_ij + b);  Σ_j −log σ(−l), Σ_j σ(l)
//              SupCon  C = q_ij + q_ji − t_ij − t_ji;  Σ_j [same label] (largest_i − s_ij)
// Buffers    rows of student and teacher [N, D], [N, D_t] f32 at length 1, the student's are the
//            values too; records [N]; sums [splits, N, D] f32; moments [2, splits, N] f64.
// Passes     The fourth: towers_rows, this, towers_finish. One launch.
// Grid       ⌈side/64⌉ tiles of rows of each side × splits × ⌈D/128⌉. With more than 128 columns, each
//            128 columns compute the products again.
// Block      256 threads. Products: 4 rows x 4 keys a thread, as in common/pair_tile.cuh. Sums: rows
//            4r .. 4r + 3 and columns 4c .. 4c + 3, 64 + 4c .. 64 + 4c + 3, with r = t / 16, c = t % 16.
// Shared     35 KiB: both sides of a product; then coefficients, [key][row], 18 KiB, and 32 keys × 128
//            columns, 16 KiB. CLIP has 12 KiB more, for three quarters of the teacher's products: two
//            blocks fit into 100 KiB.
// Registers  at most 128.
// Work       N² (D + D_t)/2 FMA of products for each 128 columns and N² D/2 of sums, where halves are
//            compared; twice that else. 2 exponentials a pair of the student and 2 of the teacher.
// Floor      FP32 issue.
// Resident   relata_towers_gradient_softmax 2 of 256 threads and 0 bytes
// Numerics   32 dimensions, and the keys of a tile, are summed in f32, then added.
// Order      Fixed: by key, by tile; the last pass adds up the splits in order.
// Reference  src/cpu/towers/gradient.rs and ops.rs.
#include "common/towers.cuh"

namespace {

using namespace towers;

constexpr unsigned THREADS = pair_tile::THREADS;
constexpr unsigned COLUMNS = 128;
// Keys in shared memory at a time when they serve as values.
constexpr unsigned VALUES = 32;
// Eight more than the rows, as in attention_simt.cu.
constexpr unsigned WEIGHT_STRIDE = TILE + 8;
constexpr unsigned WEIGHTS = TILE * WEIGHT_STRIDE;
// All but the first row of a thread's products of the teacher.
constexpr unsigned PARKED = (PER - 1) * PER * THREADS;
static_assert(WEIGHTS + VALUES * COLUMNS <= pair_tile::SHARED<float>, "both uses of shared memory");

// Mirrored in src/gpu/towers/arguments.rs.
struct Arguments {
    const float* rows[2];  // the teacher's null if it is neither target nor guide
    const Record* records;
    float* sums;
    double* moments;
    Compared compared;
    uint32_t dim[2];
    float scale[2];  // log2(e)/τ
    float of_student;
    float of_teacher;
    float sigmoid_scale;
    float bias;
    uint32_t has_target;  // whether the teacher's softmax is one
    uint32_t padding;
};
ARGUMENTS(Arguments, rows, records, sums, moments, compared, dim, scale, of_student, of_teacher,
          sigmoid_scale, bias, has_target, padding);

// What a pair gives.
struct Pair {
    float coefficient;
    float moments[2];
};

// The weight of a key in a row's softmax.
DEVICE float weight(const Record& record, unsigned set, float product, float scale) {
    return exp2_fast(fmaf(product - record.largest[set], scale, -record.excess[set]));
}

template <Kind KIND>
DEVICE Pair pair_of(const Arguments& arguments, const Record& row, const Record& key, float student,
                    float teacher) {
    if constexpr (KIND == SIGMOID) {
        const float logit = fmaf(arguments.sigmoid_scale, student, arguments.bias);
        const float decay = exp2_fast(-fabsf(logit) * LOG2_E);
        const float sigma = (logit > 0 ? 1.0f : decay) / (1 + decay);
        return {sigma, {(logit > 0 ? logit : 0) + log1pf(decay) + logit * 0, sigma}};
    }
    const float scale = arguments.scale[0];
    float q = weight(row, 0, student, scale), back = weight(key, 0, student, scale);
    const float below = row.largest[0] - student;
    if constexpr (KIND == LABELS) {
        const bool same = row.label == key.label;
        const float target = same ? row.per_target + key.per_target : 0;
        // The log-sum of a row that does not count may be anything.
        const float pull = (row.counts > 0 ? q : 0) + (key.counts > 0 ? back : 0);
        return {pull - target, {same ? below : 0, 0}};
    }
    // A choice, not a product: the weight of a key beyond the largest may be infinite.
    bool by_row = false, by_key = false;
    if constexpr (KIND == MASKED) {
        const bool same = row.label == key.label;
        by_row = same || teacher > row.limit;
        by_key = same || teacher > key.limit;
        q = by_row ? 0 : q;
        back = by_key ? 0 : back;
    }
    float coefficient = arguments.of_student * (q + back), moment = 0;
    if (arguments.has_target) {
        const float by = arguments.scale[1];
        const float p = by_row ? 0 : weight(row, 1, teacher, by);
        const float p_back = by_key ? 0 : weight(key, 1, teacher, by);
        coefficient = fmaf(-arguments.of_teacher, p + p_back, coefficient);
        moment = p * below;
    }
    return {coefficient, {moment, 0}};
}

// Adds the keys of a tile under their coefficients, in the columns from `column` on.
DEVICE void add_values(const Arguments& arguments, uint32_t first_key, uint32_t end_key,
                       uint32_t column, const float* weights, float* values, float (&sums)[4][8]) {
    const uint32_t dim = arguments.dim[0];
    const unsigned r = threadIdx.x / 16, c = threadIdx.x % 16;
    float tile[4][8] = {};
    for (uint32_t from = 0; from < TILE; from += VALUES) {
        if (first_key + from >= end_key) break;
        block_barrier();
        UNROLL_BY(4)
        for (unsigned i = threadIdx.x; i < VALUES * COLUMNS; i += THREADS) {
            const uint32_t key = first_key + from + i / COLUMNS, d = column + i % COLUMNS;
            values[i] = key < end_key && d < dim
                            ? arguments.rows[0][static_cast<uint64_t>(key) * dim + d]
                            : 0.0f;
        }
        block_barrier();
        UNROLL_BY(4)
        for (unsigned k = 0; k < VALUES; k++) {
            float weight[4], value[2][4];
            load_chunk(weights + (from + k) * WEIGHT_STRIDE + 4 * r, weight);
            load_chunk(values + k * COLUMNS + 4 * c, value[0]);
            load_chunk(values + k * COLUMNS + 64 + 4 * c, value[1]);
            UNROLL
            for (unsigned i = 0; i < 4; i++) {
                UNROLL
                for (unsigned j = 0; j < 8; j++)
                    tile[i][j] = fmaf(weight[i], value[j / 4][j % 4], tile[i][j]);
            }
        }
    }
    UNROLL
    for (unsigned i = 0; i < 4; i++) {
        UNROLL
        for (unsigned j = 0; j < 8; j++) sums[i][j] += tile[i][j];
    }
}

template <Kind KIND>
DEVICE void gradient(const Arguments& arguments) {
    SHARED_ARRAY(float, shared, pair_tile::SHARED<float>);
    const uint32_t n = arguments.compared.rows, dim = arguments.dim[0];
    // Registers are scarce: these are in shared memory, and so are the moments and most of the
    // teacher's products while the student's are formed.
    SHARED_ARRAY(Side, sides, 1);
    if (threadIdx.x == 0) sides[0] = side_of_block(arguments.compared);
    block_barrier();
    const Side& side = sides[0];
    const uint32_t column = blockIdx.z * COLUMNS;
    const unsigned lane = threadIdx.x % 16, ti = threadIdx.x / 16 * PER, tj = lane * PER;
    constexpr bool HAS_TEACHER = KIND == SOFTMAX || KIND == MASKED;
    SHARED_ARRAY(float, parked, HAS_TEACHER ? PARKED : 1);

    constexpr unsigned MOMENTS = KIND == SIGMOID ? 2 : 1;
    // Each row's are one thread's own.
    SHARED_ARRAY(double, moments, MOMENTS * TILE);
    if (lane < PER) {
        UNROLL
        for (unsigned m = 0; m < MOMENTS; m++) moments[m * TILE + ti + lane] = 0;
    }
    float sums[4][8] = {};
    for (uint32_t first = side.first_key; first < side.end_key; first += TILE) {
        // Products
        float student[PER][PER], teacher[PER] = {};
        if constexpr (HAS_TEACHER) {
            if (arguments.rows[1] != nullptr) {
                float products[PER][PER];
                block_barrier();
                pair_tile::sums<PER, pair_tile::Product>(arguments.rows[1], n, arguments.dim[1],
                                                         side.first_row, first, shared, products);
                UNROLL
                for (unsigned b = 0; b < PER; b++) {
                    teacher[b] = products[0][b];
                    UNROLL
                    for (unsigned a = 1; a < PER; a++)
                        parked[((a - 1) * PER + b) * THREADS + threadIdx.x] = products[a][b];
                }
            }
        }
        block_barrier();
        pair_tile::sums<PER, pair_tile::Product>(arguments.rows[0], n, dim, side.first_row, first,
                                                 shared, student);
        block_barrier();
        // Coefficients
        const uint32_t row = side.first_row + ti;
        UNROLL
        for (unsigned a = 0; a < PER; a++) {
            const bool is_row = row + a < side.end_row;
            const Record of_row = arguments.records[is_row ? row + a : side.first_row];
            float added[2] = {};
            UNROLL
            for (unsigned b = 0; b < PER; b++) {
                const uint32_t key = first + tj + b;
                float coefficient = 0;
                if (is_row && key < side.end_key && key != row + a + side.own) {
                    float of_teacher = teacher[b];
                    if (HAS_TEACHER && a > 0)
                        of_teacher = parked[((a - 1) * PER + b) * THREADS + threadIdx.x];
                    const Pair pair = pair_of<KIND>(arguments, of_row, arguments.records[key],
                                                    student[a][b], of_teacher);
                    coefficient = pair.coefficient;
                    added[0] += pair.moments[0];
                    added[1] += pair.moments[1];
                }
                shared[(tj + b) * WEIGHT_STRIDE + ti + a] = coefficient;
            }
            UNROLL
            for (unsigned m = 0; m < MOMENTS; m++) {
                const float of_row = sum_of_row(added[m]);
                if (lane == a) moments[m * TILE + ti + a] += of_row;
            }
        }
        // Sums
        add_values(arguments, first, side.end_key, column, shared, shared + WEIGHTS, sums);
    }

    // Store
    const uint32_t row = side.first_row + ti;
    const uint64_t split = static_cast<uint64_t>(blockIdx.y) * n;
    if (blockIdx.z == 0 && lane < PER && row + lane < side.end_row) {
        UNROLL
        for (unsigned m = 0; m < MOMENTS; m++)
            arguments.moments[(m * static_cast<uint64_t>(gridDim.y) + blockIdx.y) * n + row + lane] =
                moments[m * TILE + ti + lane];
    }
    UNROLL
    for (unsigned a = 0; a < PER; a++) {
        if (row + a >= side.end_row) continue;
        float* to = arguments.sums + (split + row + a) * dim;
        UNROLL
        for (unsigned j = 0; j < 8; j++) {
            const uint32_t d = column + 64 * (j / 4) + 4 * lane + j % 4;
            if (d < dim) to[d] = sums[a][j];
        }
    }
}

}  // namespace

EXPORT_KERNEL(relata_towers_gradient_softmax, THREADS, 2, Arguments, gradient<SOFTMAX>);
EXPORT_KERNEL(relata_towers_gradient_masked, THREADS, 2, Arguments, gradient<MASKED>);
EXPORT_KERNEL(relata_towers_gradient_sigmoid, THREADS, 2, Arguments, gradient<SIGMOID>);
EXPORT_KERNEL(relata_towers_gradient_labels, THREADS, 2, Arguments, gradient<LABELS>);
