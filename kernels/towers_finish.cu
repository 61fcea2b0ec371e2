// Computes   The gradient of each row as it came, from the splits' sums and the own pair; and the
//            loss with its terms.
// Buffers    rows [N, D] f32 at length 1; norms [N] f32: 1/‖x‖, or 0; records [N]; sums [splits, N, D]
//            f32; moments [2, splits, N] f64; losses [2, N] f64 and row_factor [1] f64 as
//            towers_rows writes them; partials [3, N] f64; gradient [N, D] f32; value [4] f32.
// Passes     The last: towers_gradient, this. One launch. The last block adds up the rows.
// Grid       N blocks.
// Block      256 threads, side by side along the row.
// Shared     64 bytes, for reductions.
// Registers  at most 64.
// Work       (splits + 2) N D flop; 4 (splits + 3) N D bytes.
// Floor      Bandwidth.
// Numerics   Splits are added in f64.
// Order      Fixed: by split, by thread, by warp.
// Reference  src/cpu/towers/mod.rs.
#include "common/towers.cuh"

namespace {

using namespace towers;

constexpr unsigned THREADS = 256;

// Mirrored in src/gpu/towers/arguments.rs.
struct Arguments {
    const float* rows;
    const float* norms;
    const Record* records;
    const float* sums;
    const double* moments;
    const double* losses;
    const double* row_factor;
    double* partials;
    float* gradient;
    float* value;
    unsigned* counter;
    double per_temperature;  // 1/τ
    double factor;           // of the loss, times row_factor
    double gradient_factor;  // upstream times that, times 1/τ or a
    double along_factor;     // of the sum over both rows of each pair
    Compared compared;
    uint32_t dim;
    uint32_t splits;
    uint32_t kind;
    float hard_weight;
    float soft_weight;
    uint32_t has_teacher;
};
ARGUMENTS(Arguments, rows, norms, records, sums, moments, losses, row_factor, partials, gradient, value,
          counter, per_temperature, factor, gradient_factor, along_factor, compared, dim, splits, kind,
          hard_weight, soft_weight, has_teacher);

DEVICE double moment_of(const Arguments& arguments, unsigned which, uint32_t row) {
    const uint64_t n = arguments.compared.rows;
    double sum = 0;
    for (uint32_t s = 0; s < arguments.splits; s++)
        sum += arguments.moments[(which * static_cast<uint64_t>(arguments.splits) + s) * n + row];
    return sum;
}

// Stores what the row adds to the loss and its terms. One thread calls it.
DEVICE void store_losses(const Arguments& arguments, uint32_t row, double along) {
    const uint32_t n = arguments.compared.rows;
    double first = arguments.losses[row], second = arguments.losses[n + row];
    if (is_softmax(arguments.kind)) {
        if (arguments.has_teacher)
            second = fma(moment_of(arguments, 0, row), arguments.per_temperature, second);
    } else if (arguments.kind == SIGMOID) {
        first += moment_of(arguments, 0, row);
        second += moment_of(arguments, 1, row);
    } else if (second > 0) {
        first = fma(moment_of(arguments, 0, row) * arguments.per_temperature,
                    static_cast<double>(arguments.records[row].per_target), first);
    }
    arguments.partials[row] = first;
    arguments.partials[n + row] = second;
    arguments.partials[2 * static_cast<uint64_t>(n) + row] = along;
}

// The last block calls it.
DEVICE void finish(const Arguments& arguments, double factor) {
    const uint32_t n = arguments.compared.rows;
    double sums[3];
    UNROLL
    for (unsigned i = 0; i < 3; i++) {
        double sum = 0;
        for (uint32_t row = threadIdx.x; row < n; row += THREADS)
            sum += arguments.partials[static_cast<uint64_t>(i) * n + row];
        sums[i] = block_reduce<THREADS>(sum, Sum());
    }
    if (threadIdx.x > 0) return;
    float* value = arguments.value;
    const double first = factor * sums[0], second = factor * sums[1];
    const double along = factor * arguments.along_factor * sums[2];
    if (is_softmax(arguments.kind)) {
        const double soft = arguments.has_teacher ? second : 0;
        value[0] = static_cast<float>(arguments.hard_weight * first + arguments.soft_weight * soft);
        value[1] = static_cast<float>(first);
        value[2] = static_cast<float>(soft);
        value[3] = static_cast<float>(along);
    } else if (arguments.kind == SIGMOID) {
        value[0] = static_cast<float>(first);
        value[1] = static_cast<float>(along);
        value[2] = static_cast<float>(second);
    } else {
        value[0] = static_cast<float>(first);
        value[1] = static_cast<float>(along);
    }
}

DEVICE void towers_finish(const Arguments& arguments) {
    const uint32_t dim = arguments.dim, row = blockIdx.x, n = arguments.compared.rows;
    const uint64_t start = static_cast<uint64_t>(row) * dim;
    const uint32_t partner = arguments.compared.partner(row);
    const float* x = arguments.rows + start;
    const float* other = arguments.rows + static_cast<uint64_t>(partner) * dim;
    float* gradient = arguments.gradient + start;
    // Labels: the own pair is the row itself, and no pair.
    double own = 0;
    if (is_softmax(arguments.kind))
        own = static_cast<double>(arguments.records[row].own) + arguments.records[partner].own;
    if (arguments.kind == SIGMOID) own = arguments.records[row].own;
    const double row_factor = *arguments.row_factor;
    const double factor = arguments.factor * row_factor;
    const double gradient_factor = arguments.gradient_factor * row_factor;

    // Sum over the splits
    double along = 0;
    for (uint32_t d = threadIdx.x; d < dim; d += THREADS) {
        double sum = own * other[d];
        for (uint32_t s = 0; s < arguments.splits; s++)
            sum += arguments.sums[(static_cast<uint64_t>(s) * n + row) * dim + d];
        // The same rounded sum in both, so that what is along the row cancels: of rows of one
        // element that is all.
        const auto rounded = static_cast<float>(sum);
        gradient[d] = rounded;
        along = fma(static_cast<double>(rounded), static_cast<double>(x[d]), along);
    }
    along = block_reduce<THREADS>(along, Sum());
    // Carry the gradient back to the row as it came
    const double inverse_norm = static_cast<double>(arguments.norms[row]) * gradient_factor;
    for (uint32_t d = threadIdx.x; d < dim; d += THREADS)
        gradient[d] = static_cast<float>(inverse_norm * (gradient[d] - along * x[d]));
    if (threadIdx.x == 0) store_losses(arguments, row, along);
    if (is_last_block(arguments.counter)) finish(arguments, factor);
}

}  // namespace

EXPORT_KERNEL(relata_towers_finish, THREADS, 4, Arguments, towers_finish);
