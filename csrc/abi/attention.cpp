// Entry points for softmax attention: checks, then the kernels of the run's dispatch level.

#include "jobs/attention.h"
#include "abi/checks.h"
#include "include/ess_attention.h"
#include "include/ess_matrix.h"

namespace ess {
namespace {

int32_t rows_job(const ess_run *run, const ess_attention *a, double *weights, int64_t row_stride,
                 const Kernels *&kernels, AttentionRowsJob &job) {
    if (int32_t error = check_run(run, kernels)) return error;
    if (a == nullptr || a->q == nullptr || a->k == nullptr || weights == nullptr) return ESS_ERR_NULL;
    if (a->heads < 1 || a->length < 1 || a->length > ESS_MAX_LENGTH) return ESS_ERR_SIZE;
    if (a->size < 1 || a->size > ESS_MAX_QUERY || a->window < 0 || !(a->softcap >= 0)) return ESS_ERR_SIZE;
    job = {a->heads,  a->length, a->size, a->q,       a->k,         a->scale, a->softcap,
           a->window, a->sinks,  weights, row_stride, run->threads, nullptr};
    return row_stride < job.rounded() ? ESS_ERR_SIZE : ESS_OK;
}

} // namespace
} // namespace ess

extern "C" {

int64_t ess_attention_rows_workspace(const ess_run *run, const ess_attention *attention, double *weights,
                                     int64_t row_stride) {
    const ess::Kernels *kernels;
    ess::AttentionRowsJob job;
    if (int32_t error = ess::rows_job(run, attention, weights, row_stride, kernels, job)) return -error;
    return kernels->attention->rows(job);
}

int32_t ess_attention_rows(const ess_run *run, const ess_attention *attention, double *weights, int64_t row_stride) {
    const ess::Kernels *kernels;
    ess::AttentionRowsJob job;
    if (int32_t error = ess::rows_job(run, attention, weights, row_stride, kernels, job)) return error;
    if (int32_t error = ess::check_workspace(run, kernels->attention->rows(job))) return error;
    job.workspace = run->workspace;
    kernels->attention->rows(job);
    return ESS_OK;
}

} // extern "C"
