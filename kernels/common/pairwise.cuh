// What the kernels of the pairwise family hand one another through the workspace.
//
// L = 1/N² Σ_ij pen(u_ij, v_ij), u = r(X)/s(X), v = r(Y)/s(Y): docs/maths/pairwise.md.
//
// Rows may be multiplied by a power of two, their `unit`, so that relations stay in f32's range.
// Then all kernels but the last see the scaled rows.
#pragma once

#include "element.cuh"

namespace pairwise {

// Matrices over pairs of rows have `padded(n)` rows and columns, zero beyond N, so that 16 bytes
// can be read anywhere, and no loop asks where the rows end.
constexpr unsigned TILE = 64;

DEVICE uint32_t padded(uint32_t n) { return (n + TILE - 1) / TILE * TILE; }

// 1/s as a pair of f32, high + low. The difference u − v is then as exact as the relations: with s
// in one f32, the rounding of u and v would count as much as theirs.
struct Inverse {
    float high, low;

    DEVICE static Inverse of(double s) {
        // The gradient through a scale of 0 is 0, and u is 0. So it is below 2^-110, where
        // relations as f32 have lost their digits. The product keeps a NaN.
        const double inverse = fabs(s) > 0x1p-110 ? 1 / s : s * 0;
        const auto high = static_cast<float>(inverse);
        return {high, static_cast<float>(inverse - high)};
    }
};

// The scales of student and teacher.
struct alignas(16) Scales {
    Inverse of[2];
};

// A pair's scaled relations u and v, and u − v, which is more exact than they are.
struct ScaledPair {
    float u, v, difference;

    // Of relations of student and teacher.
    DEVICE static ScaledPair of(float x, float y, const Scales& scales) {
        const Inverse by_x = scales.of[0], by_y = scales.of[1];
        const float u = x * by_x.high, v = y * by_y.high;
        const float u_low = fmaf(x, by_x.low, fmaf(x, by_x.high, -u));
        const float v_low = fmaf(y, by_y.low, fmaf(y, by_y.high, -v));
        return {u, v, (u - v) + (u_low - v_low)};
    }
};

}  // namespace pairwise
