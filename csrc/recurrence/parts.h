// Room recurrence/: recurrences with a finite state, block by block: what a block does (parts), what lies left and
// right of it (scans), and what is asked of it (counts, unsquared, entropy, roots). It may include leaves/, dense/,
// base/ and include/.
//
// A recurrence cut into blocks of c tokens: what each block [a, e) shows to the outside.
//
//   X row r     read_r A_r ... A_a             observability seen from a
//   Z column j  A_{e-1} ... A_{j+1} write_j    reachability carried to e
//   Phi         A_{e-1} ... A_a
//   Y           the block's own strictly lower T
//
// Where reads come before the transition, X and Y lose the factor A_r. Everything is a running product of factors:
// never a difference of cumulative logarithms, which overflows, and turns a gate of exactly zero into NaN.

#pragma once

#include "dense/products.h"
#include "recurrence/sizes.h"

namespace ess::ESS_LEVEL::recurrence {
using namespace dense;
namespace {

// One block's tokens, [c][n] each, n padded: read, write, and the transition's factors (diagonal recurrences).
struct BlockTokens {
    int64_t n, c;
    double *read, *write, *factor;

    BlockTokens(Arena &arena, int64_t n, int64_t c)
        : n(n), c(c), read(arena.take<double>(n * c)), write(arena.take<double>(n * c)),
          factor(arena.take<double>(n * c)) {}
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
    }
    fill(out.read + present * n, 0, (c - present) * n);
    fill(out.write + present * n, 0, (c - present) * n);
    if (factors) fill(out.factor + present * n, 1, (c - present) * n);
}

// Y of the tokens lo..hi-1 (at most ROWS of them) one token at a time: the columns' states are carried along.
inline void local_leaf(const BlockTokens &tokens, bool reads_before, int64_t lo, int64_t hi, double *Y,
                       double *states) {
    const int64_t n = tokens.n, c = tokens.c;
    for (int64_t r = lo; r < hi; r++) {
        const int64_t columns = r - lo;
        const double *read = tokens.read + r * n, *factor = tokens.factor + r * n, *write = tokens.write + r * n;
        V sum[ROWS];
        ESS_UNROLL
        for (int j = 0; j < ROWS; j++) sum[j] = V{};
        for (int64_t i = 0; i < n; i += W) {
            V a = load(factor + i), q = load(read + i);
            for (int64_t j = 0; j < columns; j++) {
                V before = load(states + j * n + i), after = before * a;
                store(states + j * n + i, after);
                sum[j] += (reads_before ? before : after) * q;
            }
            store(states + columns * n + i, load(write + i));
        }
        for (int64_t j = 0; j < columns; j++) Y[lo + j + (c - 1 - r) * c] = horizontal_sum(sum[j]);
    }
}

// Y of the tokens lo..hi-1 by halves: the right half's rows against the left half's columns is one product through the
// state between them. 2 n m^2 flops a product of two halves of m tokens. `left` and `right` hold n * c numbers each,
// `states` n * ROWS.
inline void local_operator(const BlockTokens &tokens, bool reads_before, int64_t lo, int64_t hi, double *Y,
                           double *left, double *right, double *states) {
    const int64_t n = tokens.n, c = tokens.c;
    if (hi - lo <= ROWS) {
        local_leaf(tokens, reads_before, lo, hi, Y, states);
        return;
    }
    const int64_t middle = lo + padded((hi - lo) / 2), rows = hi - middle, columns = middle - lo;
    local_operator(tokens, reads_before, lo, middle, Y, left, right, states);
    local_operator(tokens, reads_before, middle, hi, Y, left, right, states);
    for (int64_t i = 0; i < n; i += W) {
        V carried = all(1.0);
        for (int64_t j = middle - 1; j >= lo; j--) {
            store(right + (j - lo) * n + i, load(tokens.write + j * n + i) * carried);
            carried *= load(tokens.factor + j * n + i);
        }
        carried = all(1.0);
        for (int64_t r = middle; r < hi; r++) {
            V after = carried * load(tokens.factor + r * n + i);
            V seen = load(tokens.read + r * n + i) * (reads_before ? carried : after);
            store(left + (hi - 1 - r) * n + i, seen);
            carried = after;
        }
    }
    // columns of the left half (rows of the product's A) by reversed rows
    const int64_t stride = padded_stride(columns);
    double *transposed = states;
    transpose(n, columns, right, n, transposed, stride);
    multiply<Right::Plain, Update::Set>(columns, rows, transposed, stride, left, n, Y + lo + (c - hi) * c, c,
                                        [n](int64_t, int64_t, int64_t, int64_t) { return Range{0, n}; });
}

// X, Z and Phi of diagonal transitions: running products. 5 n c flops.
inline void diagonal_parts(const BlockTokens &tokens, bool reads_before, double *X, double *Z, double *Phi) {
    const int64_t n = tokens.n, c = tokens.c;
    for (int64_t i = 0; i < n; i += W) {
        V carried = all(1.0);
        for (int64_t r = 0; r < c; r++) {
            V after = carried * load(tokens.factor + r * n + i);
            store(X + r * n + i, load(tokens.read + r * n + i) * (reads_before ? carried : after));
            carried = after;
        }
        store(Phi + i, carried);
        carried = all(1.0);
        for (int64_t r = c - 1; r >= 0; r--) {
            store(Z + r * n + i, load(tokens.write + r * n + i) * carried);
            carried *= load(tokens.factor + r * n + i);
        }
    }
}

// X, Y, Z and Phi of dense transitions: rows of `states` (transposed: [n + written tokens] rows, n columns,
// column-major) are the states had the block begun with each unit vector, or had one token been written.
// 2 n^2 (n + c / 2) flops a token.
struct DenseStates {
    int64_t stride;
    double *now, *next, *transition, *seen;

    DenseStates(Arena &arena, int64_t n, int64_t c)
        : stride(padded_stride(n + c)), now(arena.take<double>(stride * n)), next(arena.take<double>(stride * n)),
          transition(arena.take<double>(n * n)), seen(arena.take<double>(stride)) {}
};

// Of a contiguous matrix of `count` numbers.
inline double frobenius_norm(const double *A, int64_t count) {
    V sum = V{};
    int64_t i = 0;
    for (; i + W <= count; i += W) sum += load(A + i) * load(A + i);
    double rest = horizontal_sum(sum);
    for (; i < count; i++) rest += A[i] * A[i];
    return std::sqrt(rest);
}

// Returns the largest Frobenius norm of the transitions.
inline double dense_parts(const BlockTokens &tokens, bool reads_before, const double *transition, int64_t stride,
                          bool columns, int64_t states, int64_t present, DenseStates &work, double *X, double *Y,
                          double *Z, double *Phi) {
    double largest = 0;
    const int64_t n = tokens.n, c = tokens.c, ld = work.stride;
    fill(work.now, 0, ld * n);
    for (int64_t i = 0; i < n; i++) work.now[i + i * ld] = 1;
    for (int64_t t = 0; t < c; t++) {
        const int64_t rows = padded(n + t);
        auto step = [&] {
            // states^T A^T; a zero token's transition is the identity, as it is in padded coordinates
            if (t >= present) return;
            const double *A = transition + t * stride;
            const double norm = t == 0 || stride != 0 ? frobenius_norm(A, states * states) : largest;
            largest = max(largest, norm); // NaN once any norm is
            if (states != n) {
                for (int64_t i = 0; i < n; i++) fill(work.transition + i * n, 0, n);
                for (int64_t i = 0; i < n; i++) {
                    if (i >= states) work.transition[i + i * n] = 1;
                    else copy_scaled(A + i * states, states, 1.0, work.transition + i * n, n);
                }
                A = work.transition;
            }
            auto all_states = [n](int64_t, int64_t, int64_t, int64_t) { return Range{0, n}; };
            if (columns) {
                multiply<Right::Transposed, Update::Set>(rows, n, work.now, ld, A, n, work.next, ld, all_states);
            } else {
                multiply<Right::Plain, Update::Set>(rows, n, work.now, ld, A, n, work.next, ld, all_states);
            }
            double *other = work.now;
            work.now = work.next;
            work.next = other;
        };
        auto look = [&] {
            const double *read = tokens.read + t * n;
            fill(work.seen, 0, rows);
            for (int64_t k = 0; k < n; k++) {
                V q = all(read[k]);
                for (int64_t i = 0; i < rows; i += W) {
                    store(work.seen + i, load(work.seen + i) + load(work.now + i + k * ld) * q);
                }
            }
            for (int64_t i = 0; i < n; i++) X[i + t * n] = work.seen[i];
            for (int64_t j = 0; j < t; j++) Y[j + (c - 1 - t) * c] = work.seen[n + j];
        };
        if (reads_before) look();
        step();
        if (!reads_before) look();
        // the token's own write becomes one more row; rows beyond it are zero up to the padding
        for (int64_t k = 0; k < n; k++) {
            double *column = work.now + k * ld;
            column[n + t] = tokens.write[k + t * n];
            for (int64_t i = n + t + 1; i < padded(n + t + 1); i++) column[i] = 0;
        }
    }
    for (int64_t k = 0; k < n; k++) {
        for (int64_t i = 0; i < n; i++) Phi[k + i * n] = work.now[i + k * ld];
        for (int64_t j = 0; j < c; j++) Z[k + j * n] = work.now[n + j + k * ld];
    }
    return largest;
}

// What a thread needs to make the parts of one block.
struct PartsWork {
    BlockTokens tokens;
    double *left, *right, *states;
    DenseStates dense;

    PartsWork(Arena &arena, int64_t n, int64_t c, bool is_dense)
        : tokens(arena, n, c), left(arena.take<double>(n * c)), right(arena.take<double>(n * c)),
          states(arena.take<double>(n * padded_stride(c > ROWS ? c : ROWS))),
          dense(arena, is_dense ? n : 0, is_dense ? c : 0) {}
};

// X, Y, Z, Phi of one block.
inline void block_parts(const ess_recurrence_parts_job &job, int64_t head, int64_t block, PartsWork &work) {
    const ess_recurrence &parts = *job.parts;
    const ess_tokens &tokens = *job.tokens;
    const int64_t n = parts.n, c = parts.c, number = head * parts.blocks + block;
    double *X = parts.X + number * n * c, *Z = parts.Z + number * n * c, *Y = parts.Y + number * c * c;
    double *Phi = parts.Phi + number * phi_size(parts);
    read_tokens(tokens, head, block, !parts.dense, work.tokens);
    fill(Y, 0, c * c);
    if (parts.dense) {
        const int64_t states = tokens.states, start = block * c, present = tokens.length - start;
        const double norm = dense_parts(work.tokens, tokens.reads_before,
                                        job.transition[head] + start * job.transition_stride, job.transition_stride,
                                        parts.dense == ESS_COLUMN_MAJOR, states, present, work.dense, X, Y, Z, Phi);
        if (parts.norms) parts.norms[number] = norm;
    } else {
        local_operator(work.tokens, tokens.reads_before, 0, c, Y, work.left, work.right, work.states);
        diagonal_parts(work.tokens, tokens.reads_before, X, Z, Phi);
    }
}

} // namespace
} // namespace ess::ESS_LEVEL::recurrence
