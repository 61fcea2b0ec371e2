// Missing barriers, and barriers that only some threads reach.
#include "seeded_bugs.cuh"

namespace {

// The bug: no barrier between a write and a read.
DEVICE void missing_barrier(const Arguments& arguments) {
    SHARED_ARRAY(float, tile, THREADS);
    tile[threadIdx.x] = input<float>(arguments, threadIdx.x);
    if (!arguments.bug) block_barrier();
    output<float>(arguments, threadIdx.x) = tile[THREADS - 1 - threadIdx.x];
}

// The bug: no barrier between a read and the next write.
DEVICE void missing_second_barrier(const Arguments& arguments) {
    SHARED_ARRAY(float, tile, THREADS);
    tile[threadIdx.x] = input<float>(arguments, threadIdx.x);
    block_barrier();
    output<float>(arguments, threadIdx.x) = tile[THREADS - 1 - threadIdx.x];
    if (!arguments.bug) block_barrier();
    tile[threadIdx.x] = 0;
}

// Both bugs among the lanes of a warp.
DEVICE void missing_warp_barrier(const Arguments& arguments) {
    SHARED_ARRAY(float, tile, THREADS);
    const unsigned first = threadIdx.x - lane_index();
    tile[threadIdx.x] = input<float>(arguments, first + WARP - 1 - lane_index());
    if (!arguments.bug) warp_barrier();
    const float other = tile[first + lane_index() % 16 * 2];
    if (arguments.bug != 2) warp_barrier();
    tile[threadIdx.x] = other;
    warp_barrier();
    output<float>(arguments, threadIdx.x) = tile[threadIdx.x];
}

// Barriers that threads reach in different places or different numbers. The tests have the message
// for each bug.
DEVICE void divergent_barrier(const Arguments& arguments) {
    const unsigned thread = threadIdx.x;
    switch (arguments.bug) {
        case 0: block_barrier(); break;
        case 1:
            if (thread < 32) block_barrier();
            break;
        case 2:
            if (thread >= 40) return;
            block_barrier();
            break;
        case 3:
            if (thread < 32)
                block_barrier();
            else
                block_barrier();
            break;
        case 4:
            for (unsigned i = 0; i < 2 + thread / 32; i++) block_barrier();
            break;
        case 5:
            if (thread < 16) warp_barrier();
            break;
        case 6:
            if (thread < 16)
                warp_barrier();
            else
                block_barrier();
            break;
        case 7:
            // The same barrier, but one thread reaches it one collective later.
            if (thread != 9) shuffle_xor(1.0f, 1);
            shuffle_xor(1.0f, 1);
            break;
        case 8:
            for (unsigned i = 0; i < 2 + thread % 2; i++) shuffle_from(thread, 0);
            break;
        case 9:
            if (thread < 32)
                warp_barrier();
            else
                block_barrier();
            block_barrier();
            break;
    }
    output<float>(arguments, thread) = input<float>(arguments, THREADS - 1 - thread);
}

}  // namespace

EXPORT_KERNEL(seeded_bugs_missing_barrier, THREADS, 1, Arguments, missing_barrier);
EXPORT_KERNEL(seeded_bugs_missing_second_barrier, THREADS, 1, Arguments, missing_second_barrier);
EXPORT_KERNEL(seeded_bugs_missing_warp_barrier, THREADS, 1, Arguments, missing_warp_barrier);
EXPORT_KERNEL(seeded_bugs_divergent_barrier, THREADS, 1, Arguments, divergent_barrier);
