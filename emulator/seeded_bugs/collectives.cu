// What kernels/common has threads do together, and conversions: right, for once.
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

// Every block has a slot; the last one adds up all slots. Then flags that all blocks set together.
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

// The same, where the ticket is taken before the block is done: by one warp, which alone adds up, each slot twice over.
DEVICE void early_ticket(const Arguments& arguments) {
    double* slots = &output<double>(arguments, 2);
    const unsigned clerk = THREADS / WARP - 1;
    unsigned ticket = 0;
    const double sum = block_reduce<THREADS>(input<double>(arguments, blockIdx.x * THREADS + threadIdx.x), Sum());
    if (warp_index() == clerk && lane_index() == 0) {
        slots[blockIdx.x] = sum;
        slots[gridDim.x + blockIdx.x] = 2 * sum;
        ticket = take_ticket(arguments.counter);
    }
    block_barrier();
    if (warp_index() != clerk || !is_last_ticket(ticket)) return;
    double totals[2] = {};
    warp_sums_of(slots, gridDim.x, totals);
    if (lane_index() < 2) output<double>(arguments, lane_index()) = totals[lane_index()];
}

// Every value of 16 by the tree, to the lanes that hold it, and back from there; and whether any lane is the last of all.
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

// `count` numbers through f16 and bf16: as f32 from the bits, and as bits from an f32.
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

// What a barrier costs: `count` of a kind.
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
