// Reads of memory that nothing wrote, and reads and writes outside of an array or an allocation.
#include "seeded_bugs.cuh"

namespace {

// Writes the input reversed: the result of most of these kernels without a bug.
DEVICE void reverse(const Arguments& arguments, const float* tile) {
    block_barrier();
    output<float>(arguments, threadIdx.x) = tile[THREADS - 1 - threadIdx.x];
}

DEVICE void static_overrun(const Arguments& arguments) {
    SHARED_ARRAY(float, tile, THREADS);
    tile[threadIdx.x] = input<float>(arguments, threadIdx.x);
    if (arguments.bug && threadIdx.x == THREADS - 1) tile[threadIdx.x + 1] = -1.0f;
    reverse(arguments, tile);
}

// Writes -1, which is the content of memory that nothing has written.
DEVICE void integer_overrun(const Arguments& arguments) {
    SHARED_ARRAY(int, flags, THREADS);
    flags[threadIdx.x + arguments.bug] = -1;
    block_barrier();
    output<float>(arguments, threadIdx.x) = input<float>(arguments, THREADS - 1 - threadIdx.x);
}

DEVICE void static_underrun(const Arguments& arguments) {
    SHARED_ARRAY(float, before, THREADS);
    before[threadIdx.x] = 0;
    SHARED_ARRAY(float, tile, THREADS);
    tile[threadIdx.x] = input<float>(arguments, threadIdx.x);
    if (arguments.bug && threadIdx.x == 0) *(tile - arguments.bug) = 1.0f;
    reverse(arguments, tile);
}

DEVICE void dynamic_overrun(const Arguments& arguments) {
    DYNAMIC_SHARED(float, tile);
    tile[threadIdx.x] = input<float>(arguments, threadIdx.x);
    if (arguments.bug == 1 && threadIdx.x == 5) tile[THREADS] = 1.0f;
    if (arguments.bug == 2 && threadIdx.x == 5) *(tile - 1) = 1.0f;
    reverse(arguments, tile);
}

DEVICE void static_limit(const Arguments& arguments) {
    SHARED_ARRAY(float, tile, 12 * 1024);
    tile[threadIdx.x] = input<float>(arguments, threadIdx.x);
    if (arguments.bug) {
        SHARED_ARRAY(float, one_more, 1);
        one_more[0] = 0;
    }
    reverse(arguments, tile);
}

DEVICE void unwritten_shared(const Arguments& arguments) {
    SHARED_ARRAY(float, tile, THREADS);
    if (!arguments.bug || threadIdx.x != 7) tile[threadIdx.x] = input<float>(arguments, threadIdx.x);
    reverse(arguments, tile);
}

// Copies. The bugs write one element behind or before the output.
DEVICE void copy(const Arguments& arguments) {
    const uint64_t at = static_cast<uint64_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= arguments.count) return;
    output<float>(arguments, at) = input<float>(arguments, at);
    if (at != arguments.count - 1) return;
    float* const end = &output<float>(arguments, arguments.count);
    if (arguments.bug == 1) end[0] = 1.0f;
    if (arguments.bug == 2) *(end - arguments.count - 1) = 1.0f;
}

DEVICE void misaligned(const Arguments& arguments) {
    float chunk[4];
    load_chunk(&input<float>(arguments, 4 * threadIdx.x + arguments.bug), chunk);
    output<float>(arguments, threadIdx.x) = chunk[0] + chunk[1] + chunk[2] + chunk[3];
}

DEVICE void register_array(const Arguments& arguments) {
    float registers[4];
    for (unsigned i = 0; i < 4; i++) registers[i] = input<float>(arguments, i);
    output<float>(arguments, threadIdx.x) = registers[(threadIdx.x % 4 + arguments.bug) % 5];
}

DEVICE void divide(const Arguments& arguments) {
    output<float>(arguments, threadIdx.x) = static_cast<float>(threadIdx.x / (1 - arguments.bug));
}

}  // namespace

EXPORT_KERNEL(seeded_bugs_static_overrun, THREADS, 1, Arguments, static_overrun);
EXPORT_KERNEL(seeded_bugs_integer_overrun, THREADS, 1, Arguments, integer_overrun);
EXPORT_KERNEL(seeded_bugs_static_underrun, THREADS, 1, Arguments, static_underrun);
EXPORT_KERNEL(seeded_bugs_dynamic_overrun, THREADS, 1, Arguments, dynamic_overrun);
EXPORT_KERNEL(seeded_bugs_static_limit, THREADS, 1, Arguments, static_limit);
EXPORT_KERNEL(seeded_bugs_unwritten_shared, THREADS, 1, Arguments, unwritten_shared);
EXPORT_KERNEL(seeded_bugs_copy, THREADS, 1, Arguments, copy);
EXPORT_KERNEL(seeded_bugs_misaligned, THREADS, 1, Arguments, misaligned);
EXPORT_KERNEL(seeded_bugs_register_array, THREADS, 1, Arguments, register_array);
EXPORT_KERNEL(seeded_bugs_divide, THREADS, 1, Arguments, divide);
