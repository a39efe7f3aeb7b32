// The tokens of one block as kernels work on them, read from where the caller has them.

#pragma once

#include "dense/products.h"
#include "include/ess_tokens.h"

namespace ess::ESS_LEVEL::recurrence {
using namespace dense;
namespace {

// One block's tokens, [c][n] each, n padded: read, write, and transitions that are no matrices, diag(factor), or with a
// rank-one term diag(factor) - replace lookup^T.
struct BlockTokens {
    int64_t n, c;
    double *read, *write, *factor;
    double *lookup, *replace; // null where transitions are diagonal

    BlockTokens(Arena &arena, int64_t n, int64_t c, bool rank_one)
        : n(n), c(c), read(arena.take<double>(n * c)), write(arena.take<double>(n * c)),
          factor(arena.take<double>(n * c)), lookup(rank_one ? arena.take<double>(n * c) : nullptr),
          replace(rank_one ? arena.take<double>(n * c) : nullptr) {}
};

// Where the parts of one block go; see recurrence/parts.h.
struct BlockParts {
    double *X, *Y, *Z, *Phi;
};

// target[0..n) = scale * source[0..states), zeros behind; n is a multiple of ROWS.
ESS_INLINE void copy_scaled(const double *source, int64_t states, double scale, double *target, int64_t n) {
    int64_t i = 0;
    for (; i + W <= states; i += W) store(target + i, load(source + i) * all(scale));
    for (; i < states; i++) target[i] = source[i] * scale;
    for (; i < n; i++) target[i] = 0;
}

// The factors of one token: exp(gate * rate), exp(gate), or the gate itself; one in padded coordinates.
ESS_INLINE void token_factors(const ess_tokens &tokens, int64_t head, int64_t t, double *factor, int64_t n) {
    const double *gate = tokens.gate[head] + t * tokens.gate_stride;
    const double *rate = tokens.rate ? tokens.rate[head] : nullptr;
    if (tokens.gate_shared && !rate) {
        V value = all(*gate);
        if (tokens.gate_is_log) value = exp(value);
        for (int64_t i = 0; i < n; i += W) store(factor + i, value);
        return;
    }
    if (tokens.gate_shared) copy_scaled(rate, tokens.states, *gate, factor, n);
    else copy_scaled(gate, tokens.states, 1.0, factor, n);
    if (rate && !tokens.gate_shared) {
        for (int64_t i = 0; i < tokens.states; i++) factor[i] *= rate[i];
    }
    if (tokens.gate_is_log) {
        for (int64_t i = 0; i < n; i += W) store(factor + i, exp(load(factor + i)));
    } else {
        for (int64_t i = tokens.states; i < n; i++) factor[i] = 1;
    }
}

// The rank-one term of one token. Its sign and the unit of the writes, in which the states are, go to the lookup.
inline void token_term(const ess_tokens &tokens, int64_t head, int64_t token, const BlockTokens &out, int64_t t) {
    const int64_t n = out.n;
    double *lookup = out.lookup + t * n, *replace = out.replace + t * n;
    const double scale = tokens.update ? -1 : 1 / tokens.write_unit[head];
    copy_scaled(tokens.lookup[head] + token * tokens.lookup_stride, tokens.states, scale, lookup, n);
    if (tokens.lookup_decayed) {
        for (int64_t i = 0; i < n; i += W) store(lookup + i, load(lookup + i) * load(out.factor + t * n + i));
    }
    if (tokens.update) {
        copy_scaled(tokens.update[head] + token * tokens.update_stride, tokens.states, 1.0, replace, n);
    } else {
        copy_scaled(out.write + t * n, n, 1.0, replace, n);
    }
}

// The tokens of a block; behind the end of the sequence zero tokens, which change nothing.
inline void read_tokens(const ess_tokens &tokens, int64_t head, int64_t block, bool factors, BlockTokens &out) {
    const int64_t n = out.n, c = out.c, start = block * c;
    const int64_t present = tokens.length - start < c ? tokens.length - start : c;
    for (int64_t t = 0; t < present; t++) {
        double read_scale = tokens.read_unit[head], write_scale = tokens.write_unit[head];
        if (tokens.read_scale) read_scale *= tokens.read_scale[head][(start + t) * tokens.read_scale_stride];
        if (tokens.write_scale) write_scale *= tokens.write_scale[head][(start + t) * tokens.write_scale_stride];
        copy_scaled(tokens.read[head] + (start + t) * tokens.read_stride, tokens.states, read_scale, out.read + t * n,
                    n);
        copy_scaled(tokens.write[head] + (start + t) * tokens.write_stride, tokens.states, write_scale,
                    out.write + t * n, n);
        if (factors) token_factors(tokens, head, start + t, out.factor + t * n, n);
        if (out.lookup) token_term(tokens, head, start + t, out, t);
    }
    fill(out.read + present * n, 0, (c - present) * n);
    fill(out.write + present * n, 0, (c - present) * n);
    if (factors) fill(out.factor + present * n, 1, (c - present) * n);
    if (!out.lookup) return;
    fill(out.lookup + present * n, 0, (c - present) * n);
    fill(out.replace + present * n, 0, (c - present) * n);
}

} // namespace
} // namespace ess::ESS_LEVEL::recurrence
