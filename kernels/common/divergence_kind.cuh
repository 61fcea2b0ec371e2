// The divergences of softened logits: kernels/kd_divergence.cu, kernels/kd_top_k.cu.
#pragma once

#include "platform.cuh"

// Mirrored in src/gpu/logits/divergence.rs.
enum Kind : uint32_t {
    FORWARD,       // KL(p‖q)
    REVERSE,       // KL(q‖p)
    JS,            // β KL(p‖m) + (1−β) KL(q‖m), m = βp + (1−β)q
    SKEW,          // KL(p‖m), m = αp + (1−α)q
    SKEW_REVERSE,  // KL(q‖m), m = αq + (1−α)p
};
