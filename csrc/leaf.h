// The leaf of the staircase: a node of c positions, W of them side by side, from its matrix to all its positions.
//
// A node holds [[R, K^T], [K, C]] on its own c rows and c columns, in units of the shift, after everything that all its
// positions share has been eliminated. Position s is the principal submatrix of the rows s..c-1 and the columns 0..s-1.
// Rows are kept in reverse order, so that the row sets of all positions are nested prefixes: one LDL^T of R, with K's
// columns carried along, serves them all. The columns of position s see
//     M_s = C - sum_{r >= s} w_r w_r^T / d_r,   W = L^-1 K,
// whose leading s x s minor decides. From the last position down each adds one rank-one term, so the LDL^T of C is updated
// instead of repeated: CHAIN positions at a time in one pass over C, each element loaded once for all of them.
//
// Element (i, j) of all W nodes is one vector. R[j c + i], i >= j, rows reversed; K[r c + j]: column j of reversed row r,
// read for j + r < c - 1 only; C[j c + i], i >= j. All three are overwritten. About 1.2 c^3 flops a node: c^3 / 3 for R,
// c^3 / 6 for K, c^3 / 3 for C, and 4 c^3 / 6 / 2 for the updates.

#pragma once

#include "factor.h"
#include "update_errors.h"

namespace ess {
namespace ESS_LEVEL {
namespace {

// positions whose updates are chained in one pass
constexpr int CHAIN = 4;
// vectors of work that a leaf of c positions needs
constexpr int64_t leaf_work(int64_t c) { return (4 + CHAIN) * c; }
// a pivot below this, in units of the shift, makes it worth looking at its whole row
constexpr double SMALL_PIVOT = 1e-2;

ESS_INLINE V not_zero(V pivot) { return select(pivot == V{}, all(ZERO_PIVOT), pivot); }

// LDL^T of R: its columns then hold L D, d the pivots. Columns of K are carried along: K[r c + j] becomes w. With GROWTH,
// growth[j] is the largest update of a diagonal entry.
template <bool GROWTH> ESS_INLINE void factor_rows(int c, V *R, V *K, V *d, V *growth) {
    if (GROWTH) {
        for (int j = 0; j < c; j++) growth[j] = V{};
    }
    for (int k = 0; k < c; k++) {
        const V *Rk = R + k * c, *Kk = K + k * c;
        V pivot = GROWTH ? not_zero(Rk[k]) : Rk[k], inverse = 1.0 / pivot;
        d[k] = pivot;
        for (int j = k + 1; j < c; j++) {
            V l = Rk[j] * inverse, *Rj = R + j * c, *Kj = K + j * c;
            if (GROWTH) growth[j] = max(growth[j], abs(l * Rk[j]));
            for (int i = j; i < c; i++) Rj[i] -= Rk[i] * l;
            for (int i = 0; i < c - 1 - j; i++) Kj[i] -= Kk[i] * l;
        }
    }
}

// LDL^T of the leading c - 1 columns of C: unit lower L in place, pivots in d.
template <bool GROWTH> ESS_INLINE void factor_columns(int c, V *C, V *d, V *growth) {
    if (GROWTH) {
        for (int j = 0; j < c; j++) growth[j] = V{};
    }
    for (int k = 0; k < c - 1; k++) {
        V *Ck = C + k * c, pivot = GROWTH ? not_zero(Ck[k]) : Ck[k], inverse = 1.0 / pivot;
        d[k] = pivot;
        for (int j = k + 1; j < c - 1; j++) {
            V l = Ck[j] * inverse, *Cj = C + j * c;
            if (GROWTH) growth[j] = max(growth[j], abs(l * Ck[j]));
            for (int i = j; i < c - 1; i++) Cj[i] -= Ck[i] * l;
        }
        for (int i = k + 1; i < c - 1; i++) Ck[i] *= inverse;
    }
}

// The rank-one terms of CHAIN positions on their way through the columns of C: M + alpha w w^T, column by column.
struct Chain {
    V alpha[CHAIN]; // the factor that is left of each term
    V p[CHAIN];     // its entry at the column in work
    V beta[CHAIN];  // what L gains per entry of w

    // Column j: its pivot after each term goes to `after`.
    ESS_INLINE void pivots(V before, const V *w, int c, int j, V *after, bool guard) {
        ESS_UNROLL
        for (int u = 0; u < CHAIN; u++) {
            V entry = w[u * c + j], t = alpha[u] * entry, d = before + t * entry;
            if (guard) d = not_zero(d);
            V inverse = 1.0 / d;
            p[u] = entry;
            beta[u] = t * inverse;
            alpha[u] = alpha[u] * before * inverse;
            after[u] = before = d;
        }
    }

    // The rest of column j, rows j+1..rows-1.
    ESS_INLINE void column(V *Cj, V *w, int c, int j, int rows) const {
        for (int i = j + 1; i < rows; i++) {
            V l = Cj[i];
            ESS_UNROLL
            for (int u = 0; u < CHAIN; u++) {
                V x = w[u * c + i] - p[u] * l;
                w[u * c + i] = x;
                l += beta[u] * x;
            }
            Cj[i] = l;
        }
    }

    // The largest entry of column j after term u, in L's units, rows j+1..rows-1; changes nothing.
    V largest(const V *Cj, const V *w, int c, int j, int rows, int u) const {
        V most = V{};
        for (int i = j + 1; i < rows; i++) {
            V l = Cj[i];
            for (int v = 0; v <= u; v++) l += beta[v] * (w[v * c + i] - p[v] * l);
            most = max(most, abs(l));
        }
        return most;
    }
};

// The vectors w of positions last, last - 1, ... (a position reads the columns before it only), and their factors.
ESS_INLINE void start_chain(Chain &chain, int c, int last, double sign, const V *K, const V *d, V *w) {
    for (int u = 0; u < CHAIN; u++) {
        int s = last - u, r = c - 1 - s;
        chain.alpha[u] = s >= 0 ? sign / d[r] : V{};
        for (int j = 0; j < last; j++) w[u * c + j] = j < s ? K[r * c + j] : V{};
    }
}

// Rows of R that are negligible as a whole for position s: the smallest of their largest entries.
inline V least_row(int c, int s, const V *R, const V *K, const V *d) {
    V least = all(1.0);
    for (int r = 0; r <= c - 1 - s; r++) {
        V most = abs(d[r]);
        auto small = most < all(SMALL_PIVOT); // of this lane: what a lane answers depends on no other
        if (!any(small)) continue;
        for (int i = r + 1; i <= c - 1 - s; i++) most = max(most, abs(R[r * c + i]));
        for (int j = 0; j < s; j++) most = max(most, abs(K[r * c + j]));
        least = select(small, min(least, most), least);
    }
    return least;
}

// Counts of positive pivots at all positions; on entry R = -I + ..., C = -I + ....
//
// `growth` and `least` are what the eliminations before brought; per position come out `counts` (without what was counted
// before), `growths`, the largest update of a diagonal entry that the position's pivots depend on, and `leasts`, the
// smallest of the rows' largest entries (1 where no pivot is small): a row that is negligible as a whole is a tie.
// `work` has leaf_work(c) vectors.
inline void leaf_counts(int c, V *R, V *K, V *C, V *work, V growth, V least, V *counts, V *growths, V *leasts) {
    V *d = work, *dc = d + c, *row_growth = dc + c, *column_growth = row_growth + c, *w = column_growth + c;
    factor_rows<true>(c, R, K, d, row_growth);
    factor_columns<true>(c, C, dc, column_growth);
    V positive = V{};
    bool small = false;
    const V one = all(1.0), limit = all(SMALL_PIVOT);
    V of_columns = V{};
    for (int j = 0; j < c - 1; j++) of_columns = max(of_columns, column_growth[j]);
    UpdateErrors errors(of_columns);
    for (int last = c - 1; last >= 0; last -= CHAIN) {
        Chain chain;
        start_chain(chain, c, last, -1.0, K, d, w);
        V count[CHAIN], most[CHAIN], lowest[CHAIN], own[CHAIN] = {};
        for (int u = 0; u < CHAIN; u++) {
            int s = last - u, r = c - 1 - s;
            if (s >= 0) {
                positive += select(d[r] > V{}, one, V{});
                // a pivot that is not a number shows, though nothing depends on it
                growth = max(growth, row_growth[r] + d[r] * 0.0);
                small |= any(abs(d[r]) < limit);
            }
            count[u] = positive;
            most[u] = growth;
            lowest[u] = small && s >= 0 ? min(least, least_row(c, s, R, K, d)) : least;
        }
        for (int j = 0; j < last; j++) {
            V after[CHAIN], before = dc[j];
            chain.pivots(before, w, c, j, after, true);
            ESS_UNROLL
            for (int u = 0; u < CHAIN; u++) {
                const V update = abs(after[u] - before);
                before = after[u];
                if (j < last - u) {
                    count[u] += select(after[u] > V{}, one, V{});
                    own[u] = max(own[u], max(update, abs(after[u])));
                    auto near = abs(after[u]) < limit;
                    if (any(near)) {
                        V row = chain.largest(C + j * c, w, c, j, last - u, u);
                        lowest[u] = select(near, min(lowest[u], max(one, row) * abs(after[u])), lowest[u]);
                    }
                }
            }
            dc[j] = before;
            chain.column(C + j * c, w, c, j, last);
        }
        for (int u = 0; u < CHAIN && u <= last; u++) {
            errors.include(own[u]);
            counts[last - u] = count[u];
            growths[last - u] = max(most[u], errors.error);
            leasts[last - u] = lowest[u];
        }
    }
}

} // namespace
} // namespace ESS_LEVEL
} // namespace ess
