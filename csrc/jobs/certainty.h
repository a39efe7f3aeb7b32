// What the kernels that finish answers are asked to do; the same for every dispatch level.

#pragma once

#include "include/ess_certainty.h"

namespace ess {

// Widths that no elimination can undercut: `width` [heads][tolerances][groups], or null where there are none.
struct Blur {
    const double *width;
    int64_t group;

    // Of one head and tolerance: a function of the position.
    double at(int64_t row, int64_t length, int64_t position) const {
        if (width == nullptr) return 0;
        return width[row * ((length + group - 1) / group) + position / group];
    }
};

// See ess_judge_counts in ess_certainty.h.
struct JudgeJob {
    int64_t heads, tolerances, length;
    ess_limits limits;
    const double *value, *growth, *least;
    const uint8_t *rows, *asked;
    Blur blur;
    int64_t *counts;
    double *width;
    uint8_t *doubtful;
    int64_t *number;
};

// See ess_group_widths.
struct WidthsJob {
    int64_t heads, tolerances, length, group;
    bool typical;
    double hopeless;
    const uint8_t *asked, *doubtful;
    const double *width;
    double *chosen;
    int64_t groups() const { return (length + group - 1) / group; }
};

// See ess_compare_counts.
struct CompareJob {
    int64_t heads, tolerances, length, group;
    double unit;
    const double *value, *growth, *move;
    Blur blur;
    int64_t *counts;
    double *width;
    uint8_t *doubtful;
    int64_t *number;
    int64_t groups() const { return (length + group - 1) / group; }
};

// See ess_judge_entropy.
struct EntropyJob {
    int64_t heads, length, group;
    ess_quadrature quadrature;
    const double *total, *mixed, *rounding, *cap;
    double *ess, *bound;
};

struct CertaintyKernels {
    void (*counts)(const JudgeJob &job, int32_t threads);
    void (*widths)(const WidthsJob &job, int32_t threads);
    void (*compare)(const CompareJob &job, int32_t threads);
    void (*entropy)(const EntropyJob &job, int32_t threads);
};

} // namespace ess
