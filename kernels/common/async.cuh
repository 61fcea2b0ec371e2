// Asynchronous copies from global to shared memory: the thread goes on while they run.
#pragma once

#include "platform.cuh"

#if defined(__CUDACC__)

// Starts a copy of 16 bytes. The first `valid` of them are read, and the rest become zero. Both
// addresses are multiples of 16.
DEVICE void copy_async(void* shared, const void* global, unsigned valid) {
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid)
                 : "memory");
}

// Makes a group of the copies that this thread has started since its last group.
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all groups of this thread except the last `IN_FLIGHT`. A barrier after it waits for the
// copies of other threads.
template <unsigned IN_FLIGHT>
DEVICE void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(IN_FLIGHT) : "memory");
}

#else

DEVICE void copy_async(void* shared, const void* global, unsigned valid SITE) {
    emulator::copy_async(shared, global, valid PASS_SITE);
}
DEVICE void copy_commit() { emulator::copy_commit(); }
template <unsigned IN_FLIGHT>
DEVICE void copy_wait() {
    emulator::copy_wait(IN_FLIGHT);
}

#endif
