// Kernels that the emulator's own tests run: each with one bug, which `bug` turns on, beside the right thing, its twin.
// No loss uses them. See src/gpu/emulator/tests.
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
    // 0 for none.
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
