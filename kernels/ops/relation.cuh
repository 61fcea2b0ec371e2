// How two rows relate. A relation is a sum over the dimensions, and a function of that sum.
//
//   Term                the term of a dimension: Term()(a, b, sum) = sum + ...
//   IS_SUM              whether the relation is the sum itself
//   of_sum(sum)         the relation
//   KEEPS_ZERO          whether the relation of a sum of 0 is 0
//   LINEAR_IN_ROW       the gradient's form: ∂L/∂x_i = Σ_j k_ij x_j, or else Σ_j k_ij (x_i − x_j)
//   weight(slope, r)    k_ij, from ∂L/∂r_ij + ∂L/∂r_ji and r_ij
//   of_unit(unit)       what the relation is multiplied by if all rows are multiplied by `unit`
//
// Mirrors `Relation` in src/loss/spec.rs. Cosines are products of normalised rows.
#pragma once

#include "../common/pair_tile.cuh"

namespace relation {

// ⟨x_i, x_j⟩
struct Dot {
    using Term = pair_tile::Product;
    static constexpr bool IS_SUM = true, KEEPS_ZERO = true, LINEAR_IN_ROW = true;
    DEVICE static float of_sum(float sum) { return sum; }
    DEVICE static float weight(float slope, float) { return slope; }
    DEVICE static double of_unit(double unit) { return unit * unit; }
};

// ‖x_i − x_j‖²
struct SquaredDistance {
    using Term = pair_tile::SquaredDifference;
    static constexpr bool IS_SUM = true, KEEPS_ZERO = true, LINEAR_IN_ROW = false;
    DEVICE static float of_sum(float sum) { return sum; }
    DEVICE static float weight(float slope, float) { return 2 * slope; }
    DEVICE static double of_unit(double unit) { return unit * unit; }
};

// ‖x_i − x_j‖. It has no derivative at 0, and the gradient counts as 0 there.
struct Distance {
    using Term = pair_tile::SquaredDifference;
    static constexpr bool IS_SUM = false, KEEPS_ZERO = true, LINEAR_IN_ROW = false;
    DEVICE static float of_sum(float sum) { return sqrtf(sum); }
    // The product keeps a NaN: a loss that is not finite has such a gradient.
    DEVICE static float weight(float slope, float r) { return r == 0 ? slope * 0 : slope / r; }
    DEVICE static double of_unit(double unit) { return unit; }
};

// max(0, c), c the cosine. Comparisons, because fmaxf drops NaN.
struct Positive {
    using Term = pair_tile::Product;
    static constexpr bool IS_SUM = false, KEEPS_ZERO = true, LINEAR_IN_ROW = true;
    DEVICE static float of_sum(float sum) { return sum < 0 ? 0 : sum; }
    DEVICE static float weight(float slope, float r) { return r == 0 ? slope * 0 : slope; }
    DEVICE static double of_unit(double unit) { return unit * unit; }
};

// ½(1 + c), c the cosine.
struct Shifted {
    using Term = pair_tile::Product;
    static constexpr bool IS_SUM = false, KEEPS_ZERO = false, LINEAR_IN_ROW = true;
    DEVICE static float of_sum(float sum) { return fmaf(0.5f, sum, 0.5f); }
    DEVICE static float weight(float slope, float) { return 0.5f * slope; }
    // Unit rows have no unit.
    DEVICE static double of_unit(double) { return 1; }
};

}  // namespace relation
