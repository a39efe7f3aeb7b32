// Checks of the jobs of ess_certainty.h.

#include "abi/checks.h"

namespace ess {

int32_t check(const ess_judge_counts_job &job) {
    if (job.heads < 1 || job.tolerances < 1 || job.length < 2 || job.blur.span < 1) return ESS_ERR_SIZE;
    return check_pointers(
        {job.value, job.growth, job.least, job.possible, job.asked, job.counts, job.width, job.doubtful, job.number});
}

int32_t check(const ess_group_widths_job &job) {
    if (job.heads < 1 || job.tolerances < 1 || job.length < 2 || job.group < 1 || job.reserved) return ESS_ERR_SIZE;
    return check_pointers({job.asked, job.doubtful, job.width, job.chosen});
}

int32_t check(const ess_compare_counts_job &job) {
    if (job.heads < 1 || job.tolerances < 1 || job.length < 2) return ESS_ERR_SIZE;
    if (job.group < 1 || job.blur.span < 1) return ESS_ERR_SIZE;
    return check_pointers({job.value, job.growth, job.move, job.counts, job.width, job.doubtful, job.number});
}

int32_t check(const ess_judge_entropy_job &job) {
    if (job.heads < 1 || job.length < 1 || job.group < 1) return ESS_ERR_SIZE;
    return check_pointers({job.quadrature, job.total, job.mixed, job.rounding, job.cap, job.ess, job.bound});
}

} // namespace ess
