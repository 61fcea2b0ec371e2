// The maximum of a row and the sum of its exponentials, in one read (Milakov, Gimelshein: Online normalizer
// calculation for softmax, arXiv 1805.02867).
#pragma once

#include "collective.cuh"
#include "math.cuh"

struct Softmax {
    // Of the elements, not yet scaled: their differences are what gets scaled, and those are small where it matters.
    float maximum = -infinity();
    // Of 2^((x - maximum) · scale).
    float sum = 0;

    DEVICE void add(float x, float scale) {
        if (x > maximum) {
            sum = fmaf(sum, exp2_fast((maximum - x) * scale), 1.0f);
            maximum = x;
        } else {
            // Also for a NaN, which makes the sum NaN and leaves the maximum alone.
            sum += exp2_fast((x - maximum) * scale);
        }
    }

    // Of several: one look at the maximum, and no branch for each.
    template <unsigned COUNT>
    DEVICE void add(const float (&x)[COUNT], float scale) {
        float largest = x[0];
        UNROLL
        for (unsigned i = 1; i < COUNT; i++) largest = fmaxf(largest, x[i]);
        if (largest > maximum) {
            sum *= exp2_fast((maximum - largest) * scale);
            maximum = largest;
        }
        UNROLL
        for (unsigned i = 0; i < COUNT; i++) sum += exp2_fast((x[i] - maximum) * scale);
    }

    DEVICE float rescaled(float new_maximum, float scale) const {
        // A thread without elements has -inf for a maximum and a sum of 0.
        return sum == 0 ? 0 : sum * exp2_fast((maximum - new_maximum) * scale);
    }

    // All threads' rows as one, in every thread.
    template <unsigned THREADS>
    DEVICE Softmax of_block(float scale SITE) const {
        Softmax whole;
        whole.maximum = block_reduce<THREADS>(maximum, Max() PASS_SITE);
        whole.sum = block_reduce<THREADS>(rescaled(whole.maximum, scale), Sum() PASS_SITE);
        return whole;
    }

    // log Σ exp(x/τ), with `scale` = log2(e)/τ.
    DEVICE float log_sum_exp(float scale) const { return fmaf(maximum, scale * LN_2, logf(sum)); }
};
