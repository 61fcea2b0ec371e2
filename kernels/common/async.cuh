// Copies from global to shared memory that go on while the thread does something else.
#pragma once

#include "platform.cuh"

#if defined(__CUDACC__)

// 16 bytes, of which `valid` are read and the rest is zero; both addresses are multiples of 16.
DEVICE void copy_async(void* shared, const void* global, unsigned valid) {
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid) : "memory");
}

// Makes a group of the thread's copies since the last.
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all of the thread's groups but the last `IN_FLIGHT`. Other threads' copies are there after a barrier.
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
