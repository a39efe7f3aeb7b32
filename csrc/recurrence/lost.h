// What rounding takes from the products of diagonal states: by how much H_i may be wrong before anything is eliminated.
//
// T_ij = sum_k read_ik a_ik ... a_(j+1)k write_jk, and term k is wrong by up to one rounding for every token between j
// and i. With the norms of all writes before i and of all reads from i on, each once with its own errors, the error of
// H_i is at most the sum over k of (norm of writes) (error of reads) + (error of writes) (norm of reads). Tokens are
// taken in spans, and decay counts for whole spans only: one exponential a span and state, whatever the length of
// the span. Without decay a few tokens take one rounding, of what is summed up over them; sums over states take a few
// in the end.

#pragma once

#include "base/team_work.h"
#include "dense/products.h"
#include "include/ess_tokens.h"

namespace ess::ESS_LEVEL::recurrence {
using namespace dense;
namespace {

// states that one thread looks at together: those of a head are added up in this order, whatever the number of threads
constexpr int64_t LOST_STATES = 32;
// tokens without decay that take one rounding, and roundings of the sum over the states
constexpr double TOKENS_A_ROUNDING = 8;
constexpr double ROUNDINGS_OF_SUM = 8;

// What one side, writes or reads, has gathered along the spans: for every state a norm, and its error in roundings.
struct Gathered {
    V norm{}, error{};

    // With a span's own tokens, of norm `fresh`, none of them decayed; `roundings` of them in the span.
    ESS_INLINE void with(V fresh, V roundings, V &norm_here, V &error_here) const {
        norm_here = sqrt(norm * norm + fresh * fresh);
        error_here = error + (norm + fresh) * roundings;
    }

    // Beyond the span.
    ESS_INLINE void pass(V fresh, V roundings, V decay) {
        error = (error + norm * roundings) * decay + fresh * roundings;
        const V kept = norm * decay;
        norm = sqrt(kept * kept + fresh * fresh);
    }
};

inline int64_t lost_spans(const ess_tokens_lost_job &job) { return (job.tokens->length + job.span - 1) / job.span; }

struct LostWork {
    int64_t n;                   // states at a time, padded
    double *decay, *gate;        // [spans, n]: the product of a span's transitions, and the largest of them
    double *read, *norm, *error; // [spans, n]: norm of the reads; what writes have gathered
    double *write;               // [n]
    double *scale;               // [tokens of a span]

    LostWork(Arena &arena, const ess_tokens_lost_job &job)
        : n(padded(min(job.tokens->states, LOST_STATES))), decay(arena.take<double>(lost_spans(job) * n)),
          gate(arena.take<double>(lost_spans(job) * n)), read(arena.take<double>(lost_spans(job) * n)),
          norm(arena.take<double>(lost_spans(job) * n)), error(arena.take<double>(lost_spans(job) * n)),
          write(arena.take<double>(n)), scale(arena.take<double>(min(job.span, job.tokens->length))) {}
};

// x[states..n) = value; not in whole vectors, which would reach beyond n.
inline void pad(double *x, double value, int64_t states, int64_t n) {
    for (int64_t k = states; k < n; k++) x[k] = value;
}

// Norms of what the tokens begin .. end-1 write or read, `out` [n]; `scales` has room for a number a token.
inline void span_norms(const double *rows, int64_t stride, const double *scale, int64_t scale_stride, double unit,
                       int64_t begin, int64_t end, int64_t states, double *scales, double *out, int64_t n) {
    for (int64_t t = begin; t < end; t++) scales[t - begin] = scale ? unit * scale[t * scale_stride] : unit;
    const int64_t count = end - begin;
    rows += begin * stride;
    int64_t k = 0;
    for (; k + W <= states; k += W) {
        V sum = V{};
        for (int64_t t = 0; t < count; t++) {
            const V x = load(rows + t * stride + k) * all(scales[t]);
            sum += x * x;
        }
        store(out + k, sqrt(sum));
    }
    for (; k < states; k++) {
        double sum = 0;
        for (int64_t t = 0; t < count; t++) {
            const double x = rows[t * stride + k] * scales[t];
            sum += x * x;
        }
        out[k] = std::sqrt(sum);
    }
    pad(out, 0, states, n);
}

// One more gate of a state, or of W of them: logarithms are summed up, factors multiplied.
template <class X> ESS_INLINE void include_gate(X gate, bool log, X &together, X &low, X &high) {
    together = log ? together + gate : together * gate;
    low = gate < low ? gate : low;
    high = gate > high ? gate : high;
}

// The product and the largest of the transitions of the tokens begin .. end-1 for some states, in magnitude, `decay`
// and `gate` [n].
inline void span_gates(const ess_tokens &tokens, int64_t head, int64_t first, int64_t states, int64_t begin,
                       int64_t end, double *decay, double *gate, int64_t n) {
    const int64_t stride = tokens.gate_stride;
    const bool log = tokens.gate_is_log != 0;
    const double *rows = tokens.gate[head] + begin * stride + (tokens.gate_shared ? 0 : first);
    const int64_t count = end - begin;
    auto one_state = [&](int64_t k, double &together, double &low, double &high) {
        together = low = high = log ? rows[k] : std::fabs(rows[k]);
        for (int64_t t = 1; t < count; t++) {
            const double x = rows[k + t * stride];
            include_gate(log ? x : std::fabs(x), log, together, low, high);
        }
    };
    const double *rate = tokens.rate ? tokens.rate[head] + first : nullptr;
    if (tokens.gate_shared) {
        double together, low, high;
        one_state(0, together, low, high);
        for (int64_t k = 0; k < states; k++) {
            const double r = rate ? log ? rate[k] : std::fabs(rate[k]) : 1;
            // a rate may turn the order round; a factor's rate comes in once a token
            gate[k] = low * r > high * r ? low * r : high * r;
            decay[k] = together * (log || !rate ? r : std::pow(r, static_cast<double>(count)));
        }
    } else {
        int64_t k = 0;
        for (; k + W <= states; k += W) {
            V together = log ? load(rows + k) : abs(load(rows + k)), low = together, high = together;
            for (int64_t t = 1; t < count; t++) {
                const V x = load(rows + t * stride + k);
                include_gate(log ? x : abs(x), log, together, low, high);
            }
            store(decay + k, together);
            store(gate + k, high);
        }
        for (double low; k < states; k++) one_state(k, decay[k], low, gate[k]);
        for (k = 0; rate && k < states; k++) {
            decay[k] *= log ? rate[k] : std::pow(std::fabs(rate[k]), static_cast<double>(count));
            // The largest transition would need a look at every gate times its rate. One bounds it: none is larger.
            gate[k] = log ? 0 : 1;
        }
    }
    pad(decay, log ? 0 : 1, states, n);
    pad(gate, log ? 0 : 1, states, n);
    if (!log) return;
    for (int64_t k = 0; k < n; k += W) {
        store(decay + k, exp(load(decay + k)));
        store(gate + k, exp(load(gate + k)));
    }
}

// How many roundings a span costs whose transitions multiply to `decay`: one transition of 1 after the other costs
// none.
ESS_INLINE V span_roundings(V decay, int64_t span) {
    const double tokens = static_cast<double>(span);
    return select(decay == all(1.0), all(tokens / TOKENS_A_ROUNDING), all(tokens));
}

// The states from `first` on of one head, forwards for what is written, then backwards for what is read: `sums`
// [spans].
inline void lost_of_states(const ess_tokens_lost_job &job, int64_t head, int64_t first, LostWork &work, double *sums) {
    const ess_tokens &tokens = *job.tokens;
    const int64_t states = min(LOST_STATES, tokens.states - first), n = padded(states), spans = lost_spans(job);
    auto end_of = [&](int64_t b) { return min((b + 1) * job.span, tokens.length); };
    Gathered gathered[LOST_STATES / W];
    for (int64_t b = 0; b < spans; b++) {
        const int64_t begin = b * job.span, end = end_of(b);
        double *decay = work.decay + b * n, *gate = work.gate + b * n;
        span_gates(tokens, head, first, states, begin, end, decay, gate, n);
        span_norms(tokens.read[head] + first, tokens.read_stride, tokens.read_scale ? tokens.read_scale[head] : nullptr,
                   tokens.read_scale_stride, tokens.read_unit[head], begin, end, states, work.scale, work.read + b * n,
                   n);
        span_norms(tokens.write[head] + first, tokens.write_stride,
                   tokens.write_scale ? tokens.write_scale[head] : nullptr, tokens.write_scale_stride,
                   tokens.write_unit[head], begin, end, states, work.scale, work.write, n);
        for (int64_t k = 0; k < n; k += W) {
            const V fresh = load(work.write + k), kept = load(decay + k), roundings = span_roundings(kept, job.span);
            V norm, error;
            gathered[k / W].with(fresh, roundings, norm, error);
            store(work.norm + b * n + k, norm);
            store(work.error + b * n + k, error);
            gathered[k / W].pass(fresh, roundings, kept);
        }
    }
    for (int64_t k = 0; k < n; k += W) gathered[k / W] = Gathered();
    for (int64_t b = spans - 1; b >= 0; b--) {
        V sum = V{};
        for (int64_t k = 0; k < n; k += W) {
            const int64_t at = b * n + k;
            const V fresh = load(work.read + at), kept = load(work.decay + at),
                    roundings = span_roundings(kept, job.span);
            V norm, error;
            gathered[k / W].with(fresh, roundings, norm, error);
            // every path from an earlier token to row i passes the transition of i, unless rows read before their own
            const V passed = tokens.reads_before ? all(1.0) : load(work.gate + at);
            const V written = load(work.norm + at), of_both = error + norm * all(ROUNDINGS_OF_SUM);
            sum += passed * (written * of_both + load(work.error + at) * norm);
            gathered[k / W].pass(fresh, roundings, kept);
        }
        sums[b] = horizontal_sum(sum);
    }
}

inline int64_t lost(const ess_tokens_lost_job &job, int32_t threads, void *workspace) {
    const ess_tokens &tokens = *job.tokens;
    const int64_t slices = (tokens.states + LOST_STATES - 1) / LOST_STATES, spans = lost_spans(job);
    Arena shared(workspace);
    double *sums = shared.take<double>(tokens.heads * slices * spans);
    TaskCounter tasks(tokens.heads * slices);
    auto body = [&](LostWork &work) {
        FlushDenormals flush;
        for (int64_t t; (t = tasks.take()) >= 0;) {
            lost_of_states(job, t / slices, t % slices * LOST_STATES, work, sums + t * spans);
        }
    };
    const int64_t needed = run_with<LostWork>(shared, threads, body, job);
    if (workspace == nullptr) return needed;
    for (int64_t head = 0; head < tokens.heads; head++) {
        for (int64_t b = 0; b < spans; b++) {
            double sum = 0;
            for (int64_t slice = 0; slice < slices; slice++) sum += sums[(head * slices + slice) * spans + b];
            sum *= __DBL_EPSILON__;
            job.lost[head * spans + b] = sum == sum ? sum : HUGE_VAL;
        }
    }
    return needed;
}

} // namespace
} // namespace ess::ESS_LEVEL::recurrence
