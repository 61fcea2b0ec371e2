// The maximum of a row and the sum of its exponentials, in one read (Milakov, Gimelshein: Online
// normalizer calculation for softmax, arXiv 1805.02867).
#pragma once

#include "collective.cuh"
#include "math.cuh"

// The softmax of the elements seen so far. A default one has seen none. An element of −∞ is masked:
// it adds nothing. NaN and +∞ make the sum NaN.
struct OnlineSoftmax {
    // The largest element, not scaled. Only differences of elements are scaled, and they are small
    // where it matters.
    float maximum = -infinity();
    // Σ 2^((x − maximum) · scale).
    float sum = 0;

    // What is subtracted from an element: the maximum, or 0 where all elements are masked. −∞ − −∞
    // would be NaN.
    DEVICE float origin() const { return maximum == -infinity() ? 0.0f : maximum; }

    // Adds an element. `scale` is log2(e)/τ.
    DEVICE void add(float x, float scale) {
        const float one[1] = {x};
        add(one, scale);
    }

    // Adds several elements, with one branch for all. A NaN makes the sum NaN and leaves the
    // maximum alone.
    template <unsigned COUNT>
    DEVICE void add(const float (&x)[COUNT], float scale) {
        float largest = x[0];
        UNROLL
        for (unsigned i = 1; i < COUNT; i++) largest = fmaxf(largest, x[i]);
        if (largest > maximum) {
            sum *= exp2_fast((maximum - largest) * scale);
            maximum = largest;
        }
        const float from = origin();
        UNROLL
        for (unsigned i = 0; i < COUNT; i++) sum += exp2_fast((x[i] - from) * scale);
    }

    // The sum relative to another maximum.
    DEVICE float rescaled(float new_maximum, float scale) const {
        // A thread without elements has a maximum of −inf and a sum of 0.
        return sum == 0 ? 0 : sum * exp2_fast((maximum - new_maximum) * scale);
    }

    // Merges those of all threads of the block. Before: each thread has seen some elements of the
    // row. After: each thread has the softmax of the row. All threads call it: it holds barriers.
    template <unsigned THREADS>
    DEVICE OnlineSoftmax of_block(float scale SITE) const {
        return of_block_marked<THREADS>(scale, false PASS_SITE);
    }

    // The same. A negative sum carries a mark of any thread's to all threads: a sum is at least 0, and
    // far below the number that stands for it.
    template <unsigned THREADS>
    DEVICE OnlineSoftmax of_block_marked(float scale, bool marked SITE) const {
        constexpr float MARK = 0x1p100f;
        OnlineSoftmax whole;
        whole.maximum = block_reduce<THREADS>(maximum, Max() PASS_SITE);
        const float mine = rescaled(whole.maximum, scale);
        whole.sum = block_reduce<THREADS>(marked ? mine - MARK : mine, Sum() PASS_SITE);
        return whole;
    }

    // log Σ exp(x/τ), with `scale` = log2(e)/τ.
    DEVICE float log_sum_exp(float scale) const {
        return fmaf(maximum, scale * LN_2, natural_log(sum));
    }
};
