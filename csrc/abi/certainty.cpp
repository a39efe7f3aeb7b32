// Checks of the jobs of ess_certainty.h.

#include "abi/checks.h"

namespace ess {

int32_t check(const ess_judge_counts_job &job) {
    if (int32_t error = check_sizes({job.heads, job.tolerances, job.length})) return error;
    if (job.length < 2 || check_sizes({job.blur.span})) return ESS_ERR_SIZE;
    return check_pointers(
        {job.value, job.growth, job.least, job.possible, job.asked, job.counts, job.width, job.doubtful, job.number});
}

int32_t check(const ess_group_widths_job &job) {
    if (int32_t error = check_sizes({job.heads, job.tolerances, job.length})) return error;
    if (job.length < 2 || check_sizes({job.group}) || job.reserved != 0) return ESS_ERR_SIZE;
    return check_pointers({job.asked, job.doubtful, job.width, job.chosen});
}

int32_t check(const ess_compare_counts_job &job) {
    if (int32_t error = check_sizes({job.heads, job.tolerances, job.length})) return error;
    if (job.length < 2 || check_sizes({job.group}) || check_sizes({job.blur.span})) return ESS_ERR_SIZE;
    return check_pointers({job.value, job.growth, job.move, job.counts, job.width, job.doubtful, job.number});
}

int32_t check(const ess_judge_entropy_job &job) {
    if (check_sizes({job.heads, job.length}) || check_sizes({job.group})) return ESS_ERR_SIZE;
    return check_pointers({job.quadrature, job.total, job.mixed, job.rounding, job.cap, job.ess, job.bound});
}

} // namespace ess
