// What the kernels for softmax attention are asked to do; plain data, the same at every dispatch level.

#pragma once

#include <cstdint>

namespace ess {

// rows and columns of the weights' memory are whole multiples of this
constexpr int64_t ATTENTION_TILE = 16;

// Weights of `heads` heads, lower triangular.
struct AttentionRowsJob {
    int64_t heads, length, size; // size of a query
    const double *q, *k;         // [heads, length, size]
    double scale, softcap;       // softcap 0: none
    int64_t window;              // 0: none
    const double *sinks;         // [heads], or null
    double *weights;             // [heads, rounded length, row_stride]
    int64_t row_stride;
    int32_t threads;
    void *workspace;

    int64_t rounded() const { return (length + ATTENTION_TILE - 1) / ATTENTION_TILE * ATTENTION_TILE; }
};

struct AttentionKernels {
    int64_t (*rows)(const AttentionRowsJob &); // takes the measure of its workspace where that is null
};

} // namespace ess
