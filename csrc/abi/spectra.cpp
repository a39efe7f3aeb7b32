// Entry points for small spectra: checks, then the kernels of the run's dispatch level.

#include "jobs/spectra.h"
#include "abi/checks.h"

namespace ess {
namespace {

// sizes beyond this would overflow where bytes are counted
constexpr int64_t LARGEST = int64_t{1} << 40;

int32_t check_sizes(const ess_matrices &x) {
    if (x.rows < 0 || x.columns < 0 || x.rows > LARGEST || x.columns > LARGEST) return ESS_ERR_SIZE;
    return (x.rows < x.columns ? x.rows : x.columns) > ESS_MAX_SMALL ? ESS_ERR_SIZE : ESS_OK;
}

bool missing(const ess_matrices &x, int64_t batch) {
    return x.data == nullptr && batch > 0 && x.rows > 0 && x.columns > 0;
}

int32_t spectra_job(const ess_run *run, const ess_spectra_job *asked, const Kernels *&kernels, SpectraJob &job) {
    if (int32_t error = check_run(run, kernels)) return error;
    if (asked == nullptr) return ESS_ERR_NULL;
    if (asked->element_bytes != 4 && asked->element_bytes != 8) return ESS_ERR_SIZE;
    if (asked->batch < 0 || asked->batch > LARGEST || asked->tolerances < 0) return ESS_ERR_SIZE;
    if (int32_t error = check_sizes(asked->left)) return error;
    job = {*asked, run->threads, run->workspace};
    if (job.product()) {
        if (int32_t error = check_sizes(asked->right)) return error;
        if (asked->right.columns != asked->left.columns) return ESS_ERR_SIZE;
        if (missing(asked->right, asked->batch)) return ESS_ERR_NULL;
    }
    if (missing(asked->left, asked->batch)) return ESS_ERR_NULL;
    if (asked->batch > 0 && asked->tolerances > 0 && (!asked->tau || !asked->counts)) return ESS_ERR_NULL;
    return ESS_OK;
}

} // namespace
} // namespace ess

extern "C" {

int64_t ess_spectra_workspace(const ess_run *run, const ess_spectra_job *asked) {
    const ess::Kernels *kernels;
    ess::SpectraJob job;
    if (int32_t error = ess::spectra_job(run, asked, kernels, job)) return -error;
    return kernels->spectra->workspace(job);
}

int32_t ess_spectra(const ess_run *run, const ess_spectra_job *asked) {
    const ess::Kernels *kernels;
    ess::SpectraJob job;
    if (int32_t error = ess::spectra_job(run, asked, kernels, job)) return error;
    if (int32_t error = ess::check_workspace(run, kernels->spectra->workspace(job))) return error;
    kernels->spectra->run(job);
    return ESS_OK;
}

} // extern "C"
