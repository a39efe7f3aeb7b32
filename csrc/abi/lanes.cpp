// Checks of the jobs of ess_lanes.h.

#include "abi/checks.h"

namespace ess {

int32_t check(const ess_lanes_counts_job &job) {
    if (int32_t error = check_diagonal_tokens(job.tokens, ESS_LANES_MAX_STATES)) return error;
    if (int32_t error = check_sizes({job.tokens->heads, job.tolerances, job.tokens->length})) return error;
    return check_pointers({job.tau, job.wanted, job.value, job.growth, job.least});
}

int32_t check(const ess_lanes_entropy_job &job) {
    if (int32_t error = check_diagonal_tokens(job.tokens, ESS_LANES_MAX_STATES)) return error;
    if (int32_t error = check_quadrature(job.quadrature, 1)) return error;
    return check_pointers({job.wanted, job.cap, job.ess, job.bound, job.total});
}

} // namespace ess
