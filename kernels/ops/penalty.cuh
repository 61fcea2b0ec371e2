// What a difference e of two scaled relations costs.
//
//   Penalty(delta)      with its parameter, which some have no use for
//   value(e)            the cost
//   slope(e)            its derivative
//
// Both give NaN for a NaN. Mirrors `Penalty` in src/loss/spec.rs.
#pragma once

#include "../common/platform.cuh"

namespace penalty {

// e²
struct Squared {
    DEVICE explicit Squared(float) {}
    DEVICE float value(float e) const { return e * e; }
    DEVICE float slope(float e) const { return 2 * e; }
};

// ½e² up to δ, δ(|e| − ½δ) beyond.
struct Huber {
    float delta;

    DEVICE explicit Huber(float delta) : delta(delta) {}
    DEVICE float value(float e) const {
        const float w = slope(e);
        return w * fmaf(-0.5f, w, e);
    }
    // By comparisons, because fminf and fmaxf drop NaN.
    DEVICE float slope(float e) const { return e > delta ? delta : e < -delta ? -delta : e; }
};

}  // namespace penalty
