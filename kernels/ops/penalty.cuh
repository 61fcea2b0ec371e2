// What two scaled relations cost, u of the student and v of the teacher.
//
//   Penalty(parameter)  with its parameter, which some have no use for
//   value(pair)         the cost
//   slope(pair)         its derivative by u
//
// Both give NaN for a NaN. Mirrors `Penalty` in src/loss/spec.rs.
#pragma once

#include "../common/math.cuh"
#include "../common/pairwise.cuh"

namespace penalty {

using pairwise::ScaledPair;

// (u − v)²
struct Squared {
    DEVICE explicit Squared(float) {}
    DEVICE float value(ScaledPair pair) const { return pair.difference * pair.difference; }
    DEVICE float slope(ScaledPair pair) const { return 2 * pair.difference; }
};

// Of e = u − v: ½e² up to δ, δ(|e| − ½δ) beyond.
struct Huber {
    float delta;

    DEVICE explicit Huber(float delta) : delta(delta) {}
    DEVICE float value(ScaledPair pair) const {
        const float w = slope(pair);
        return w * fmaf(-0.5f, w, pair.difference);
    }
    // By comparisons, because fminf and fmaxf drop NaN.
    DEVICE float slope(ScaledPair pair) const {
        const float e = pair.difference;
        return e > delta ? delta : e < -delta ? -delta : e;
    }
};

// v log((v + ε)/(u + ε)) + (u − v). Rows of u and of v sum up to 1, so what is added changes neither
// the loss nor the gradient. With x = (u − v)/(v + ε) it is v (x − log(1 + x)) + ε x: no term
// cancels another.
struct Divergence {
    float epsilon;

    DEVICE explicit Divergence(float epsilon) : epsilon(epsilon) {}
    DEVICE float value(ScaledPair pair) const {
        const float unit = 1 / (pair.v + epsilon), x = pair.difference * unit;
        const float excess = fabsf(x) < 0.4f ? excess_over_log(x) : x - natural_log((pair.u + epsilon) * unit);
        return fmaf(pair.v, excess, epsilon * x);
    }
    DEVICE float slope(ScaledPair pair) const { return (pair.difference + epsilon) / (pair.u + epsilon); }

    // x − log(1 + x) for |x| < 0.4: log(1 + x) = 2 (s + s³/3 + s⁵/5 + …), s = x/(2 + x), and
    // x − 2s = s x.
    DEVICE static float excess_over_log(float x) {
        const float s = x / (2 + x), square = s * s;
        float series = 1.0f / 11;
        series = fmaf(series, square, 1.0f / 9);
        series = fmaf(series, square, 1.0f / 7);
        series = fmaf(series, square, 1.0f / 5);
        series = fmaf(series, square, 1.0f / 3);
        return s * fmaf(-2 * square, series, x);
    }
};

}  // namespace penalty
