// Computes   The rows of a batch in the form in which an attention kernel reads them: z = x/‖x‖, or
//            x as it is, or x as f16 times a power of two. And each row's scale, from products with
//            a key to logits in base 2. Only rows that the attention kernel does not prepare itself
//            come here.
// Buffers    One set or two (student and teacher). Each has x [N, D] f32, f16 or bf16, aligned to
//            its element; rows [N, pitch] f32 or f16, zero from D on; scales [N] f32.
// Passes     One launch: the norm, then the row again, from L1. It comes before attention_simt for
//            all its rows, and before attention_mma for a batch's keys.
// Grid       ⌈N/4⌉ × sets.
// Block      128 threads. Warp w takes row 4 · blockIdx.x + w. For the norm lane l takes elements
//            8 l .. 8 l + 7 of each 256; to write it takes elements l, l + 32, ...
// Shared     None.
// Registers  at most 64.
// Work       4 D flop a row, in f64 for f32; D elements read and pitch elements written.
// Floor      Latency: three reads of a short row, about 2 µs.
// Numerics   See common/attention_row.cuh. A zero row stays zero, so its logits are 0. If a row
//            holds a NaN or an infinity, its loss and gradient are NaN: here or in the last pass.
// Order      Fixed: by lane, by warp.
// Reference  src/reference/mod.rs, Matrix::normalize.
#include "common/attention_row.cuh"

namespace {

constexpr unsigned THREADS = 128;
constexpr unsigned WARPS = THREADS / WARP;

// The rows of the student or of the teacher.
struct RowSet {
    const void* from;
    void* to;
    float* scales;
    float per_temperature;  // log2(e)/τ, or 1 for keys
    uint32_t padding;
};
ARGUMENTS(RowSet, from, to, scales, per_temperature, padding);

// Mirrored, with RowSet, in src/gpu/contrastive/arguments.rs.
struct Arguments {
    RowSet sets[2];
    uint32_t rows;
    uint32_t dim;
    uint32_t pitch;
    uint32_t format;
    uint32_t normalize;
    uint32_t padding;
};
ARGUMENTS(Arguments, sets, rows, dim, pitch, format, normalize, padding);

template <typename T>
DEVICE void attention_rows(const Arguments& arguments) {
    const RowSet& set = arguments.sets[blockIdx.y];
    const uint64_t row = static_cast<uint64_t>(blockIdx.x) * WARPS + warp_index();
    if (row >= arguments.rows) return;
    const uint32_t dim = arguments.dim, pitch = arguments.pitch;
    const T* x = static_cast<const T*>(set.from) + row * dim;

    // Compute the row's length and scale
    const RowLength<T> length = length_of_row(x, dim);
    const RowRecord record =
        record_of<T>(length, arguments.format, arguments.normalize != 0, set.per_temperature);
    if (lane_index() == 0) set.scales[row] = record.scale;
    // Store the row
    const float lift = length.lift();
    for (uint32_t d = lane_index(); d < pitch; d += WARP) {
        const float element = d < dim ? to_float(x[d]) : 0;
        const uint64_t at = row * pitch + d;
        if (arguments.format == F32) {
            static_cast<float*>(set.to)[at] = static_cast<float>(element * record.inverse_norm);
        } else {
            static_cast<f16*>(set.to)[at] = to_f16(element * length.unit * lift);
        }
    }
}

}  // namespace

EXPORT_KERNEL(relata_attention_rows_f32, THREADS, 8, Arguments, attention_rows<float>);
EXPORT_KERNEL(relata_attention_rows_f16, THREADS, 8, Arguments, attention_rows<f16>);
EXPORT_KERNEL(relata_attention_rows_bf16, THREADS, 8, Arguments, attention_rows<bf16>);
