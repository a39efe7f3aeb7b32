// Entry points for recurrences: checks, then the kernels of the run's dispatch level.

#include "jobs/recurrence.h"
#include "abi/checks.h"
#include "include/ess_recurrence.h"

namespace ess {
namespace {

int32_t check_parts(const ess_recurrence *p) {
    if (p == nullptr) return ESS_ERR_NULL;
    if (p->n < 8 || p->n > ESS_MAX_STATES || p->n % 8 != 0) return ESS_ERR_SIZE;
    if (p->c != 8 && p->c != 16 && p->c != 32 && p->c != ESS_MAX_BLOCK) return ESS_ERR_SIZE;
    if (p->heads < 1 || p->blocks < 1) return ESS_ERR_SIZE;
    if (p->dense < 0 || p->dense > ESS_COLUMN_MAJOR) return ESS_ERR_SIZE;
    const void *arrays[] = {p->X, p->Z, p->Y, p->Phi, p->F, p->Q};
    for (const void *array : arrays) {
        if (array == nullptr) return ESS_ERR_NULL;
        if (!aligned(array)) return ESS_ERR_SIZE;
    }
    return ESS_OK;
}

bool fits(const ess_recurrence *p, int64_t length) {
    return length > (p->blocks - 1) * p->c && length <= p->blocks * p->c;
}

RecurrenceParts parts_of(const ess_recurrence *p) {
    return {p->heads, p->blocks, p->n, p->c, p->dense != 0, p->X, p->Z, p->Y, p->Phi, p->F, p->Q, p->norms};
}

int32_t check_tokens(const ess_tokens *t, bool gated) {
    if (t == nullptr || t->read == nullptr || t->write == nullptr) return ESS_ERR_NULL;
    if (t->read_unit == nullptr || t->write_unit == nullptr || (gated && t->gate == nullptr)) return ESS_ERR_NULL;
    if (t->heads < 1 || t->length < 1 || t->states < 1 || t->states > ESS_MAX_STATES) return ESS_ERR_SIZE;
    for (int64_t h = 0; h < t->heads; h++) {
        if (t->read[h] == nullptr || t->write[h] == nullptr || (gated && t->gate[h] == nullptr)) return ESS_ERR_NULL;
        if (t->rate && t->rate[h] == nullptr) return ESS_ERR_NULL;
        if (t->read_scale && t->read_scale[h] == nullptr) return ESS_ERR_NULL;
        if (t->write_scale && t->write_scale[h] == nullptr) return ESS_ERR_NULL;
    }
    return ESS_OK;
}

int32_t survey_job(const ess_run *run, const ess_tokens *tokens, double *read_peak, double *write_peak, uint8_t *fair,
                   const Kernels *&kernels, SurveyJob &job) {
    if (int32_t error = check_run(run, kernels)) return error;
    if (int32_t error = check_tokens(tokens, true)) return error;
    if (!read_peak || !write_peak || !fair) return ESS_ERR_NULL;
    job = {*tokens, read_peak, write_peak, fair, run->threads, run->workspace};
    return ESS_OK;
}

int32_t lost_job(const ess_run *run, const ess_tokens *tokens, int64_t group, double *lost, const Kernels *&kernels,
                 LostJob &job) {
    if (int32_t error = check_run(run, kernels)) return error;
    if (int32_t error = check_tokens(tokens, true)) return error;
    if (lost == nullptr) return ESS_ERR_NULL;
    if (group < 1 || tokens->states > ESS_MAX_STATES) return ESS_ERR_SIZE;
    job = {*tokens, group, lost, run->threads, run->workspace};
    return ESS_OK;
}

int32_t parts_job(const ess_run *run, const ess_recurrence *parts, const ess_tokens *tokens,
                  const double *const *transition, int64_t transition_stride, const Kernels *&kernels,
                  RecurrencePartsJob &job) {
    if (int32_t error = check_run(run, kernels)) return error;
    if (int32_t error = check_parts(parts)) return error;
    if (int32_t error = check_tokens(tokens, !parts->dense)) return error;
    if (tokens->heads != parts->heads || tokens->states > parts->n) return ESS_ERR_SIZE;
    if (!fits(parts, tokens->length)) return ESS_ERR_SIZE;
    if (parts->dense) {
        if (transition == nullptr) return ESS_ERR_NULL;
        if (transition_stride < 0) return ESS_ERR_SIZE;
        for (int64_t h = 0; h < tokens->heads; h++) {
            if (transition[h] == nullptr) return ESS_ERR_NULL;
        }
    }
    job = {parts_of(parts), *tokens,       transition, transition_stride, parts->dense == ESS_COLUMN_MAJOR,
           run->threads,    run->workspace};
    return ESS_OK;
}

// Parts of `length` tokens that are there, or, with `tokens`, are made first: job.making says how.
template <class Job>
int32_t answers_job(const ess_run *run, const ess_recurrence *parts, const ess_tokens *tokens, int64_t length,
                    const Kernels *&kernels, RecurrencePartsJob &making, Job &job) {
    if (int32_t error = check_run(run, kernels)) return error;
    if (int32_t error = check_parts(parts)) return error;
    if (!fits(parts, length)) return ESS_ERR_SIZE;
    job = {};
    if (tokens) {
        if (parts->dense || tokens->length != length) return ESS_ERR_SIZE;
        if (int32_t error = parts_job(run, parts, tokens, nullptr, 0, kernels, making)) return error;
        job.making = &making;
    }
    job.parts = parts_of(parts);
    job.length = length;
    job.threads = run->threads;
    job.workspace = run->workspace;
    return ESS_OK;
}

int32_t counts_job(const ess_run *run, const ess_recurrence *parts, const ess_tokens *tokens, int64_t length,
                   int64_t tolerances, const double *tau, const uint8_t *wanted, double *counts, double *growth,
                   double *least, const Kernels *&kernels, RecurrencePartsJob &making, RecurrenceCountsJob &job) {
    if (int32_t error = answers_job(run, parts, tokens, length, kernels, making, job)) return error;
    if (tolerances < 1) return ESS_ERR_SIZE;
    if (!tau || !wanted || !counts || !growth || !least) return ESS_ERR_NULL;
    job.tolerances = tolerances;
    job.tau = tau;
    job.wanted = wanted;
    job.counts = counts;
    job.growth = growth;
    job.least = least;
    return ESS_OK;
}

int32_t unsquared_job(const ess_run *run, const ess_recurrence *parts, const double *observe_roots, double *outsides,
                      uint8_t *made, int64_t length, int64_t tolerances, const double *tau, const uint8_t *wanted,
                      double *counts, double *growth, double *least, const Kernels *&kernels,
                      RecurrenceUnsquaredJob &job) {
    RecurrencePartsJob nothing; // roots come from parts that are there
    if (int32_t error = counts_job(run, parts, nullptr, length, tolerances, tau, wanted, counts, growth, least, kernels,
                                   nothing, job.counts)) {
        return error;
    }
    if (!observe_roots || !outsides || !made) return ESS_ERR_NULL;
    if (!aligned(observe_roots) || !aligned(outsides)) return ESS_ERR_SIZE;
    job.observe_roots = observe_roots;
    job.outsides = outsides;
    job.made = made;
    return ESS_OK;
}

int32_t roots_job(const ess_run *run, const ess_recurrence *parts, const ess_tokens *tokens,
                  const double *const *transition, int64_t transition_stride, double *observe_roots,
                  const Kernels *&kernels, RecurrenceRootsJob &job) {
    job = {};
    if (int32_t error = parts_job(run, parts, tokens, transition, transition_stride, kernels, job.parts)) return error;
    if (observe_roots == nullptr) return ESS_ERR_NULL;
    if (!aligned(observe_roots)) return ESS_ERR_SIZE;
    job.observe_roots = observe_roots;
    return ESS_OK;
}

int32_t products_job(const ess_run *run, const ess_recurrence *parts, const ess_tokens *tokens,
                     const double *const *transition, int64_t transition_stride, double *observe_roots, int64_t count,
                     const int64_t *heads, const int64_t *positions, double *products, const Kernels *&kernels,
                     RecurrenceRootsJob &job) {
    if (int32_t error = roots_job(run, parts, tokens, transition, transition_stride, observe_roots, kernels, job))
        return error;
    if (!heads || !positions || !products) return ESS_ERR_NULL;
    if (count < 1 || !aligned(products)) return ESS_ERR_SIZE;
    for (int64_t q = 0; q < count; q++) {
        if (heads[q] < 0 || heads[q] >= parts->heads) return ESS_ERR_SIZE;
        if (positions[q] < 1 || positions[q] >= tokens->length) return ESS_ERR_SIZE;
        if (q > 0 && (heads[q] < heads[q - 1] || (heads[q] == heads[q - 1] && positions[q] < positions[q - 1]))) {
            return ESS_ERR_SIZE;
        }
    }
    job.count = count;
    job.heads = heads;
    job.positions = positions;
    job.products = products;
    return ESS_OK;
}

int32_t entropy_job(const ess_run *run, const ess_recurrence *parts, const ess_tokens *tokens, int64_t length,
                    const double *scale, const ess_quadrature *quadrature, const uint8_t *wanted, double *total,
                    double *mixed, double *rounding, double *unit, const Kernels *&kernels, RecurrencePartsJob &making,
                    RecurrenceEntropyJob &job) {
    if (int32_t error = answers_job(run, parts, tokens, length, kernels, making, job)) return error;
    if (!quadrature || !wanted || !total || !mixed || !rounding || !unit) return ESS_ERR_NULL;
    const ess_quadrature &q = *quadrature;
    if (!q.t || !q.total_weight || !q.mixed_weight) return ESS_ERR_NULL;
    if (q.nodes < 8 || q.nodes > ESS_MAX_NODES || q.nodes % 8 != 0) return ESS_ERR_SIZE;
    for (int64_t k = 0; k < q.nodes; k++) {
        if (!(q.t[k] >= ESS_LEAST_NODE)) return ESS_ERR_SIZE;
    }
    job.scale = scale;
    job.nodes = q.nodes;
    job.t = q.t;
    job.total_weight = q.total_weight;
    job.mixed_weight = q.mixed_weight;
    job.wanted = wanted;
    job.total = total;
    job.mixed = mixed;
    job.rounding = rounding;
    job.unit = unit;
    return ESS_OK;
}

} // namespace
} // namespace ess

extern "C" {

int64_t ess_tokens_survey_workspace(const ess_run *run, const ess_tokens *tokens, double *read_peak, double *write_peak,
                                    uint8_t *fair) {
    const ess::Kernels *kernels;
    ess::SurveyJob job;
    if (int32_t error = ess::survey_job(run, tokens, read_peak, write_peak, fair, kernels, job)) return -error;
    return kernels->recurrence->survey_workspace(job);
}

int32_t ess_tokens_survey(const ess_run *run, const ess_tokens *tokens, double *read_peak, double *write_peak,
                          uint8_t *fair) {
    const ess::Kernels *kernels;
    ess::SurveyJob job;
    if (int32_t error = ess::survey_job(run, tokens, read_peak, write_peak, fair, kernels, job)) return error;
    if (int32_t error = ess::check_workspace(run, kernels->recurrence->survey_workspace(job))) return error;
    kernels->recurrence->survey(job);
    return ESS_OK;
}

int64_t ess_tokens_lost_workspace(const ess_run *run, const ess_tokens *tokens, int64_t group, double *lost) {
    const ess::Kernels *kernels;
    ess::LostJob job;
    if (int32_t error = ess::lost_job(run, tokens, group, lost, kernels, job)) return -error;
    return kernels->recurrence->lost_workspace(job);
}

int32_t ess_tokens_lost(const ess_run *run, const ess_tokens *tokens, int64_t group, double *lost) {
    const ess::Kernels *kernels;
    ess::LostJob job;
    if (int32_t error = ess::lost_job(run, tokens, group, lost, kernels, job)) return error;
    if (int32_t error = ess::check_workspace(run, kernels->recurrence->lost_workspace(job))) return error;
    kernels->recurrence->lost(job);
    return ESS_OK;
}

int64_t ess_recurrence_parts_workspace(const ess_run *run, const ess_recurrence *parts, const ess_tokens *tokens,
                                       const double *const *transition, int64_t transition_stride) {
    const ess::Kernels *kernels;
    ess::RecurrencePartsJob job;
    if (int32_t error = ess::parts_job(run, parts, tokens, transition, transition_stride, kernels, job)) return -error;
    return kernels->recurrence->parts_workspace(job);
}

int32_t ess_recurrence_parts(const ess_run *run, const ess_recurrence *parts, const ess_tokens *tokens,
                             const double *const *transition, int64_t transition_stride) {
    const ess::Kernels *kernels;
    ess::RecurrencePartsJob job;
    if (int32_t error = ess::parts_job(run, parts, tokens, transition, transition_stride, kernels, job)) return error;
    if (int32_t error = ess::check_workspace(run, kernels->recurrence->parts_workspace(job))) return error;
    kernels->recurrence->parts(job);
    return ESS_OK;
}

int64_t ess_recurrence_counts_workspace(const ess_run *run, const ess_recurrence *parts, const ess_tokens *tokens,
                                        int64_t length, int64_t tolerances, const double *tau, const uint8_t *wanted,
                                        double *counts, double *growth, double *least) {
    const ess::Kernels *kernels;
    ess::RecurrencePartsJob making;
    ess::RecurrenceCountsJob job;
    if (int32_t error = ess::counts_job(run, parts, tokens, length, tolerances, tau, wanted, counts, growth, least,
                                        kernels, making, job)) {
        return -error;
    }
    return kernels->recurrence->counts_workspace(job);
}

int32_t ess_recurrence_counts(const ess_run *run, const ess_recurrence *parts, const ess_tokens *tokens, int64_t length,
                              int64_t tolerances, const double *tau, const uint8_t *wanted, double *counts,
                              double *growth, double *least) {
    const ess::Kernels *kernels;
    ess::RecurrencePartsJob making;
    ess::RecurrenceCountsJob job;
    if (int32_t error = ess::counts_job(run, parts, tokens, length, tolerances, tau, wanted, counts, growth, least,
                                        kernels, making, job)) {
        return error;
    }
    if (int32_t error = ess::check_workspace(run, kernels->recurrence->counts_workspace(job))) return error;
    kernels->recurrence->counts(job);
    return ESS_OK;
}

int64_t ess_recurrence_unsquared_counts_workspace(const ess_run *run, const ess_recurrence *parts,
                                                  const double *observe_roots, double *outsides, uint8_t *made,
                                                  int64_t length, int64_t tolerances, const double *tau,
                                                  const uint8_t *wanted, double *counts, double *growth,
                                                  double *least) {
    const ess::Kernels *kernels;
    ess::RecurrenceUnsquaredJob job;
    if (int32_t error = ess::unsquared_job(run, parts, observe_roots, outsides, made, length, tolerances, tau, wanted,
                                           counts, growth, least, kernels, job)) {
        return -error;
    }
    return kernels->recurrence->unsquared_workspace(job);
}

int32_t ess_recurrence_unsquared_counts(const ess_run *run, const ess_recurrence *parts, const double *observe_roots,
                                        double *outsides, uint8_t *made, int64_t length, int64_t tolerances,
                                        const double *tau, const uint8_t *wanted, double *counts, double *growth,
                                        double *least) {
    const ess::Kernels *kernels;
    ess::RecurrenceUnsquaredJob job;
    if (int32_t error = ess::unsquared_job(run, parts, observe_roots, outsides, made, length, tolerances, tau, wanted,
                                           counts, growth, least, kernels, job)) {
        return error;
    }
    if (int32_t error = ess::check_workspace(run, kernels->recurrence->unsquared_workspace(job))) return error;
    kernels->recurrence->unsquared(job);
    return ESS_OK;
}

int64_t ess_recurrence_observe_roots_workspace(const ess_run *run, const ess_recurrence *parts,
                                               const ess_tokens *tokens, const double *const *transition,
                                               int64_t transition_stride, double *observe_roots) {
    const ess::Kernels *kernels;
    ess::RecurrenceRootsJob job;
    if (int32_t error = ess::roots_job(run, parts, tokens, transition, transition_stride, observe_roots, kernels, job))
        return -error;
    return kernels->recurrence->roots_workspace(job);
}

int32_t ess_recurrence_observe_roots(const ess_run *run, const ess_recurrence *parts, const ess_tokens *tokens,
                                     const double *const *transition, int64_t transition_stride,
                                     double *observe_roots) {
    const ess::Kernels *kernels;
    ess::RecurrenceRootsJob job;
    if (int32_t error = ess::roots_job(run, parts, tokens, transition, transition_stride, observe_roots, kernels, job))
        return error;
    if (int32_t error = ess::check_workspace(run, kernels->recurrence->roots_workspace(job))) return error;
    kernels->recurrence->observe_roots(job);
    return ESS_OK;
}

int64_t ess_recurrence_root_products_workspace(const ess_run *run, const ess_recurrence *parts,
                                               const ess_tokens *tokens, const double *const *transition,
                                               int64_t transition_stride, double *observe_roots, int64_t count,
                                               const int64_t *heads, const int64_t *positions, double *products) {
    const ess::Kernels *kernels;
    ess::RecurrenceRootsJob job;
    if (int32_t error = ess::products_job(run, parts, tokens, transition, transition_stride, observe_roots, count,
                                          heads, positions, products, kernels, job)) {
        return -error;
    }
    return kernels->recurrence->roots_workspace(job);
}

int32_t ess_recurrence_root_products(const ess_run *run, const ess_recurrence *parts, const ess_tokens *tokens,
                                     const double *const *transition, int64_t transition_stride, double *observe_roots,
                                     int64_t count, const int64_t *heads, const int64_t *positions, double *products) {
    const ess::Kernels *kernels;
    ess::RecurrenceRootsJob job;
    if (int32_t error = ess::products_job(run, parts, tokens, transition, transition_stride, observe_roots, count,
                                          heads, positions, products, kernels, job)) {
        return error;
    }
    if (int32_t error = ess::check_workspace(run, kernels->recurrence->roots_workspace(job))) return error;
    kernels->recurrence->root_products(job);
    return ESS_OK;
}

int64_t ess_recurrence_entropy_workspace(const ess_run *run, const ess_recurrence *parts, const ess_tokens *tokens,
                                         int64_t length, const double *scale, const ess_quadrature *quadrature,
                                         const uint8_t *wanted, double *total, double *mixed, double *rounding,
                                         double *unit) {
    const ess::Kernels *kernels;
    ess::RecurrencePartsJob making;
    ess::RecurrenceEntropyJob job;
    if (int32_t error = ess::entropy_job(run, parts, tokens, length, scale, quadrature, wanted, total, mixed, rounding,
                                         unit, kernels, making, job)) {
        return -error;
    }
    return kernels->recurrence->entropy_workspace(job);
}

int32_t ess_recurrence_entropy(const ess_run *run, const ess_recurrence *parts, const ess_tokens *tokens,
                               int64_t length, const double *scale, const ess_quadrature *quadrature,
                               const uint8_t *wanted, double *total, double *mixed, double *rounding, double *unit) {
    const ess::Kernels *kernels;
    ess::RecurrencePartsJob making;
    ess::RecurrenceEntropyJob job;
    if (int32_t error = ess::entropy_job(run, parts, tokens, length, scale, quadrature, wanted, total, mixed, rounding,
                                         unit, kernels, making, job)) {
        return error;
    }
    if (int32_t error = ess::check_workspace(run, kernels->recurrence->entropy_workspace(job))) return error;
    kernels->recurrence->entropy(job);
    return ESS_OK;
}

} // extern "C"
