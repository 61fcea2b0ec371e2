// What the lanes of a warp, the threads of a block and the blocks of a grid do together. Orders are fixed: the same
// input gives the same bits.
#pragma once

#include <type_traits>

#include "platform.cuh"

#if defined(__CUDACC__)

// A struct goes word by word: what is reduced together waits for the other lanes once.
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
template <typename V>
DEVICE V shuffle_from(V value, unsigned lane) {
    return __shfl_sync(0xFFFFFFFFu, value, lane);
}

// From `most` on to 0. Unlike an atomicAdd it is never put together with those of other lanes, who would wait for it.
DEVICE unsigned atomic_increment(unsigned* counter, unsigned most) { return atomicInc(counter, most); }
DEVICE void atomic_or(unsigned* flags, unsigned value) { atomicOr(flags, value); }
// What this thread wrote before is seen by all before what it writes after.
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
    unsigned was = __atomic_load_n(counter, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(counter, &was, was >= most ? 0 : was + 1, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return was;
}
DEVICE void atomic_or(unsigned* flags, unsigned value) { __atomic_fetch_or(flags, value, __ATOMIC_RELAXED); }
DEVICE void fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

#endif

struct Sum {
    template <typename V>
    DEVICE V operator()(V a, V b) const {
        return a + b;
    }
};
// A NaN loses against a number in both.
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

// `value` of all lanes put together, or of LANES neighbouring ones, in every lane. `combine` is commutative, so that all
// get the same bits.
template <unsigned LANES = WARP, typename V, typename Combine>
DEVICE V warp_reduce(V value, Combine combine SITE) {
    UNROLL
    for (unsigned mask = LANES / 2; mask > 0; mask /= 2) value = combine(value, shuffle_xor(value, mask PASS_SITE));
    return value;
}

// Whether `value` is true of a lane of the warp.
DEVICE bool warp_any(bool value SITE) {
#if defined(__CUDACC__)
    return __any_sync(0xFFFFFFFFu, value) != 0;
#else
    return warp_reduce(static_cast<unsigned>(value), [](unsigned a, unsigned b) { return a | b; } PASS_SITE) != 0;
#endif
}

// Which of COUNT values a lane holds, of those that LANES neighbouring ones have put together: each the same number of lanes.
template <unsigned LANES, unsigned COUNT>
DEVICE unsigned held_value() {
    return lane_index() % LANES / (LANES / COUNT);
}
// What the lanes that hold value i have of it.
template <unsigned LANES, unsigned COUNT, typename V>
DEVICE V from_holder(V held, unsigned i SITE) {
    return shuffle_from(held, lane_index() / LANES * LANES + i * (LANES / COUNT) PASS_SITE);
}

// Every one of `values` as `warp_reduce<LANES>` would put it together, to the same bits, but only the one that the lane
// holds: COUNT - 1 exchanges and not COUNT log LANES, since each step halves what is left. COUNT is a power of two.
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
            const V kept = upper ? values[i + COUNT / 2] : values[i], given = upper ? values[i] : values[i + COUNT / 2];
            half[i] = combine(kept, shuffle_xor(given, LANES / 2 PASS_SITE));
        }
        return warp_reduce_scatter<LANES / 2>(half, combine PASS_SITE);
    }
}

// `value` of all threads of the block put together, in every thread. All threads call it; it holds barriers.
template <unsigned THREADS, typename V, typename Combine>
DEVICE V block_reduce(V value, Combine combine SITE) {
    constexpr unsigned WARPS = THREADS / WARP;
    static_assert(THREADS % WARP == 0 && WARPS <= WARP, "a block of whole warps, at most 32");
    SHARED_ARRAY(V, of_warps, WARPS);
    value = warp_reduce(value, combine PASS_SITE);
    // Whoever called before may still be reading.
    block_barrier(PASS_SITE_ONLY);
    if (lane_index() == 0) of_warps[warp_index()] = value;
    block_barrier(PASS_SITE_ONLY);
    value = of_warps[0];
    UNROLL
    for (unsigned w = 1; w < WARPS; w++) value = combine(value, of_warps[w]);
    return value;
}

// The sum of each of `values` over all threads of the block, in every thread; one exchange for all. All threads call it.
template <unsigned THREADS, unsigned COUNT>
DEVICE void block_sums(double (&values)[COUNT] SITE) {
    constexpr unsigned WARPS = THREADS / WARP;
    SHARED_ARRAY(double, of_warps, WARPS * COUNT);
    UNROLL
    for (unsigned i = 0; i < COUNT; i++) values[i] = warp_reduce(values[i], Sum() PASS_SITE);
    // Whoever called before may still be reading.
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

// The number of a ticket that every block of the grid takes one of: which of them comes last is known by it. What the thread
// wrote, the fence and the ticket are in this order: who finds the ticket taken, and has a fence of its own behind that, sees
// it. `counter` is 0 before the launch and after it.
DEVICE unsigned take_ticket(unsigned* counter) {
    fence();
    return atomic_increment(counter, gridDim.x * gridDim.y * gridDim.z - 1);
}
DEVICE bool is_last(unsigned ticket) { return ticket == gridDim.x * gridDim.y * gridDim.z - 1; }

// Whether this is the last block of the grid to get here, in all its threads: it sees what all others wrote before.
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

// The same in two steps, by one warp of each block while the others go on. A lane takes a ticket as soon as it has written
// what the last block is to see; some time later its warp looks whether `ticket`, lane 0's, is the grid's last. If so, all its
// lanes see what those who took one wrote before: lane 0's fence stands behind its ticket, the lanes' reads behind the barrier.
DEVICE bool is_last_ticket(unsigned ticket SITE) {
    if (!is_last(shuffle_from(ticket, 0 PASS_SITE))) return false;
    if (lane_index() == 0) fence();
    warp_barrier(PASS_SITE_ONLY);
    return true;
}

// `values` [SETS, count] put together set by set, in every thread of the block, where they are few: each set by one warp, while
// the others have better to do. Of no values a set is `none`. All threads call it, once in a kernel; it holds a barrier.
template <unsigned SETS, typename V, typename Combine>
DEVICE void reduce_sets(const V* values, uint32_t count, V none, Combine combine, V (&sets)[SETS] SITE) {
    SHARED_ARRAY(V, all, SETS);
    const unsigned set = warp_index();
    if (set < SETS) {
        V value = none;
        for (uint32_t i = lane_index(); i < count; i += WARP) value = combine(value, values[set * count + i]);
        value = warp_reduce(value, combine PASS_SITE);
        if (lane_index() == 0) all[set] = value;
    }
    block_barrier(PASS_SITE_ONLY);
    UNROLL
    for (unsigned i = 0; i < SETS; i++) sets[i] = all[i];
}

// The sums of COUNT times `count` slots, one after the other, in every lane of the warp, in a fixed order.
template <unsigned COUNT>
DEVICE void warp_sums_of(const double* slots, uint64_t count, double (&sums)[COUNT] SITE) {
    // Loads in flight: with so few lanes it is they that count.
    constexpr unsigned BATCH = 16;
    for (uint64_t first = lane_index(); first < count; first += BATCH * WARP) {
        double batch[COUNT][BATCH];
        UNROLL
        for (unsigned c = 0; c < COUNT; c++) {
            UNROLL
            for (unsigned b = 0; b < BATCH; b++) batch[c][b] = first + b * WARP < count ? slots[c * count + first + b * WARP] : 0;
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

// The sum of `slots`, in a fixed order, in every thread of the block.
template <unsigned THREADS>
DEVICE double block_sum_of(const double* slots, uint64_t count SITE) {
    double sum = 0;
    for (uint64_t i = threadIdx.x; i < count; i += THREADS) sum += slots[i];
    return block_reduce<THREADS>(sum, Sum() PASS_SITE);
}
