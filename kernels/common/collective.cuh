// Collectives: functions that the lanes of a warp, the threads of a block or the blocks of a grid
// call together. Every sum has a fixed order, so the same input gives the same bits.
//
//   function             who calls it      before: a thread holds  after: a thread holds
//   shuffle_xor, _from   a warp            a value                 another lane's value
//   warp_reduce          a warp            a value                 the result
//   warp_any             a warp            a flag                  whether any flag is set
//   warp_reduce_scatter  a warp            COUNT values            one of the COUNT results
//   read_scattered       a warp            one of COUNT results    the result it asks for
//   block_reduce         a block           a value                 the result
//   block_sums           a block           COUNT values            the COUNT sums
//   reduce_sets          a block           nothing                 the SETS results
//   warp_sums_of         a warp            nothing                 the COUNT sums
//   block_sum_of         a block           nothing                 the sum
//   is_last_block        a block           nothing                 whether its block is the last
//   take_ticket          one lane a block  nothing                 its block's place in the order
//   is_last_ticket       one warp a block  a ticket, in lane 0     whether the ticket is the last
//
// The values that reduce_sets, warp_sums_of and block_sum_of combine are arrays in memory.
// Warps are whole in every collective. The functions of a block hold barriers, so all its threads
// call them.
#pragma once

#include <type_traits>

#include "platform.cuh"

#if defined(__CUDACC__)

// Gives each lane the value of lane `lane_index() ^ mask`. A struct is exchanged word by word, so
// values that are reduced together wait for the other lanes once.
template <typename V>
DEVICE V shuffle_xor(V value, unsigned mask) {
    if constexpr (std::is_arithmetic_v<V>) {
        return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
    } else {
        static_assert(sizeof(V) % 4 == 0, "whole words");
        uint32_t words[sizeof(V) / 4];
        memcpy(words, &value, sizeof value);
        UNROLL
        for (uint32_t& word : words) word = __shfl_xor_sync(0xFFFFFFFFu, word, mask);
        memcpy(&value, words, sizeof value);
        return value;
    }
}
// Gives every lane the value of `lane`.
template <typename V>
DEVICE V shuffle_from(V value, unsigned lane) {
    return __shfl_sync(0xFFFFFFFFu, value, lane);
}

// Adds 1 to the counter and returns its old value. At `most` the counter goes back to 0. nvcc
// merges an atomicAdd of several lanes into one, for which they wait; it never merges this.
DEVICE unsigned atomic_increment(unsigned* counter, unsigned most) {
    return atomicInc(counter, most);
}
DEVICE void atomic_or(unsigned* flags, unsigned value) { atomicOr(flags, value); }
// Orders this thread's writes: all threads see those before the fence before those after it.
DEVICE void fence() { __threadfence(); }

#else

template <typename V>
DEVICE V shuffle_from(V value, unsigned lane SITE) {
    V other;
    memcpy(&other, emulator::exchange(&value, sizeof value PASS_SITE)[lane], sizeof other);
    return other;
}
template <typename V>
DEVICE V shuffle_xor(V value, unsigned mask SITE) {
    return shuffle_from(value, lane_index() ^ mask PASS_SITE);
}

DEVICE unsigned atomic_increment(unsigned* counter, unsigned most) {
    return emulator::atomic_increment(counter, most);
}
DEVICE void atomic_or(unsigned* flags, unsigned value) { emulator::atomic_or(flags, value); }
DEVICE void fence() { emulator::fence(); }

#endif

struct Sum {
    template <typename V>
    DEVICE V operator()(V a, V b) const {
        return a + b;
    }
};
// In both, a number wins over a NaN.
struct Max {
    template <typename V>
    DEVICE V operator()(V a, V b) const {
        return fmax(a, b);
    }
};
struct Min {
    template <typename V>
    DEVICE V operator()(V a, V b) const {
        return fmin(a, b);
    }
};

// Combines the values of all lanes, or of each LANES neighbouring lanes.
//
// Before: each lane holds a value. After: each lane holds the combined value of its LANES lanes.
// `combine` must be commutative: then all lanes get the same bits.
template <unsigned LANES = WARP, typename V, typename Combine>
DEVICE V warp_reduce(V value, Combine combine SITE) {
    UNROLL
    for (unsigned mask = LANES / 2; mask > 0; mask /= 2)
        value = combine(value, shuffle_xor(value, mask PASS_SITE));
    return value;
}

// Before: each lane holds a flag. After: each lane knows whether any lane's flag is set.
DEVICE bool warp_any(bool value SITE) {
#if defined(__CUDACC__)
    return __any_sync(0xFFFFFFFFu, value) != 0;
#else
    const auto either = [](unsigned a, unsigned b) { return a | b; };
    return warp_reduce(static_cast<unsigned>(value), either PASS_SITE) != 0;
#endif
}

// The index of the result that this lane holds after `warp_reduce_scatter<LANES>` of COUNT values.
// Each result has LANES / COUNT neighbouring lanes.
template <unsigned LANES, unsigned COUNT>
DEVICE unsigned scattered_index() {
    return lane_index() % LANES / (LANES / COUNT);
}
// Before: each lane holds the result `scattered_index<LANES, COUNT>()`, or a number made from it.
// After: each lane has that of result i.
template <unsigned LANES, unsigned COUNT, typename V>
DEVICE V read_scattered(V held, unsigned i SITE) {
    return shuffle_from(held, lane_index() / LANES * LANES + i * (LANES / COUNT) PASS_SITE);
}

// Reduces COUNT values at once and leaves each lane with one result.
//
// Before: each lane holds COUNT values. After: each lane holds the result of value number
// `scattered_index<LANES, COUNT>()`, combined over its LANES lanes. The result has the bits of
// `warp_reduce<LANES>`. Each step halves the number of values, so all take
// COUNT - 1 + log2(LANES / COUNT) exchanges, where COUNT calls of `warp_reduce` take
// COUNT log2(LANES). COUNT is a power of two and at most LANES.
//
//     // Four lanes share two rows: each lane has a part of both sums.
//     const float parts[2] = {part_of_row_0, part_of_row_1};
//     const float sum = warp_reduce_scatter<4>(parts, Sum());
//     // Lanes 0 and 1 now hold the sum of row 0; lanes 2 and 3 hold that of row 1.
//     const float sum_of_row_1 = read_scattered<4, 2>(sum, 1);  // in all four lanes
template <unsigned LANES, typename V, unsigned COUNT, typename Combine>
DEVICE V warp_reduce_scatter(const V (&values)[COUNT], Combine combine SITE) {
    static_assert(COUNT <= LANES && LANES % COUNT == 0, "a value for every lane or for several");
    if constexpr (COUNT == 1) {
        return warp_reduce<LANES>(values[0], combine PASS_SITE);
    } else {
        const bool upper = lane_index() % LANES >= LANES / 2;
        V half[COUNT / 2];
        UNROLL
        for (unsigned i = 0; i < COUNT / 2; i++) {
            const V kept = upper ? values[i + COUNT / 2] : values[i];
            const V given = upper ? values[i] : values[i + COUNT / 2];
            half[i] = combine(kept, shuffle_xor(given, LANES / 2 PASS_SITE));
        }
        return warp_reduce_scatter<LANES / 2>(half, combine PASS_SITE);
    }
}

// Combines the values of all threads of the block.
//
// Before: each thread holds a value. After: each thread holds the combined value. All threads call
// it: it holds two barriers.
template <unsigned THREADS, typename V, typename Combine>
DEVICE V block_reduce(V value, Combine combine SITE) {
    constexpr unsigned WARPS = THREADS / WARP;
    static_assert(THREADS % WARP == 0 && WARPS <= WARP, "a block of whole warps, at most 32");
    SHARED_ARRAY(V, of_warps, WARPS);
    value = warp_reduce(value, combine PASS_SITE);
    // Threads may still read the results of the call before.
    block_barrier(PASS_SITE_ONLY);
    if (lane_index() == 0) of_warps[warp_index()] = value;
    block_barrier(PASS_SITE_ONLY);
    value = of_warps[0];
    UNROLL
    for (unsigned w = 1; w < WARPS; w++) value = combine(value, of_warps[w]);
    return value;
}

// Sums COUNT values over the block, with one exchange for all.
//
// Before: each thread holds COUNT values. After: each thread holds the COUNT sums, in `values`. All
// threads call it: it holds two barriers.
template <unsigned THREADS, unsigned COUNT>
DEVICE void block_sums(double (&values)[COUNT] SITE) {
    constexpr unsigned WARPS = THREADS / WARP;
    SHARED_ARRAY(double, of_warps, WARPS * COUNT);
    UNROLL
    for (unsigned i = 0; i < COUNT; i++) values[i] = warp_reduce(values[i], Sum() PASS_SITE);
    // Threads may still read the results of the call before.
    block_barrier(PASS_SITE_ONLY);
    UNROLL
    for (unsigned i = 0; i < COUNT; i++) {
        if (lane_index() == 0) of_warps[warp_index() * COUNT + i] = values[i];
    }
    block_barrier(PASS_SITE_ONLY);
    UNROLL
    for (unsigned i = 0; i < COUNT; i++) {
        values[i] = of_warps[i];
        UNROLL
        for (unsigned w = 1; w < WARPS; w++) values[i] += of_warps[w * COUNT + i];
    }
}

// Takes the block's ticket. Exactly one lane of each block calls it, after it has written its
// block's result. Tickets count up from 0 in the order in which blocks take them. `counter` is 0
// before the launch and 0 after it.
//
// The write, the fence and the ticket are in this order. So a thread that finds the ticket taken,
// and then passes a fence of its own, sees the write.
DEVICE unsigned take_ticket(unsigned* counter) {
    fence();
    return atomic_increment(counter, gridDim.x * gridDim.y * gridDim.z - 1);
}
// Whether no other block of the grid takes its ticket later.
DEVICE bool is_last(unsigned ticket) { return ticket == gridDim.x * gridDim.y * gridDim.z - 1; }

// Finds the block that reaches this call last.
//
// Before: thread 0 has written its block's result. After: every thread of a block knows whether its
// block is the last one. All threads of that block see what thread 0 of every other block wrote
// before its call. All threads call it: it holds two barriers.
//
//     const double sum = block_reduce<THREADS>(mine, Sum());
//     if (threadIdx.x == 0) partials[blockIdx.x] = sum;
//     if (is_last_block(counter)) {
//         const double total = block_sum_of<THREADS>(partials, gridDim.x);
//         if (threadIdx.x == 0) *value = static_cast<float>(total);
//     }
DEVICE bool is_last_block(unsigned* counter SITE) {
    SHARED_ARRAY(unsigned, last, 1);
    block_barrier(PASS_SITE_ONLY);
    if (threadIdx.x == 0) {
        last[0] = is_last(take_ticket(counter));
        fence();
    }
    block_barrier(PASS_SITE_ONLY);
    return last[0] != 0;
}

// Does the work of `is_last_block` with one warp of each block, while the other warps go on.
//
// Before: lane 0 holds the ticket that it took after it wrote its block's result. After: every lane
// of the warp knows whether the ticket is the grid's last. If it is, all lanes see what the lanes
// that took a ticket wrote before: lane 0's fence comes after its ticket, and the other lanes'
// reads come after the barrier.
//
//     if (warp_index() == FINALIZE_WARP && lane_index() == 0) {
//         losses[blockIdx.x] = loss;
//         ticket = take_ticket(counter);
//     }
//     // ... the block computes its gradient; no warp waits ...
//     if (warp_index() == FINALIZE_WARP && is_last_ticket(ticket))
//         warp_sums_of(losses, gridDim.x, sums);
DEVICE bool is_last_ticket(unsigned ticket SITE) {
    if (!is_last(shuffle_from(ticket, 0 PASS_SITE))) return false;
    if (lane_index() == 0) fence();
    warp_barrier(PASS_SITE_ONLY);
    return true;
}

// Combines SETS short arrays of `count` values, `values` [SETS, count]. Warp w takes set w while
// the other warps have other work.
//
// Before: the arrays are in memory. After: each thread of the block holds the SETS results, in
// `sets`. An empty set gives `none`. All threads call it, once in a kernel: it holds a barrier.
template <unsigned SETS, typename V, typename Combine>
DEVICE void reduce_sets(const V* values, uint32_t count, V none, Combine combine,
                        V (&sets)[SETS] SITE) {
    SHARED_ARRAY(V, all, SETS);
    const unsigned set = warp_index();
    if (set < SETS) {
        V value = none;
        for (uint32_t i = lane_index(); i < count; i += WARP)
            value = combine(value, values[set * count + i]);
        value = warp_reduce(value, combine PASS_SITE);
        if (lane_index() == 0) all[set] = value;
    }
    block_barrier(PASS_SITE_ONLY);
    UNROLL
    for (unsigned i = 0; i < SETS; i++) sets[i] = all[i];
}

// Sums COUNT arrays of `count` values that lie one after the other, `slots` [COUNT, count].
//
// Before: the arrays are in memory. After: each lane of the warp holds `sums` plus the COUNT sums,
// added in a fixed order.
template <unsigned COUNT>
DEVICE void warp_sums_of(const double* slots, uint64_t count, double (&sums)[COUNT] SITE) {
    // One warp alone has to hide the latency of memory, so each lane keeps 16 loads in flight.
    constexpr unsigned BATCH = 16;
    for (uint64_t first = lane_index(); first < count; first += BATCH * WARP) {
        double batch[COUNT][BATCH];
        UNROLL
        for (unsigned c = 0; c < COUNT; c++) {
            UNROLL
            for (unsigned b = 0; b < BATCH; b++)
                batch[c][b] =
                    first + b * WARP < count ? slots[c * count + first + b * WARP] : 0;
        }
        UNROLL
        for (unsigned c = 0; c < COUNT; c++) {
            UNROLL
            for (unsigned b = 0; b < BATCH; b++) sums[c] += batch[c][b];
        }
    }
    UNROLL
    for (double& sum : sums) sum = warp_reduce(sum, Sum() PASS_SITE);
}

// Before: `count` values are in memory. After: each thread of the block holds their sum, added in a
// fixed order. All threads call it: it holds two barriers.
template <unsigned THREADS>
DEVICE double block_sum_of(const double* slots, uint64_t count SITE) {
    double sum = 0;
    for (uint64_t i = threadIdx.x; i < count; i += THREADS) sum += slots[i];
    return block_reduce<THREADS>(sum, Sum() PASS_SITE);
}
