// The C functions of ess_certainty.h: arguments are checked here, the kernels trust them.

#include "jobs/certainty.h"
#include "abi/checks.h"

extern "C" {

int32_t ess_judge_counts(const ess_run *run, int64_t heads, int64_t tolerances, int64_t length,
                         const ess_limits *limits, const double *value, const double *growth, const double *least,
                         const uint8_t *rows, const uint8_t *asked, const double *blur, int64_t blur_group,
                         int64_t *counts, double *width, uint8_t *doubtful, int64_t *number) {
    const ess::Kernels *kernels = nullptr;
    if (int32_t code = ess::check_run(run, kernels)) return code;
    if (heads < 1 || tolerances < 1 || length < 2 || blur_group < 1) return ESS_ERR_SIZE;
    const void *arrays[] = {limits, value, growth, least, rows, asked, counts, width, doubtful, number};
    for (const void *array : arrays) {
        if (array == nullptr) return ESS_ERR_NULL;
    }
    kernels->certainty->counts({heads,
                                tolerances,
                                length,
                                *limits,
                                value,
                                growth,
                                least,
                                rows,
                                asked,
                                {blur, blur_group},
                                counts,
                                width,
                                doubtful,
                                number},
                               run->threads);
    return ESS_OK;
}

int32_t ess_group_widths(const ess_run *run, int64_t heads, int64_t tolerances, int64_t length, int64_t group,
                         int32_t typical, double hopeless, const uint8_t *asked, const uint8_t *doubtful,
                         const double *width, double *chosen) {
    const ess::Kernels *kernels = nullptr;
    if (int32_t code = ess::check_run(run, kernels)) return code;
    if (heads < 1 || tolerances < 1 || length < 2 || group < 1) return ESS_ERR_SIZE;
    const void *arrays[] = {asked, doubtful, width, chosen};
    for (const void *array : arrays) {
        if (array == nullptr) return ESS_ERR_NULL;
    }
    kernels->certainty->widths(
        {heads, tolerances, length, group, typical != 0, hopeless, asked, doubtful, width, chosen}, run->threads);
    return ESS_OK;
}

int32_t ess_compare_counts(const ess_run *run, int64_t heads, int64_t tolerances, int64_t length, int64_t group,
                           double unit, const double *value, const double *growth, const double *move,
                           const double *blur, int64_t blur_group, int64_t *counts, double *width, uint8_t *doubtful,
                           int64_t *number) {
    const ess::Kernels *kernels = nullptr;
    if (int32_t code = ess::check_run(run, kernels)) return code;
    if (heads < 1 || tolerances < 1 || length < 2 || group < 1 || blur_group < 1) return ESS_ERR_SIZE;
    const void *arrays[] = {value, growth, move, counts, width, doubtful, number};
    for (const void *array : arrays) {
        if (array == nullptr) return ESS_ERR_NULL;
    }
    kernels->certainty->compare({heads,
                                 tolerances,
                                 length,
                                 group,
                                 unit,
                                 value,
                                 growth,
                                 move,
                                 {blur, blur_group},
                                 counts,
                                 width,
                                 doubtful,
                                 number},
                                run->threads);
    return ESS_OK;
}

int32_t ess_judge_entropy(const ess_run *run, int64_t heads, int64_t length, int64_t group,
                          const ess_quadrature *quadrature, const double *total, const double *mixed,
                          const double *rounding, const double *cap, double *ess, double *bound) {
    const ess::Kernels *kernels = nullptr;
    if (int32_t code = ess::check_run(run, kernels)) return code;
    if (heads < 1 || length < 1 || group < 1) return ESS_ERR_SIZE;
    const void *arrays[] = {quadrature, total, mixed, rounding, cap, ess, bound};
    for (const void *array : arrays) {
        if (array == nullptr) return ESS_ERR_NULL;
    }
    kernels->certainty->entropy({heads, length, group, *quadrature, total, mixed, rounding, cap, ess, bound},
                                run->threads);
    return ESS_OK;
}

} // extern "C"
