// Computes   the rows of a batch as the attention kernels read them: z = x/‖x‖, or x as it is; each row's scale, from
//            products with a key to logits in base 2; and a record for the finishing pass.
// Buffers    two sets (student and teacher), each: x [N, D] f32, f16 or bf16, aligned to its element; rows [N, pitch]
//            f32 or f16, zero from D on, unless its format is NONE; scales [N] f32, records [N] {f64, f64}.
// Passes     one launch: the norm, then (from L1) the row.
// Grid       ⌈N/4⌉ × 2 sets.
// Block      128 threads: warp w takes row 4 · blockIdx.x + w; lane l elements l, l + 32, ...
// Shared     none.
// Registers  at most 64.
// Work       4 D flop a row, in f64; D elements read, pitch elements written.
// Floor      latency: two reads of a short row, about 2 µs.
// Numerics   squares are summed in f64: no square overflows or vanishes, of a norm up to the largest f32 or down to
//            the least. SCALED_F16 multiplies by the power of two that brings ‖x‖ to [2^14, 2^15): nothing is rounded
//            but elements below 2^-28 ‖x‖, off by 2^-39 ‖x‖ at most, of f16 and bf16 alike; the rest of the way to a
//            logit is an f32 factor on the sum. A zero row stays zero: its logits are 0. Of a row that holds a NaN or
//            an infinity, the record and all that is made of it are NaN.
// Order      fixed: by lane, by warp.
// Reference  src/reference/mod.rs, Matrix::normalize.
#include "common/attention.cuh"
#include "common/collective.cuh"

namespace {

constexpr unsigned THREADS = 128;
constexpr unsigned WARPS = THREADS / WARP;

// Mirrored in src/gpu/attention/arguments.rs.
enum Format : uint32_t { NONE = 0, F32 = 1, SCALED_F16 = 2 };

struct Set {
    const void* from;
    void* to;
    float* scales;
    RowRecord* records;
    uint32_t format;
    float per_temperature;  // log2(e)/τ, or 1 for keys
};

struct Arguments {
    Set sets[2];
    uint32_t rows;
    uint32_t dim;
    uint32_t pitch;
    uint32_t normalize;
};

template <typename T>
DEVICE void attention_rows(const Arguments& arguments) {
    const Set& set = arguments.sets[blockIdx.y];
    const uint64_t row = static_cast<uint64_t>(blockIdx.x) * WARPS + warp_index();
    if (row >= arguments.rows) return;
    const uint32_t dim = arguments.dim, pitch = arguments.pitch;
    const T* x = static_cast<const T*>(set.from) + row * dim;

    double squares = 0;
    for (uint32_t d = lane_index(); d < dim; d += WARP) {
        const double element = to_float(x[d]);
        squares = fma(element, element, squares);
    }
    const double norm = sqrt(warp_reduce(squares, Sum()));
    // NaN unless all elements are finite.
    const double poison = norm * 0;
    const double inverse = norm == 0 ? 0 : 1 / norm + poison;
    const double unit = arguments.normalize ? inverse : 1 + poison;

    double factor = unit;
    if (set.format == SCALED_F16) factor = inverse > 0 ? scalbn(1.0, 14 - ilogb(norm)) : 1;
    // From what is written to a logit. Of a zero row it doesn't matter, but a scale is above 0, and small enough for
    // one of a key.
    float scale = set.per_temperature;
    if (set.format == SCALED_F16) scale *= static_cast<float>(inverse == 0 ? 0x1p-14 : unit / factor);
    if (lane_index() == 0) {
        set.scales[row] = scale;
        set.records[row] = {static_cast<double>(scale) * factor + poison, unit};
    }

    if (set.format == NONE) return;
    for (uint32_t d = lane_index(); d < pitch; d += WARP) {
        const float element = d < dim ? static_cast<float>(to_float(x[d]) * factor) : 0;
        const uint64_t at = row * pitch + d;
        if (set.format == F32) {
            static_cast<float*>(set.to)[at] = element;
        } else {
            static_cast<f16*>(set.to)[at] = to_f16(element);
        }
    }
}

}  // namespace

EXPORT_KERNEL(relata_attention_rows_f32, THREADS, 8, Arguments, attention_rows<float>);
EXPORT_KERNEL(relata_attention_rows_f16, THREADS, 8, Arguments, attention_rows<f16>);
EXPORT_KERNEL(relata_attention_rows_bf16, THREADS, 8, Arguments, attention_rows<bf16>);
