// Parts of a block with diagonal transitions: running products of their factors.

#pragma once

#include "dense/products.h"
#include "recurrence/tokens.h"

namespace ess::ESS_LEVEL::recurrence {
using namespace dense;
namespace {

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
// state between them. 2 n m^2 flops a product of two halves of m tokens.
struct LocalWork {
    double *left, *right, *states; // what rows see of a middle, what columns leave there, and the states of a leaf

    LocalWork(Arena &arena, int64_t n, int64_t c)
        : left(arena.take<double>(n * c)), right(arena.take<double>(n * c)),
          states(arena.take<double>(n * padded_stride(c > ROWS ? c : ROWS))) {}
};

inline void local_operator(const BlockTokens &tokens, bool reads_before, int64_t lo, int64_t hi, double *Y,
                           const LocalWork &work) {
    const int64_t n = tokens.n, c = tokens.c;
    double *left = work.left, *right = work.right, *states = work.states;
    if (hi - lo <= ROWS) {
        local_leaf(tokens, reads_before, lo, hi, Y, states);
        return;
    }
    const int64_t middle = lo + padded((hi - lo) / 2), rows = hi - middle, columns = middle - lo;
    local_operator(tokens, reads_before, lo, middle, Y, work);
    local_operator(tokens, reads_before, middle, hi, Y, work);
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

} // namespace
} // namespace ess::ESS_LEVEL::recurrence
