// s, the unit that relations are measured in. It is a function of a sum of terms over its scope.
//
//   SCOPE               what the sum goes over: row i of the relation, or the whole matrix
//   HAS_DIAGONAL        whether the sum takes r_ii
//   term(r)             the term of a pair
//   scale(sum, n, one)  s. `one` is the size that a relation of 1 has here: kernels may scale rows
//                       by a power of two, and all s but the constant one scale with them
//   slope(u, n)         ∂s/∂r_ij, with u = r_ij/s
//
// Mirrors `Normalizer` in src/loss/spec.rs.
#pragma once

#include "../common/platform.cuh"

namespace normalizer {

enum class Scope { Row, Matrix };

// s = 1. It needs no sum, so it counts as one of a row.
struct None {
    static constexpr Scope SCOPE = Scope::Row;
    static constexpr bool HAS_DIAGONAL = true;
    DEVICE static double term(float) { return 0; }
    DEVICE static double scale(double, uint32_t, double one) { return one; }
    DEVICE static float slope(float, uint32_t) { return 0; }
};

// s = Σ_{i≠j} r_ij / (N (N − 1))
struct Mean {
    static constexpr Scope SCOPE = Scope::Matrix;
    static constexpr bool HAS_DIAGONAL = false;
    DEVICE static double pairs(uint32_t n) { return n > 1 ? n * (n - 1.0) : 1.0; }
    DEVICE static double term(float r) { return r; }
    DEVICE static double scale(double sum, uint32_t n, double) { return sum / pairs(n); }
    DEVICE static float slope(float, uint32_t n) { return static_cast<float>(1 / pairs(n)); }
};

// s_i = √Σ_j r_ij²
struct RowL2 {
    static constexpr Scope SCOPE = Scope::Row;
    static constexpr bool HAS_DIAGONAL = true;
    DEVICE static double term(float r) { return static_cast<double>(r) * r; }
    DEVICE static double scale(double sum, uint32_t, double) { return sqrt(sum); }
    DEVICE static float slope(float u, uint32_t) { return u; }
};

// s_i = Σ_j r_ij
struct RowSum {
    static constexpr Scope SCOPE = Scope::Row;
    static constexpr bool HAS_DIAGONAL = true;
    DEVICE static double term(float r) { return r; }
    DEVICE static double scale(double sum, uint32_t, double) { return sum; }
    DEVICE static float slope(float, uint32_t) { return 1; }
};

// s = √Σ_ij r_ij²
struct Frobenius {
    static constexpr Scope SCOPE = Scope::Matrix;
    static constexpr bool HAS_DIAGONAL = true;
    DEVICE static double term(float r) { return static_cast<double>(r) * r; }
    DEVICE static double scale(double sum, uint32_t, double) { return sqrt(sum); }
    DEVICE static float slope(float u, uint32_t) { return u; }
};

}  // namespace normalizer
