// What a GPU computes in its own way: approximations, and sums on tensor cores.
#include "../../kernels/common/math.cuh"
#include "../../kernels/common/mma.cuh"
#include "seeded_bugs.cuh"

namespace {

// 2^x and ln x of `count` numbers.
DEVICE void functions(const Arguments& arguments) {
    for (uint32_t i = threadIdx.x; i < arguments.count; i += THREADS) {
        const float x = input<float>(arguments, i);
        output<float>(arguments, i) = exp2_fast(x);
        output<float>(arguments, arguments.count + i) = natural_log(x);
    }
}

// The square root of 1 − 2^x, for x ≤ 0. The bug takes 2^x ≤ 1 for granted.
DEVICE void root(const Arguments& arguments) {
    const float rest = 1 - exp2_fast(input<float>(arguments, threadIdx.x));
    const bool right = arguments.bug == 0;
    output<float>(arguments, threadIdx.x) = sqrtf(right ? fmaxf(rest, 0) : rest) >= 0;
}

// 4 + Σ of the 16 halves of the input, as tensor cores add it.
DEVICE void sum(const Arguments& arguments) {
    const unsigned g = threadIdx.x / 4, t = threadIdx.x % 4;
    const auto pair = [&](unsigned k) -> uint32_t {
        return input<uint16_t>(arguments, k) | static_cast<uint32_t>(input<uint16_t>(arguments, k + 1)) << 16;
    };
    const uint32_t ones = 0x3C003C00;
    const uint32_t a[4] = {g == 0 ? pair(2 * t) : 0, 0, g == 0 ? pair(2 * t + 8) : 0, 0};
    float d[4] = {4, 4, 4, 4};
    multiply_accumulate(d, a, ones, ones);
    if (threadIdx.x == 0) output<float>(arguments, 0) = d[0];
}

}  // namespace

EXPORT_KERNEL(seeded_bugs_functions, THREADS, 1, Arguments, functions);
EXPORT_KERNEL(seeded_bugs_root, THREADS, 1, Arguments, root);
EXPORT_KERNEL(seeded_bugs_sum, WARP, 1, Arguments, sum);
