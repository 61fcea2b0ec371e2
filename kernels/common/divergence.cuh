// KL(p‖q) where student and teacher are close: kernels/kd_kl.cu, kernels/rrd_divergence.cu.
#pragma once

#include "math.cuh"

// δ + e^−δ − 1 for |δ| < ½, by its series: the direct sum cancels.
DEVICE float excess_near(float delta) {
    float series = fmaf(delta, 1.0f / 40320.0f, -1.0f / 5040.0f);
    series = fmaf(delta, series, 1.0f / 720.0f);
    series = fmaf(delta, series, -1.0f / 120.0f);
    series = fmaf(delta, series, 1.0f / 24.0f);
    series = fmaf(delta, series, -1.0f / 6.0f);
    series = fmaf(delta, series, 0.5f);
    return delta * delta * series;
}

// RRD: a row with a smaller KL is near its teacher. Its KL is computed once more, by
// kernels/rrd_divergence.cu. Above, the rounding of two log-sums is less than 1e-3 of KL.
constexpr double NEAR_KL = 1e-3;

// What that kernel has to know of a row. Mirrored in src/gpu/contrastive/arguments.rs.
struct NearRow {
    // From the elements of the student's row as it came, and of the teacher's, to elements whose
    // products with a key are logits in base 2.
    double factors[2];
    // log2 Σ 2^logit of the teacher.
    float log_sum;
    // The mean of the teacher's logits less the student's, under the teacher's softmax.
    float mean;
};
ARGUMENTS(NearRow, factors, log_sum, mean);
