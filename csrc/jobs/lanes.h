// What the kernels for small states in vector lanes are asked to do; the same for every dispatch level.

#pragma once

#include "include/ess_recurrence.h"
#include "include/ess_tokens.h"

namespace ess {

// positions that share one tolerance and one elimination of their outside
constexpr int64_t LANES_BLOCK = 8;
// positions that share one tridiagonal matrix of their outside
constexpr int64_t LANES_ENTROPY_BLOCK = 4;
// the largest state; smaller ones are padded to 8 or to this
constexpr int64_t LANES_MAX_STATES = 16;

// See ess_lanes_counts in ess_lanes.h.
struct LanesCountsJob {
    ess_tokens tokens;
    int64_t tolerances;
    const double *tau;
    const uint8_t *wanted;
    double *value, *growth, *least;
    int64_t blocks() const { return (tokens.length + LANES_BLOCK - 1) / LANES_BLOCK; }
};

// See ess_lanes_entropy.
struct LanesEntropyJob {
    ess_tokens tokens;
    ess_quadrature quadrature;
    const uint8_t *wanted;
    const double *cap;
    double *ess, *bound, *total;
    int64_t blocks() const { return (tokens.length + LANES_ENTROPY_BLOCK - 1) / LANES_ENTROPY_BLOCK; }
};

struct LanesKernels {
    // With a null workspace: how many bytes are needed. Otherwise does the job, and returns the same number.
    int64_t (*counts)(const LanesCountsJob &job, int32_t threads, void *workspace);
    int64_t (*entropy)(const LanesEntropyJob &job, int32_t threads, void *workspace);
};

} // namespace ess
