// The mean of the losses of rows, where a block has a row: kernels/kd_kl.cu, kd_divergence.cu,
// kd_top_k.cu. Their arguments have the same names.
#pragma once

#include "collective.cuh"

// The share of this block's row in the mean, in units of gradient_factor and loss_factor.
template <typename Arguments>
DEVICE float share_of_row(const Arguments& arguments) {
    return arguments.row_shares == nullptr ? 1.0f : arguments.row_shares[blockIdx.x];
}

// The gradient of the columns from `begin` to `end` is 0.
template <unsigned THREADS>
DEVICE void clear_gradient(float* row, uint32_t begin, uint32_t end) {
    for (uint32_t c = begin + threadIdx.x; c < end; c += THREADS) row[c] = 0;
}

// Stores the row's divergence. The last block adds up the rows. All threads call it: it holds
// barriers.
template <unsigned THREADS, typename Arguments>
DEVICE void finish_row(const Arguments& arguments, float share, double divergence) {
    if (threadIdx.x == 0) {
        arguments.partials[blockIdx.x] = share == 0 ? 0.0 : share * divergence;
        if (arguments.row_losses != nullptr)
            arguments.row_losses[blockIdx.x] =
                static_cast<float>(divergence * arguments.row_factor);
    }
    if (is_last_block(arguments.counter)) {
        const double total = block_sum_of<THREADS>(arguments.partials, gridDim.x);
        if (threadIdx.x == 0)
            arguments.value[0] = static_cast<float>(total * arguments.loss_factor);
    }
}
