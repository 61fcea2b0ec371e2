// Kernels for the tests of the emulator (src/gpu/emulator/tests). Each has a bug that `bug` turns
// on. Without it the kernel is right. No loss uses them.
#pragma once

#include "../../kernels/common/collective.cuh"
#include "../../kernels/common/element.cuh"

namespace {

constexpr unsigned THREADS = 64;

// src/gpu/emulator/tests/mod.rs declares it too.
struct Arguments {
    const void* input;
    void* output;
    unsigned* counter;
    uint32_t count;
    // Which bug, or 0 for none.
    uint32_t bug;
};
ARGUMENTS(Arguments, input, output, counter, count, bug);

template <typename T>
DEVICE const T& input(const Arguments& arguments, uint64_t at) {
    return static_cast<const T*>(arguments.input)[at];
}
template <typename T>
DEVICE T& output(const Arguments& arguments, uint64_t at) {
    return static_cast<T*>(arguments.output)[at];
}

}  // namespace
