// Checks of the jobs of ess_tokens.h and ess_recurrence.h.

#include "abi/checks.h"
#include "recurrence/sizes.h"

namespace ess {

int32_t check_tokens(const ess_tokens *t, int64_t most_states, bool gated) {
    if (t == nullptr) return ESS_ERR_NULL;
    if (int32_t error = check_pointers({t->read, t->write, t->read_unit, t->write_unit})) return error;
    if (gated && t->gate == nullptr) return ESS_ERR_NULL;
    if (int32_t error = check_sizes({t->heads, t->length, t->states})) return error;
    if (t->states > most_states || (t->update && !t->lookup)) return ESS_ERR_SIZE;
    for (int64_t h = 0; h < t->heads; h++) {
        if (t->read[h] == nullptr || t->write[h] == nullptr || (gated && t->gate[h] == nullptr)) return ESS_ERR_NULL;
        if (t->rate && t->rate[h] == nullptr) return ESS_ERR_NULL;
        if (t->read_scale && t->read_scale[h] == nullptr) return ESS_ERR_NULL;
        if (t->write_scale && t->write_scale[h] == nullptr) return ESS_ERR_NULL;
        if (t->lookup && t->lookup[h] == nullptr) return ESS_ERR_NULL;
        if (t->update && t->update[h] == nullptr) return ESS_ERR_NULL;
    }
    return ESS_OK;
}

int32_t check_diagonal_tokens(const ess_tokens *tokens, int64_t most_states) {
    if (int32_t error = check_tokens(tokens, most_states, true)) return error;
    return tokens->lookup ? ESS_ERR_SIZE : ESS_OK;
}

int32_t check_quadrature(const ess_quadrature *q, int64_t multiple) {
    if (q == nullptr) return ESS_ERR_NULL;
    if (int32_t error = check_pointers({q->t, q->total_weight, q->mixed_weight})) return error;
    if (q->nodes < 1 || q->nodes > ESS_MAX_NODES || q->nodes % multiple != 0) return ESS_ERR_SIZE;
    for (int64_t k = 0; k < q->nodes; k++) {
        if (!(q->t[k] >= ESS_LEAST_NODE)) return ESS_ERR_SIZE;
    }
    return ESS_OK;
}

namespace {

int32_t check_block(int64_t n, int64_t c) {
    if (n < 8 || n > ESS_MAX_STATES || n % 8 != 0) return ESS_ERR_SIZE;
    return c != 8 && c != 16 && c != 32 && c != ESS_MAX_BLOCK ? ESS_ERR_SIZE : ESS_OK;
}

int32_t check_parts(const ess_recurrence *p) {
    if (p == nullptr) return ESS_ERR_NULL;
    if (int32_t error = check_block(p->n, p->c)) return error;
    if (int32_t error = check_sizes({p->heads, p->blocks, p->n, p->n})) return error;
    if (int32_t error = check_sizes({p->heads, p->blocks, p->c, p->c})) return error;
    if (p->reserved != 0) return ESS_ERR_SIZE;
    if (p->transitions < ESS_DIAGONAL || p->transitions > ESS_RANK_ONE) return ESS_ERR_SIZE;
    return check_aligned({p->X, p->Z, p->Y, p->Phi, p->F, p->Q});
}

bool fits(const ess_recurrence *p, int64_t length) {
    return length > (p->blocks - 1) * p->c && length <= p->blocks * p->c;
}

// Parts of `length` tokens that are there or, with `tokens`, are filled on the way.
int32_t check_source(const ess_recurrence *parts, const ess_tokens *tokens, int64_t length) {
    if (int32_t error = check_parts(parts)) return error;
    if (!fits(parts, length)) return ESS_ERR_SIZE;
    if (tokens == nullptr) return ESS_OK;
    if (has_matrices(*parts) || tokens->length != length) return ESS_ERR_SIZE;
    return check(ess_recurrence_parts_job{parts, tokens, nullptr, 0});
}

} // namespace

int32_t check(const ess_tokens_survey_job &job) {
    const int32_t error = check_tokens(job.tokens, ESS_MAX_STATES, true);
    return error ? error : check_pointers({job.read_peak, job.write_peak, job.supported});
}

int32_t check(const ess_tokens_lost_job &job) {
    if (int32_t error = check_diagonal_tokens(job.tokens, ESS_MAX_STATES)) return error;
    const int32_t error = check_sizes({job.span});
    return error ? error : check_pointers({job.lost});
}

int32_t check(const ess_recurrence_parts_job &job) {
    if (int32_t error = check_parts(job.parts)) return error;
    const ess_recurrence &parts = *job.parts;
    if (int32_t error = check_tokens(job.tokens, parts.n, !has_matrices(parts))) return error;
    if (job.tokens->heads != parts.heads || !fits(&parts, job.tokens->length)) return ESS_ERR_SIZE;
    if ((job.tokens->lookup != nullptr) != (parts.transitions == ESS_RANK_ONE)) return ESS_ERR_SIZE;
    if (!has_matrices(parts)) return ESS_OK;
    if (job.transition == nullptr) return ESS_ERR_NULL;
    if (job.transition_stride < 0) return ESS_ERR_SIZE;
    for (int64_t h = 0; h < parts.heads; h++) {
        if (job.transition[h] == nullptr) return ESS_ERR_NULL;
    }
    return ESS_OK;
}

int32_t check(const ess_recurrence_counts_job &job) {
    if (int32_t error = check_source(job.parts, job.tokens, job.length)) return error;
    if (int32_t error = check_sizes({job.parts->heads, job.tolerances, job.length})) return error;
    return check_pointers({job.tau, job.wanted, job.counts, job.growth, job.least});
}

int32_t check(const ess_recurrence_observe_roots_job &job) {
    const int32_t error = check(job.made);
    return error ? error : check_aligned({job.observe_roots});
}

int32_t check(const ess_recurrence_unsquared_counts_job &job) {
    if (int32_t error = check(job.counts)) return error;
    if (job.counts.tokens != nullptr) return ESS_ERR_SIZE;
    if (int32_t error = check_pointers({job.made})) return error;
    return check_aligned({job.observe_roots, job.outsides});
}

int32_t check(const ess_recurrence_root_products_job &job) {
    if (int32_t error = check(job.roots)) return error;
    if (int32_t error = check_pointers({job.heads, job.positions, job.products})) return error;
    if (job.count < 1 || !aligned(job.products)) return ESS_ERR_SIZE;
    const ess_tokens &tokens = *job.roots.made.tokens;
    for (int64_t q = 0; q < job.count; q++) {
        const int64_t head = job.heads[q], position = job.positions[q];
        if (head < 0 || head >= tokens.heads || position < 1 || position >= tokens.length) return ESS_ERR_SIZE;
        if (q == 0) continue;
        const int64_t before = job.heads[q - 1];
        if (head < before || (head == before && position < job.positions[q - 1])) return ESS_ERR_SIZE;
    }
    return ESS_OK;
}

int32_t check(const ess_recurrence_entropy_job &job) {
    if (int32_t error = check_source(job.parts, job.tokens, job.length)) return error;
    if (int32_t error = check_quadrature(job.quadrature, 8)) return error;
    return check_pointers({job.wanted, job.total, job.mixed, job.rounding, job.unit});
}

} // namespace ess

extern "C" int64_t ess_recurrence_outside_size(int64_t n, int64_t c) {
    return ess::check_block(n, c) ? -ESS_ERR_SIZE : ess::outside_size(n, c);
}
