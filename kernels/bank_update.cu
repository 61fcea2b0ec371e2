// Computes   Moves rows of a memory bank towards those of a batch: m · old + (1 − m) · x/‖x‖, at length
//            1 again. If an element of the batch is not finite, nothing changes.
// Buffers    batch [B, D] f32, f16 or bf16, aligned to its element; norms [B] f64; samples [B] u32: a
//            row of the bank, or 2³² − 1 for a row that a later one of its sample replaces; bank
//            [n_data, D] f32; flag, counter u32, 0 behind this.
// Passes     Two launches: `measure` in enqueue.cu computes the norms, and raises the flag where one
//            is not finite. This one writes, and its last block lowers the flag.
// Grid       ⌈B/4⌉.
// Block      128 threads: warp w takes row 4 · blockIdx.x + w, and lane l takes elements l, l + 32,
//            ...
// Shared     16 bytes, for the ticket.
// Registers  at most 64.
// Work       2 B D elements of either read, B D written; 8 B D flop in f64.
// Floor      Latency: two launches and four reads of a short row, about 5 µs.
// Numerics   All in f64, rounded once. A mean of 0 stays 0.
// Order      Fixed: by lane, by warp. Rows of the bank are written by one warp each.
// Reference  src/bank.rs, Bank::update.
#include "common/collective.cuh"
#include "common/element.cuh"

namespace {

constexpr unsigned THREADS = 128;
constexpr unsigned WARPS = THREADS / WARP;
constexpr uint32_t NONE = 0xffffffff;

// Mirrored in src/gpu/sampled/update.rs.
struct Arguments {
    const void* batch;
    const double* norms;
    const uint32_t* samples;
    float* bank;
    uint32_t* flag;
    unsigned* counter;
    double momentum;
    uint32_t rows;
    uint32_t dim;
};
ARGUMENTS(Arguments, batch, norms, samples, bank, flag, counter, momentum, rows, dim);

template <typename T>
DEVICE void update(const Arguments& arguments) {
    const uint64_t row = static_cast<uint64_t>(blockIdx.x) * WARPS + warp_index();
    const uint32_t dim = arguments.dim;
    const bool finite = *arguments.flag == 0;
    const uint32_t sample = row < arguments.rows ? arguments.samples[row] : NONE;
    if (finite && sample != NONE) {
        const T* x = static_cast<const T*>(arguments.batch) + row * dim;
        float* old = arguments.bank + static_cast<uint64_t>(sample) * dim;
        const double momentum = arguments.momentum, norm = arguments.norms[row];
        const double factor = norm == 0 ? 0 : (1 - momentum) / norm;
        // Norm of the mean
        double squares = 0;
        for (uint32_t d = lane_index(); d < dim; d += WARP) {
            const double mean = fma(momentum, static_cast<double>(old[d]), factor * to_float(x[d]));
            squares = fma(mean, mean, squares);
        }
        const double length = sqrt(warp_reduce(squares, Sum()));
        const double scale = length == 0 ? 0 : 1 / length;
        // Store
        for (uint32_t d = lane_index(); d < dim; d += WARP) {
            const double mean = fma(momentum, static_cast<double>(old[d]), factor * to_float(x[d]));
            old[d] = static_cast<float>(mean * scale);
        }
    }
    // All blocks have read the flag by now.
    if (is_last_block(arguments.counter) && threadIdx.x == 0) *arguments.flag = 0;
}

}  // namespace

EXPORT_KERNEL(relata_bank_update_f32, THREADS, 8, Arguments, update<float>);
EXPORT_KERNEL(relata_bank_update_f16, THREADS, 8, Arguments, update<f16>);
EXPORT_KERNEL(relata_bank_update_bf16, THREADS, 8, Arguments, update<bf16>);
