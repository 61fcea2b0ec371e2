// Mathematical functions that a GPU approximates. The emulator's are off by as much on request.
// Not here: division and square root, which both round to the nearest, and functions of doubles,
// whose errors no f32 result shows.
#pragma once

#include "platform.cuh"

constexpr float LOG2_E = 1.44269504f;
constexpr float LN_2 = 0.693147181f;
constexpr double LN_2_F64 = 0.69314718055994531;

#if defined(__CUDACC__)

// 2^x, with an error of at most 2 ulp. Subnormal results are flushed to 0.
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// ln x, with an error of at most 1 ulp.
DEVICE float natural_log(float x) { return logf(x); }
DEVICE float infinity() { return __int_as_float(0x7F800000); }
DEVICE float nan() { return __int_as_float(0x7FC00000); }

#else

DEVICE float exp2_fast(float x) { return emulator::exp2(x); }
DEVICE float natural_log(float x) { return emulator::log(x); }
DEVICE float infinity() { return INFINITY; }
DEVICE float nan() { return NAN; }

#endif
