// The C functions of ess_lanes.h: arguments are checked here, the kernels trust them.

#include "jobs/lanes.h"
#include "abi/checks.h"
#include "include/ess_lanes.h"

static_assert(ESS_LANES_BLOCK == ess::LANES_BLOCK, "the header promises the kernels' block");
static_assert(ESS_LANES_ENTROPY_BLOCK == ess::LANES_ENTROPY_BLOCK, "the header promises the kernels' block");
static_assert(ESS_LANES_MAX_STATES == ess::LANES_MAX_STATES, "the header promises the kernels' states");

namespace {

int32_t check(const ess_run *run, const ess_tokens *t) {
    const ess::Kernels *kernels = nullptr;
    if (int32_t code = ess::check_run(run, kernels)) return code;
    if (!t) return ESS_ERR_NULL;
    if (t->heads < 1 || t->length < 1 || t->states < 1) return ESS_ERR_SIZE;
    if (t->states > ESS_LANES_MAX_STATES) return ESS_ERR_SIZE;
    if (t->reserved != 0) return ESS_ERR_SIZE;
    if (!t->read || !t->write || !t->gate || !t->read_unit || !t->write_unit) return ESS_ERR_NULL;
    for (int64_t h = 0; h < t->heads; h++) {
        if (!t->read[h] || !t->write[h] || !t->gate[h]) return ESS_ERR_NULL;
        if (t->rate && !t->rate[h]) return ESS_ERR_NULL;
        if (t->read_scale && !t->read_scale[h]) return ESS_ERR_NULL;
        if (t->write_scale && !t->write_scale[h]) return ESS_ERR_NULL;
    }
    return ESS_OK;
}

// a kernel of a dispatch level's table
template <class Job> using Kernel = int64_t (*ess::LanesKernels::*)(const Job &job, int32_t threads, void *workspace);

// Runs a kernel in the caller's workspace.
template <class Job> int32_t in_workspace(const ess_run *run, const Job &job, Kernel<Job> kernel) {
    const auto call = ess::kernels_for(run->level)->lanes->*kernel;
    if (int32_t code = ess::check_workspace(run, call(job, run->threads, nullptr))) return code;
    call(job, run->threads, run->workspace);
    return ESS_OK;
}

template <class Job> int64_t workspace_of(const ess_run *run, const Job &job, Kernel<Job> kernel) {
    return (ess::kernels_for(run->level)->lanes->*kernel)(job, run->threads, nullptr);
}

int32_t check_counts(const ess_run *run, const ess_tokens *tokens, int64_t tolerances, const double *tau,
                     const uint8_t *wanted, const double *value, const double *growth, const double *least) {
    if (int32_t code = check(run, tokens)) return code;
    if (tolerances < 1) return ESS_ERR_SIZE;
    return tau && wanted && value && growth && least ? ESS_OK : ESS_ERR_NULL;
}

int32_t entropy_job(const ess_run *run, const ess_tokens *tokens, const ess_quadrature *q, const uint8_t *wanted,
                    const double *cap, double *ess, double *bound, double *total, ess::LanesEntropyJob &job) {
    if (int32_t code = check(run, tokens)) return code;
    if (!q || !q->t || !q->total_weight || !q->mixed_weight || !wanted || !cap || !ess || !bound || !total)
        return ESS_ERR_NULL;
    if (q->nodes < 1 || q->nodes > ESS_MAX_NODES) return ESS_ERR_SIZE;
    for (int64_t k = 0; k < q->nodes; k++) {
        if (!(q->t[k] >= ESS_LEAST_NODE)) return ESS_ERR_SIZE;
    }
    job = {*tokens, *q, wanted, cap, ess, bound, total};
    return ESS_OK;
}

} // namespace

extern "C" {

int64_t ess_lanes_counts_workspace(const ess_run *run, const ess_tokens *tokens, int64_t tolerances, const double *tau,
                                   const uint8_t *wanted, double *value, double *growth, double *least) {
    if (int32_t code = check_counts(run, tokens, tolerances, tau, wanted, value, growth, least)) return -code;
    const ess::LanesCountsJob job = {*tokens, tolerances, tau, wanted, value, growth, least};
    return workspace_of(run, job, &ess::LanesKernels::counts);
}

int32_t ess_lanes_counts(const ess_run *run, const ess_tokens *tokens, int64_t tolerances, const double *tau,
                         const uint8_t *wanted, double *value, double *growth, double *least) {
    if (int32_t code = check_counts(run, tokens, tolerances, tau, wanted, value, growth, least)) return code;
    const ess::LanesCountsJob job = {*tokens, tolerances, tau, wanted, value, growth, least};
    return in_workspace(run, job, &ess::LanesKernels::counts);
}

int64_t ess_lanes_entropy_workspace(const ess_run *run, const ess_tokens *tokens, const ess_quadrature *quadrature,
                                    const uint8_t *wanted, const double *cap, double *ess, double *bound,
                                    double *total) {
    ess::LanesEntropyJob job;
    const int32_t code = entropy_job(run, tokens, quadrature, wanted, cap, ess, bound, total, job);
    if (code != ESS_OK) return -code;
    return workspace_of(run, job, &ess::LanesKernels::entropy);
}

int32_t ess_lanes_entropy(const ess_run *run, const ess_tokens *tokens, const ess_quadrature *quadrature,
                          const uint8_t *wanted, const double *cap, double *ess, double *bound, double *total) {
    ess::LanesEntropyJob job;
    const int32_t code = entropy_job(run, tokens, quadrature, wanted, cap, ess, bound, total, job);
    if (code != ESS_OK) return code;
    return in_workspace(run, job, &ess::LanesKernels::entropy);
}

} // extern "C"
