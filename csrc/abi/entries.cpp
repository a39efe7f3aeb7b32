// The C functions of all kernels. A job is checked, then the kernel of the run's dispatch level measures its workspace,
// and does the job.

#include "abi/checks.h"

#include <cstring>

namespace ess {
namespace {

constexpr int32_t MAX_THREADS = 1024;

// The kernel for a run and a job that have passed all checks but that of the workspace.
template <class Job>
int32_t find(const ess_run *run, const Job *job, Kernel<Job> Kernels::*entry, Kernel<Job> &kernel) {
    if (run == nullptr || job == nullptr) return ESS_ERR_NULL;
    if (run->threads < 1 || run->threads > MAX_THREADS) return ESS_ERR_SIZE;
    const Kernels *kernels = kernels_for(run->level);
    if (kernels == nullptr) return ESS_ERR_LEVEL;
    kernel = kernels->*entry;
    return check(*job);
}

template <class Job> int64_t measure(const ess_run *run, const Job *job, Kernel<Job> Kernels::*entry) {
    Kernel<Job> kernel;
    if (int32_t error = find(run, job, entry, kernel)) return -error;
    const int64_t needed = kernel(*job, run->threads, nullptr);
    return needed < 0 ? -ESS_ERR_SIZE : needed; // the count of its bytes has overflowed
}

template <class Job> int32_t enter(const ess_run *run, const Job *job, Kernel<Job> Kernels::*entry) {
    Kernel<Job> kernel;
    if (int32_t error = find(run, job, entry, kernel)) return error;
    const int64_t needed = kernel(*job, run->threads, nullptr);
    if (needed < 0) return ESS_ERR_SIZE;
    char nothing; // any address but null, which would mean that the kernel only measures its workspace
    void *workspace = needed > 0 ? run->workspace : &nothing;
    if (needed > 0 && (!workspace || !aligned(workspace) || run->workspace_bytes < needed)) return ESS_ERR_WORKSPACE;
    kernel(*job, run->threads, workspace);
    return ESS_OK;
}

} // namespace
} // namespace ess

extern "C" {

#define ESS_ENTRY(X, function)                                                                                         \
    int32_t ess_##X(const ess_run *run, const ess_##X##_job *job) { return ess::enter(run, job, &ess::Kernels::X); }   \
    int64_t ess_##X##_workspace(const ess_run *run, const ess_##X##_job *job) {                                        \
        return ess::measure(run, job, &ess::Kernels::X);                                                               \
    }
ESS_KERNELS(ESS_ENTRY)

int64_t ess_size_of(const char *structure) {
#define ESS_SIZE(X)                                                                                                    \
    if (std::strcmp(structure, #X) == 0) return sizeof(X);
#define ESS_JOB_SIZE(X, function) ESS_SIZE(ess_##X##_job)
    if (structure == nullptr) return -1;
    ESS_SIZE(ess_run)
    ESS_SIZE(ess_tokens)
    ESS_SIZE(ess_quadrature)
    ESS_SIZE(ess_recurrence)
    ESS_SIZE(ess_matrix)
    ESS_SIZE(ess_matrices)
    ESS_SIZE(ess_blur)
    ESS_KERNELS(ESS_JOB_SIZE)
    return -1;
}

} // extern "C"
