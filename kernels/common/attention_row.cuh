// How a row becomes what an attention kernel reads, and the scale of a product with it. Each pass
// that needs a row's length computes it itself. All passes get the same bits, so no pass has to
// hand them to the next.
#pragma once

#include "collective.cuh"
#include "element.cuh"

// The form in which an attention kernel reads rows. Mirrored in src/gpu/contrastive/kernel.rs.
enum Format : uint32_t {
    // x/‖x‖ in f32, or x where rows are not normalised.
    F32 = 1,
    // x in f16, times the power of two that brings ‖x‖ to [2^14, 2^15). For f16 and bf16 alike,
    // only elements below 2^-28 ‖x‖ are rounded, by at most 2^-39 ‖x‖. An f32 factor on the product
    // does the rest of the way to a logit.
    SCALED_F16 = 2
};

// Consecutive elements of a row that one lane takes.
constexpr unsigned PER_LANE = 8;

// The type in which squares are summed. Squares of f16 and bf16 are exact in f32, and a row has few
// of them. Those of f32 are neither, so they are summed in f64.
template <typename T>
struct SumOfSquares {
    using Type = float;
};
template <>
struct SumOfSquares<float> {
    using Type = double;
};

// A row's length, √squares/unit. No square overflows or vanishes: where the sum of the squares is
// far from 1, as it can be for bf16, elements are multiplied by `unit` before they are squared.
// `unit` is a power of two that brings the largest element to about 1.
template <typename T>
struct RowLength {
    using Real = typename SumOfSquares<T>::Type;

    // Infinite or NaN if an element is.
    Real squares;
    float unit;

    static constexpr bool FAR_FROM_ONE = std::is_same_v<T, bf16>;
    // Whether squares may have been lost, given the sum of the squares of the elements as they
    // came. It is true for zeros and for what is not finite.
    DEVICE static bool needs_unit(Real squares) {
        return FAR_FROM_ONE && !(squares > 0x1p-80f && squares < 0x1p80f);
    }
    DEVICE Real norm() const { return sqrt(squares); }
    // The factor from x · unit to SCALED_F16: a power of two, found without a root.
    DEVICE float lift() const {
        const float sum = static_cast<float>(squares);
        const int exponent = static_cast<int>(float_to_bits(sum) >> 23) - 127;
        return sum > 0 ? bits_to_float(static_cast<uint32_t>(127 + 14 - (exponent >> 1)) << 23) : 1;
    }
    // The factor from products of a key with a row in SCALED_F16 to products with that row at
    // length
    // 1. For a row of zeros it can be anything above 0 that is as small as those of other rows.
    DEVICE float scale() const {
        return squares == 0 ? 0x1p-14f : static_cast<float>(1 / (norm() * lift()));
    }
};

// The power of two for a row whose largest element is `largest`.
DEVICE float unit_of(float largest) {
    const int exponent = static_cast<int>(float_to_bits(largest) >> 23) - 126;
    // These bounds keep the unit itself in range.
    const int bounded = exponent < -125 ? -125 : exponent > 125 ? 125 : exponent;
    return bits_to_float(static_cast<uint32_t>(127 - bounded) << 23);
}

// The larger of `largest` and the magnitudes in `part`.
DEVICE float largest_of(const float (&part)[PER_LANE], float largest) {
    UNROLL
    for (unsigned i = 0; i < PER_LANE; i++) largest = fmaxf(largest, fabsf(part[i]));
    return largest;
}

// `sum` plus the squares of the elements in `part`, each times `unit`.
template <typename Real>
DEVICE Real squares_of(const float (&part)[PER_LANE], float unit, Real sum) {
    UNROLL
    for (unsigned i = 0; i < PER_LANE; i++) {
        const Real element = part[i] * unit;
        sum = fma(element, element, sum);
    }
    return sum;
}

// The lengths of COUNT rows.
//
// Before: LANES neighbouring lanes share the rows; `parts[i]` are this lane's elements of row i,
// and zeros beyond the row's end. After: each lane holds the length of row `scattered_index<LANES,
// COUNT>()`, and `parts` are multiplied by the rows' units. A row is added up by lane, then by
// tree, so its bits do not depend on LANES or COUNT.
template <typename T, unsigned LANES, unsigned COUNT>
DEVICE RowLength<T> lengths_of_parts(float (&parts)[COUNT][PER_LANE] SITE) {
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
        // Find the units
        float largest[COUNT];
        UNROLL
        for (unsigned i = 0; i < COUNT; i++) largest[i] = largest_of(parts[i], 0);
        const float unit = unit_of(warp_reduce_scatter<LANES>(largest, Max() PASS_SITE));
        if (Length::needs_unit(length.squares)) length.unit = unit;
        // Multiply the rows by them, and sum the squares again
        UNROLL
        for (unsigned i = 0; i < COUNT; i++) {
            const float unit_of_row = read_scattered<LANES, COUNT>(length.unit, i PASS_SITE);
            UNROLL
            for (unsigned j = 0; j < PER_LANE; j++) parts[i][j] *= unit_of_row;
        }
        length.squares = squares();
    }
    return length;
}

// The PER_LANE elements d, d + 1, ... of a row; zeros from `dim` on.
template <typename T>
DEVICE void load_part(const T* row, uint32_t dim, uint32_t d, bool aligned,
                      float (&part)[PER_LANE]) {
    UNROLL
    for (unsigned c = 0; c < PER_LANE; c += CHUNK<T>) {
        const uint32_t first = d + c, left = first < dim ? dim - first : 0;
        float chunk[CHUNK<T>];
        const uint32_t count = left < CHUNK<T> ? left : CHUNK<T>;
        unpack(fetch_chunk(row + (left > 0 ? first : 0), aligned, count), chunk);
        UNROLL
        for (unsigned i = 0; i < CHUNK<T>; i++) part[c + i] = chunk[i];
    }
}

// Whether all rows of `dim` elements from `rows` on can be loaded 16 bytes at a time.
template <typename T>
DEVICE bool rows_aligned(const T* rows, uint32_t dim) {
    return aligned16(rows) && dim % CHUNK<T> == 0;
}

// The length of a row, in every lane. A warp calls it.
template <typename T>
DEVICE RowLength<T> length_of_row(const T* row, uint32_t dim SITE) {
    using Length = RowLength<T>;
    const bool aligned = rows_aligned(row, dim);
    const auto squares = [&](float unit) {
        typename Length::Real sum = 0;
        for (uint32_t d = lane_index() * PER_LANE; d < dim; d += WARP * PER_LANE) {
            float part[PER_LANE];
            load_part(row, dim, d, aligned, part);
            sum = squares_of(part, unit, sum);
        }
        return warp_reduce(sum, Sum() PASS_SITE);
    };
    Length length = {squares(1), 1};
    if (Length::needs_unit(length.squares)) {
        float largest = 0;
        for (uint32_t d = lane_index() * PER_LANE; d < dim; d += WARP * PER_LANE) {
            float part[PER_LANE];
            load_part(row, dim, d, aligned, part);
            largest = largest_of(part, largest);
        }
        length.unit = unit_of(warp_reduce(largest, Max() PASS_SITE));
        length.squares = squares(length.unit);
    }
    return length;
}

// The factors of a row's logits and of its gradient. All are NaN where an element of the row is not
// finite.
struct RowRecord {
    // From products of a key with the row as attention reads it, to logits in base 2.
    float scale;
    // From products of a key with the row as it came, to logits in base 2.
    double to_logit;
    // 1/‖row‖; 0 for a zero row, and 1 where rows are not normalised.
    double inverse_norm;
};

// `per_temperature` is log2(e)/τ, or 1 for keys.
template <typename T>
DEVICE RowRecord record_of(const RowLength<T>& length, uint32_t format, bool normalize,
                           float per_temperature) {
    // 0, or NaN where an element is not finite.
    const double poison = static_cast<double>(length.squares) * 0;
    const double inverse =
        length.squares == 0 ? 0 : length.unit / static_cast<double>(length.norm());
    const double unit = (normalize ? inverse : 1) + poison;
    if (format == F32) return {per_temperature, per_temperature * unit, unit};
    const float scale = per_temperature * length.scale();
    return {scale, static_cast<double>(scale) * length.lift() * length.unit + poison, unit};
}
