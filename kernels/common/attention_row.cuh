// How a row becomes what an attention kernel reads, and what a product with it is worth: found by whoever needs it, to
// the same bits, so that no pass has to hand it to the next.
#pragma once

#include "collective.cuh"
#include "element.cuh"

// What an attention kernel reads. Mirrored in src/gpu/attention/kernel.rs.
enum Format : uint32_t {
    // x/‖x‖ in f32, or x where rows are not normalised.
    F32 = 1,
    // x times the power of two that brings ‖x‖ to [2^14, 2^15), in f16. Nothing is rounded but elements below 2^-28 ‖x‖,
    // off by 2^-39 ‖x‖ at most, of f16 and bf16 alike; the rest of the way to a logit is an f32 factor on the product.
    SCALED_F16 = 2
};

// Consecutive elements of a row that one lane takes.
constexpr unsigned PART = 8;

// Squares of halves are exact in f32 and few; those of f32 are neither.
template <typename T>
struct SumOfSquares {
    using Type = float;
};
template <>
struct SumOfSquares<float> {
    using Type = double;
};

// A row's length, √squares/unit. No square overflows or vanishes: where the sum of the squares is far from 1, which of
// bf16 it can be, elements are taken times a power of two, `unit`, that brings the largest to about 1.
template <typename T>
struct RowLength {
    using Real = typename SumOfSquares<T>::Type;

    // Infinite or NaN if an element is.
    Real squares;
    float unit;

    static constexpr bool FAR_FROM_ONE = std::is_same_v<T, bf16>;
    // Of squares of elements as they came: whether some may have been lost. Of zeros, and what is not finite, it says so.
    DEVICE static bool needs_unit(Real squares) {
        return FAR_FROM_ONE && !(squares > 0x1p-80f && squares < 0x1p80f);
    }
    DEVICE Real norm() const { return sqrt(squares); }
    // From x · unit to SCALED_F16: a power of two, found without a root.
    DEVICE float lift() const {
        const float sum = static_cast<float>(squares);
        const int exponent = static_cast<int>(float_to_bits(sum) >> 23) - 127;
        return sum > 0 ? bits_to_float(static_cast<uint32_t>(127 + 14 - (exponent >> 1)) << 23) : 1;
    }
    // From products of a key with a row in SCALED_F16 to those with one of length 1. It doesn't matter for a row of
    // zeros, but is above 0, and as small as others.
    DEVICE float scale() const { return squares == 0 ? 0x1p-14f : static_cast<float>(1 / (norm() * lift())); }
};

// The power of two for a row whose largest element is `largest`.
DEVICE float unit_of(float largest) {
    const int exponent = static_cast<int>(float_to_bits(largest) >> 23) - 126;
    // So that the unit is in range itself.
    const int bounded = exponent < -125 ? -125 : exponent > 125 ? 125 : exponent;
    return bits_to_float(static_cast<uint32_t>(127 - bounded) << 23);
}

DEVICE float largest_of(const float (&part)[PART], float largest) {
    UNROLL
    for (unsigned i = 0; i < PART; i++) largest = fmaxf(largest, fabsf(part[i]));
    return largest;
}

template <typename Real>
DEVICE Real squares_of(const float (&part)[PART], float unit, Real sum) {
    UNROLL
    for (unsigned i = 0; i < PART; i++) {
        const Real element = part[i] * unit;
        sum = fma(element, element, sum);
    }
    return sum;
}

// The lengths of COUNT rows of which each of LANES neighbouring lanes holds parts, or nothing but zeros: that of row
// `held_value<LANES, COUNT>()` in each. What is in `parts` is multiplied by the units. Parts are added up by lane, then by
// tree: the bits do not depend on LANES or COUNT.
template <typename T, unsigned LANES, unsigned COUNT>
DEVICE RowLength<T> lengths_of_parts(float (&parts)[COUNT][PART] SITE) {
    using Length = RowLength<T>;
    using Real = typename Length::Real;
    const auto squares = [&] {
        Real sums[COUNT];
        UNROLL
        for (unsigned i = 0; i < COUNT; i++) sums[i] = squares_of<Real>(parts[i], 1, 0);
        return warp_reduce_scatter<LANES>(sums, Sum() PASS_SITE);
    };
    Length length = {squares(), 1};
    if (Length::FAR_FROM_ONE && warp_any(Length::needs_unit(length.squares) PASS_SITE)) {
        float largest[COUNT];
        UNROLL
        for (unsigned i = 0; i < COUNT; i++) largest[i] = largest_of(parts[i], 0);
        const float unit = unit_of(warp_reduce_scatter<LANES>(largest, Max() PASS_SITE));
        if (Length::needs_unit(length.squares)) length.unit = unit;
        UNROLL
        for (unsigned i = 0; i < COUNT; i++) {
            const float unit_of_row = from_holder<LANES, COUNT>(length.unit, i PASS_SITE);
            UNROLL
            for (unsigned j = 0; j < PART; j++) parts[i][j] *= unit_of_row;
        }
        length.squares = squares();
    }
    return length;
}

// Elements d, d + 1, ... of a row; zeros from `dim` on.
template <typename T>
DEVICE void load_part(const T* row, uint32_t dim, uint32_t d, bool aligned, float (&part)[PART]) {
    UNROLL
    for (unsigned c = 0; c < PART; c += CHUNK<T>) {
        const uint32_t first = d + c, left = first < dim ? dim - first : 0;
        float chunk[CHUNK<T>];
        unpack(fetch_chunk(row + (left > 0 ? first : 0), aligned, left < CHUNK<T> ? left : CHUNK<T>), chunk);
        UNROLL
        for (unsigned i = 0; i < CHUNK<T>; i++) part[c + i] = chunk[i];
    }
}

// Whether all rows of `dim` elements from `rows` on can be loaded 16 bytes at a time.
template <typename T>
DEVICE bool rows_aligned(const T* rows, uint32_t dim) {
    return aligned16(rows) && dim % CHUNK<T> == 0;
}

// The length of a row, found by a warp.
template <typename T>
DEVICE RowLength<T> length_of_row(const T* row, uint32_t dim SITE) {
    using Length = RowLength<T>;
    const bool aligned = rows_aligned(row, dim);
    const auto squares = [&](float unit) {
        typename Length::Real sum = 0;
        for (uint32_t d = lane_index() * PART; d < dim; d += WARP * PART) {
            float part[PART];
            load_part(row, dim, d, aligned, part);
            sum = squares_of(part, unit, sum);
        }
        return warp_reduce(sum, Sum() PASS_SITE);
    };
    Length length = {squares(1), 1};
    if (Length::needs_unit(length.squares)) {
        float largest = 0;
        for (uint32_t d = lane_index() * PART; d < dim; d += WARP * PART) {
            float part[PART];
            load_part(row, dim, d, aligned, part);
            largest = largest_of(part, largest);
        }
        length.unit = unit_of(warp_reduce(largest, Max() PASS_SITE));
        length.squares = squares(length.unit);
    }
    return length;
}

// What a row's logits and its gradient are made with. All NaN where an element of the row is not finite.
struct RowRecord {
    // From products of a key with the row as attention reads it to logits in base 2.
    float scale;
    // From products with the row as it came to logits in base 2.
    double to_logit;
    // 1/‖row‖, 0 for a zero row, 1 where rows are not normalised.
    double inverse_norm;
};

// `per_temperature`: log2(e)/τ, or 1 for keys.
template <typename T>
DEVICE RowRecord record_of(const RowLength<T>& length, uint32_t format, bool normalize, float per_temperature) {
    // 0, or NaN.
    const double poison = static_cast<double>(length.squares) * 0;
    const double inverse = length.squares == 0 ? 0 : length.unit / static_cast<double>(length.norm());
    const double unit = (normalize ? inverse : 1) + poison;
    if (format == F32) return {per_temperature, per_temperature * unit, unit};
    const float scale = per_temperature * length.scale();
    return {scale, static_cast<double>(scale) * length.lift() * length.unit + poison, unit};
}
