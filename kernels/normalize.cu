// Computes   z = x/(‖x‖ + ε) of every row, and the way back:
//              ∂L/∂x = (g − ⟨g, z⟩ z (‖x‖ + ε)/‖x‖)/(‖x‖ + ε).
//            ε is 0 for most losses. A row of zeros has no direction: z = 0, and its gradient is 0.
// Buffers    x [N, pitch] f32, f16 or bf16, aligned to its element, of which the first D columns
//            count; z, gradient [N, D] f32; norms [N] f32: 1/(‖x‖ + ε), or 0; sum [N, pitch] f32,
//            the gradient by rows that prefixes are taken of, or null.
// Passes     `normalize`: one launch for up to two matrices. `normalize_backward`: one launch, in
//            place over the gradient; or over the sum: `first` sets it, with zeros beyond D, and a
//            later launch adds to its first D columns.
// Grid       (N, matrices).
// Block      256 threads, side by side along the row.
// Shared     64 bytes, for reductions.
// Registers  at most 64.
// Work       An element takes 2 flop in f64 and 2 in f32 forth, and 5 back; it takes element + 4
//            bytes forth, and 12 back.
// Floor      Bandwidth, launch.
// Numerics   Squares and their sums are in f64, where those of f32 neither overflow nor vanish.
//            Elements are divided by the norm, rounded to f32. So rows on one line through the
//            origin differ by these two roundings at most.
// Order      Fixed: by thread, warp, block.
// Reference  src/reference/mod.rs, Matrix::normalize.
#include "common/collective.cuh"
#include "common/element.cuh"

namespace {

constexpr unsigned THREADS = 256;

// Mirrored, with BackwardArguments, in src/gpu/normalize.rs.
struct Arguments {
    const void* rows[2];
    float* normalized[2];
    float* norms[2];
    uint32_t dim[2];
    uint32_t pitch[2];  // how far apart rows lie, in elements
    double epsilon;
};
ARGUMENTS(Arguments, rows, normalized, norms, dim, pitch, epsilon);

template <typename T>
DEVICE void normalize(const Arguments& arguments) {
    const unsigned which = blockIdx.y;
    const uint32_t dim = arguments.dim[which];
    const uint64_t start = static_cast<uint64_t>(blockIdx.x) * dim;
    const T* x = static_cast<const T*>(arguments.rows[which]) + static_cast<uint64_t>(blockIdx.x) * arguments.pitch[which];
    // Norm
    double sum = 0;
    for (uint32_t d = threadIdx.x; d < dim; d += THREADS) {
        const double value = to_float(x[d]);
        sum = fma(value, value, sum);
    }
    sum = block_reduce<THREADS>(sum, Sum());
    // NaN if the row is not finite. No sum of squares of f32 leaves the range of f64.
    const double norm = sqrt(sum) + sum * 0.0;
    const double length = norm + arguments.epsilon;
    // A power of two near 1/length. It is in the range of f32, where the length itself may not be.
    const int exponent = length > 0 ? ilogb(length) : 0;
    const float scale = ldexpf(1.0f, exponent < -125 ? 125 : exponent > 125 ? -125 : -exponent);
    const auto scaled = static_cast<float>(length * scale);
    // Store. We divide and do not multiply by 1/norm: so rows of one element become exactly ±1.
    for (uint32_t d = threadIdx.x; d < dim; d += THREADS)
        arguments.normalized[which][start + d] =
            norm == 0 ? 0.0f : to_float(x[d]) * scale / scaled;
    if (threadIdx.x == 0 && arguments.norms[which] != nullptr)
        arguments.norms[which][blockIdx.x] = norm == 0 ? 0.0f : static_cast<float>(1 / length);
}

struct BackwardArguments {
    const float* normalized;
    const float* norms;
    float* gradient;
    float* sum;  // null if the gradient is to be overwritten in place
    uint32_t dim;
    uint32_t pitch;
    uint32_t first;  // whether nothing is in the sum yet
    float epsilon;
};
ARGUMENTS(BackwardArguments, normalized, norms, gradient, sum, dim, pitch, first, epsilon);

DEVICE void normalize_backward(const BackwardArguments& arguments) {
    const uint32_t dim = arguments.dim;
    const uint64_t start = static_cast<uint64_t>(blockIdx.x) * dim;
    const float* z = arguments.normalized + start;
    float* g = arguments.gradient + start;
    float along = 0;
    for (uint32_t d = threadIdx.x; d < dim; d += THREADS) along = fmaf(g[d], z[d], along);
    along = block_reduce<THREADS>(along, Sum());
    const float inverse = arguments.norms[blockIdx.x];
    // ‖x‖/(‖x‖ + ε) = 1 − ε/(‖x‖ + ε)
    along /= fmaf(-arguments.epsilon, inverse, 1.0f);
    if (arguments.sum == nullptr) {
        for (uint32_t d = threadIdx.x; d < dim; d += THREADS) g[d] = fmaf(-along, z[d], g[d]) * inverse;
        return;
    }
    float* sum = arguments.sum + static_cast<uint64_t>(blockIdx.x) * arguments.pitch;
    if (arguments.first) {
        for (uint32_t d = threadIdx.x; d < arguments.pitch; d += THREADS)
            sum[d] = d < dim ? fmaf(-along, z[d], g[d]) * inverse : 0.0f;
    } else {
        for (uint32_t d = threadIdx.x; d < dim; d += THREADS) sum[d] += fmaf(-along, z[d], g[d]) * inverse;
    }
}

}  // namespace

EXPORT_KERNEL(relata_normalize_f32, THREADS, 4, Arguments, normalize<float>);
EXPORT_KERNEL(relata_normalize_f16, THREADS, 4, Arguments, normalize<f16>);
EXPORT_KERNEL(relata_normalize_bf16, THREADS, 4, Arguments, normalize<bf16>);
EXPORT_KERNEL(relata_normalize_backward, THREADS, 4, BackwardArguments, normalize_backward);
