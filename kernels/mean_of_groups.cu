// Computes   The mean of the groups' values: of their losses, and of each of their terms.
// Buffers    values [groups, width] f32: the loss and the terms of each group; value [width] f32.
// Passes     One launch, after those of all groups.
// Grid       A block for each of the values: the loss and the terms.
// Block      256 threads: thread t takes groups t, t + 256, ...
// Shared     64 bytes, for reductions.
// Registers  at most 64.
// Work       4 bytes and 1 flop in f64 a value.
// Floor      Launch.
// Numerics   Sums are in f64, so that the mean is as exact as the values, which are in f32.
// Order      Fixed: by thread, by warp, by block.
// Reference  src/problem/groups.rs.
#include "common/collective.cuh"

namespace {

constexpr unsigned THREADS = 256;

// Mirrored in src/gpu/groups.rs.
struct Arguments {
    const float* values;
    float* value;
    uint32_t groups;
    uint32_t width;
};
ARGUMENTS(Arguments, values, value, groups, width);

DEVICE void mean_of_groups(const Arguments& arguments) {
    double sum = 0;
    for (uint32_t g = threadIdx.x; g < arguments.groups; g += THREADS)
        sum += arguments.values[static_cast<uint64_t>(g) * arguments.width + blockIdx.x];
    sum = block_reduce<THREADS>(sum, Sum());
    if (threadIdx.x == 0) arguments.value[blockIdx.x] = static_cast<float>(sum / arguments.groups);
}

}  // namespace

EXPORT_KERNEL(relata_mean_of_groups, THREADS, 4, Arguments, mean_of_groups);
