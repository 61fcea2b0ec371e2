// Collectives and conversions of kernels/common. These kernels have no bugs.
#include "seeded_bugs.cuh"

namespace {

DEVICE void shuffles(const Arguments& arguments) {
    const float value = input<float>(arguments, threadIdx.x);
    for (unsigned mask = 0; mask < WARP; mask++)
        output<float>(arguments, mask * THREADS + threadIdx.x) = shuffle_xor(value, mask);
    for (unsigned lane = 0; lane < WARP; lane++)
        output<double>(arguments, (WARP / 2 + lane) * THREADS + threadIdx.x) =
            shuffle_from(static_cast<double>(value), (lane + threadIdx.x) % WARP);
}

// Sums, maxima and minima of warps, of the block (one right after the other), and of slots.
DEVICE void reductions(const Arguments& arguments) {
    const float value = input<float>(arguments, threadIdx.x);
    SHARED_ARRAY(double, slots, 5);
    if (threadIdx.x < 5) slots[threadIdx.x] = 0.5;
    const double results[] = {
        warp_reduce(value, Sum()),
        warp_reduce(value, Max()),
        warp_reduce(value, Min()),
        block_reduce<THREADS>(value, Sum()),
        block_reduce<THREADS>(value, Max()),
        block_reduce<THREADS>(value, Min()),
        block_reduce<THREADS>(static_cast<double>(value), Sum()),
        block_sum_of<THREADS>(slots, 5),
    };
    for (unsigned i = 0; i < 8; i++) output<double>(arguments, i * THREADS + threadIdx.x) = results[i];
}

// Each block writes its sum to a slot, and the last block adds all slots. Each block also sets a
// flag.
DEVICE void ticket(const Arguments& arguments) {
    double* slots = &output<double>(arguments, 1);
    const double sum = block_reduce<THREADS>(input<double>(arguments, blockIdx.x * THREADS + threadIdx.x), Sum());
    if (threadIdx.x == 0) slots[blockIdx.x] = sum;
    atomic_or(&arguments.counter[1 + blockIdx.x / 32], 1u << blockIdx.x % 32);
    if (is_last_block(arguments.counter)) {
        const double total = block_sum_of<THREADS>(slots, gridDim.x);
        if (threadIdx.x == 0) output<double>(arguments, 0) = total;
    }
}

// The same with a ticket that one warp takes before the block is done. This warp alone adds the
// slots, each one twice.
DEVICE void early_ticket(const Arguments& arguments) {
    double* slots = &output<double>(arguments, 2);
    const unsigned finalize_warp = THREADS / WARP - 1;
    unsigned ticket = 0;
    const double sum = block_reduce<THREADS>(input<double>(arguments, blockIdx.x * THREADS + threadIdx.x), Sum());
    if (warp_index() == finalize_warp && lane_index() == 0) {
        slots[blockIdx.x] = sum;
        slots[gridDim.x + blockIdx.x] = 2 * sum;
        ticket = take_ticket(arguments.counter);
    }
    block_barrier();
    if (warp_index() != finalize_warp || !is_last_ticket(ticket)) return;
    double totals[2] = {};
    warp_sums_of(slots, gridDim.x, totals);
    if (lane_index() < 2) output<double>(arguments, lane_index()) = totals[lane_index()];
}

// 16 values, each reduced by the tree to the lanes that hold it and read back from there. Then
// whether any lane of the warp is the last thread of the block.
DEVICE void scatter(const Arguments& arguments) {
    const float value = input<float>(arguments, threadIdx.x);
    float values[16];
    for (unsigned i = 0; i < 16; i++) values[i] = value * static_cast<float>(i + 1);
    const float held = warp_reduce_scatter<WARP>(values, Sum());
    for (unsigned i = 0; i < 16; i++) {
        output<float>(arguments, 2 * i * THREADS + threadIdx.x) = read_scattered<WARP, 16>(held, i);
        output<float>(arguments, (2 * i + 1) * THREADS + threadIdx.x) = warp_reduce(values[i], Sum());
    }
    output<float>(arguments, 32 * THREADS + threadIdx.x) = warp_any(threadIdx.x == THREADS - 1);
}

// Converts `count` numbers: f16 and bf16 to f32, and f32 to f16 and bf16.
DEVICE void widen(const Arguments& arguments) {
    for (uint32_t i = blockIdx.x * THREADS + threadIdx.x; i < arguments.count; i += gridDim.x * THREADS) {
        output<float>(arguments, i) = to_float(input<f16>(arguments, i));
        output<float>(arguments, arguments.count + i) = to_float(input<bf16>(arguments, i));
    }
}
DEVICE void narrow(const Arguments& arguments) {
    for (uint32_t i = blockIdx.x * THREADS + threadIdx.x; i < arguments.count; i += gridDim.x * THREADS) {
        output<f16>(arguments, i) = from_float<f16>(input<float>(arguments, i));
        output<bf16>(arguments, arguments.count + i) = from_float<bf16>(input<float>(arguments, i));
    }
}

// `count` barriers of one kind, to measure their cost.
DEVICE void barriers(const Arguments& arguments) {
    float value = 1;
    for (uint32_t i = 0; i < arguments.count; i++) {
        if (arguments.bug == 0) block_barrier();
        if (arguments.bug == 1) warp_barrier();
        if (arguments.bug == 2) value = shuffle_xor(value, 1);
    }
    output<float>(arguments, threadIdx.x % THREADS) = value;
}

}  // namespace

EXPORT_KERNEL(seeded_bugs_shuffles, THREADS, 1, Arguments, shuffles);
EXPORT_KERNEL(seeded_bugs_reductions, THREADS, 1, Arguments, reductions);
EXPORT_KERNEL(seeded_bugs_ticket, THREADS, 1, Arguments, ticket);
EXPORT_KERNEL(seeded_bugs_early_ticket, THREADS, 1, Arguments, early_ticket);
EXPORT_KERNEL(seeded_bugs_scatter, THREADS, 1, Arguments, scatter);
EXPORT_KERNEL(seeded_bugs_widen, THREADS, 1, Arguments, widen);
EXPORT_KERNEL(seeded_bugs_narrow, THREADS, 1, Arguments, narrow);
EXPORT_KERNEL(seeded_bugs_barriers, 256, 1, Arguments, barriers);
