// Checks of the job of ess_spectra.h.

#include "abi/checks.h"

namespace ess {
namespace {

int32_t check_matrices(const ess_matrices &x) {
    if (x.rows < 0 || x.columns < 0 || x.rows > MANY || x.columns > MANY) return ESS_ERR_SIZE;
    return (x.rows < x.columns ? x.rows : x.columns) > ESS_MAX_SMALL ? ESS_ERR_SIZE : ESS_OK;
}

bool missing(const ess_matrices &x, int64_t batch) {
    return x.data == nullptr && batch > 0 && x.rows > 0 && x.columns > 0;
}

} // namespace

int32_t check(const ess_spectra_job &job) {
    if ((job.element_bytes != 4 && job.element_bytes != 8) || job.reserved != 0) return ESS_ERR_SIZE;
    if (job.batch < 0 || job.batch > MANY || job.tolerances < 0) return ESS_ERR_SIZE;
    if (int32_t error = check_matrices(job.left)) return error;
    if (job.right.rows >= 0) {
        if (int32_t error = check_matrices(job.right)) return error;
        if (job.right.columns != job.left.columns) return ESS_ERR_SIZE;
        if (missing(job.right, job.batch)) return ESS_ERR_NULL;
    }
    if (missing(job.left, job.batch)) return ESS_ERR_NULL;
    return job.batch > 0 && job.tolerances > 0 ? check_pointers({job.tau, job.counts}) : ESS_OK;
}

} // namespace ess
