// What the kernels of RKD hand one another through the workspace.
#pragma once

#include "platform.cuh"

namespace rkd {

// src/gpu/rkd/mod.rs makes room for it, and its tests read `accurate`.
struct Scalars {
    // The student's lengths and the teacher's, in units in which the longest is about 1 where the accurate path runs,
    // and as they are where the fast one does. A power of two: `unit` times a length is exact.
    double unit[2];
    // Mean length in that unit.
    double mean[2];
    // The angle's mean penalty.
    double angle;
    // NaN where a row isn't finite, else 0.
    double poison;
    // What times r_ij adds the distance's derivative through the mean to ∂L/∂h_ij.
    double through_mean;
    // Whether lengths and angles come from the accurate path.
    uint32_t accurate;
    uint32_t padding;
};
static_assert(sizeof(Scalars) == 64, "SCALARS in src/gpu/rkd/mod.rs");

// A block's share of what is known of the lengths.
struct Lengths {
    double sum;
    // Squared.
    double longest, shortest;
};

}  // namespace rkd
