// Room leaves/: from the last node of an elimination to counts, log-determinants, entropies, and what can be believed
// of them. It may include dense/, base/ and include/.
//
// The leaf of the staircase: a node of c positions, W of them side by side, from its matrix to all its positions.
// Counts are in leaves/counts.h, log-determinants in leaves/logdet.h.
//
// A node holds [[R, K^T], [K, C]] on its own c rows and c columns, in units of the shift, after everything that all its
// positions share has been eliminated. Position s is the principal submatrix of the rows s..c-1 and the columns 0..s-1.
// Rows are kept in reverse order, so that the row sets of all positions are nested prefixes: one LDL^T of R, with K's
// columns carried along, serves them all. The columns of position s see
//     M_s = C - sum_{r >= s} w_r w_r^T / d_r,   W = L^-1 K,
// whose leading s x s minor decides. From the last position down each adds one rank-one term, so the LDL^T of C is
// updated instead of repeated: CHAIN positions at a time in one pass over C, each element loaded once for all of them.
//
// Element (i, j) of all W nodes is one vector. R[j c + i], i >= j, rows reversed; K[r c + j]: column j of reversed row
// r, read for j + r < c - 1 only; C[j c + i], i >= j. All three are overwritten. About 1.2 c^3 flops a node: c^3 / 3
// for R, c^3 / 6 for K, c^3 / 3 for C, and 4 c^3 / 6 / 2 for the updates.
//
// Growth says how far the count of an elimination can be trusted. LDL^T is exact for a matrix whose entry (i, k)
// differs from the given one by a few roundings of sum_q |l_iq d_q l_kq|, and no such sum exceeds the larger of the
// diagonal's two, G_i = sum_q |d_q| l_iq^2. Two numbers stand for G, both in units of the shift:
//
//   - the sum itself, where hundreds of pivots change an entry (dense/factor.h, lanes/counts.h): it is in a register;
//   - the largest of its terms, where at most c <= 64 pivots do (this room): a maximum is cheaper in a loop that is
//     bound by its loads. The sum is at most c times as large, and the roundings of c terms add up to c times one only
//     if all of them have the same sign.
//
// What elimination brings along enters the leaf as its growth before, so a leaf never forgets what a boundary has lost.

#pragma once

#include "dense/factor.h"

namespace ess::ESS_LEVEL::leaves {
using namespace dense;
namespace {

// positions whose updates are chained in one pass
constexpr int CHAIN = 4;

// LDL^T of R: its columns then hold L D, d the pivots. Columns of K are carried along: K[r c + j] becomes w. growth[j]
// is the largest update of a diagonal entry.
inline void factor_rows(int c, V *R, V *K, V *d, V *growth) {
    for (int j = 0; j < c; j++) growth[j] = V{};
    for (int k = 0; k < c; k++) {
        const V *Rk = R + k * c, *Kk = K + k * c;
        V pivot = not_zero(Rk[k]), inverse = 1.0 / pivot;
        d[k] = pivot;
        for (int j = k + 1; j < c; j++) {
            V l = Rk[j] * inverse, *Rj = R + j * c, *Kj = K + j * c;
            growth[j] = max(growth[j], abs(l * Rk[j]));
            for (int i = j; i < c; i++) Rj[i] -= Rk[i] * l;
            for (int i = 0; i < c - 1 - j; i++) Kj[i] -= Kk[i] * l;
        }
    }
}

// LDL^T of the leading `size` columns of C: unit lower L in place, the largest magnitude of each of its columns, and
// the pivots in d. Returns the largest update of a diagonal entry.
inline V factor_columns(int c, int size, V *C, V *d, V *largest) {
    V growth = V{};
    for (int k = 0; k < size; k++) {
        V *Ck = C + k * c, pivot = not_zero(Ck[k]), inverse = 1.0 / pivot;
        d[k] = pivot;
        for (int j = k + 1; j < size; j++) {
            V l = Ck[j] * inverse, *Cj = C + j * c;
            growth = max(growth, abs(l * Ck[j]));
            for (int i = j; i < size; i++) Cj[i] -= Ck[i] * l;
        }
        largest[k] = V{};
        for (int i = k + 1; i < size; i++) {
            Ck[i] *= inverse;
            largest[k] = larger_magnitude(largest[k], Ck[i]);
        }
    }
    return growth;
}

// What a first pivot means for the growth whose own updates are at most `largest`. However large it is, errors in its
// row and column are in proportion to what the other rows grow to, unless it is what large numbers have left of each
// other: divide its row and column by its root, which changes no inertia, and none of their entries exceeds the roots
// of the others' diagonals. A sink, one column far larger than the others, costs no certainty where it comes first.
ESS_INLINE V growth_of_first(V pivot, V largest) {
    return select(2.0 * abs(pivot) >= largest, min(largest, all(4.0)), largest);
}

// The rank-one terms of CHAIN positions on their way through the columns of C: M + alpha w w^T, column by column.
struct Chain {
    V alpha[CHAIN]; // the factor that is left of each term
    V p[CHAIN];     // its entry at the column in work
    V t[CHAIN];     // alpha p
    V beta[CHAIN];  // what L gains per entry of w

    // Column j: its pivot after each term goes to `after`.
    ESS_INLINE void pivots(V before, const V *w, int c, int j, V *after, bool guard) {
        ESS_UNROLL
        for (int u = 0; u < CHAIN; u++) {
            V entry = w[u * c + j], factor = alpha[u] * entry, d = before + factor * entry;
            if (guard) d = not_zero(d);
            V inverse = 1.0 / d;
            p[u] = entry;
            t[u] = factor;
            beta[u] = factor * inverse;
            alpha[u] = alpha[u] * before * inverse;
            after[u] = before = d;
        }
    }

    // Term u passes one row of the column: l becomes l', and w, the term's entry there, w'.
    ESS_INLINE void pass(int u, V &l, V &w) const {
        w -= p[u] * l;
        l += beta[u] * w;
    }

    // The rest of column j, rows j+1..rows-1, and the largest magnitudes of l and of w after each term. NaN shows at
    // the pivots.
    ESS_INLINE void column(V *Cj, V *w, int c, int j, int rows, V (&largest_l)[CHAIN], V (&largest_w)[CHAIN]) const {
        ESS_UNROLL
        for (int u = 0; u < CHAIN; u++) largest_l[u] = largest_w[u] = V{};
        for (int i = j + 1; i < rows; i++) {
            V l = Cj[i];
            ESS_UNROLL
            for (int u = 0; u < CHAIN; u++) {
                V x = w[u * c + i];
                pass(u, l, x);
                w[u * c + i] = x;
                largest_w[u] = larger_magnitude(largest_w[u], x);
                largest_l[u] = larger_magnitude(largest_l[u], l);
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

} // namespace
} // namespace ess::ESS_LEVEL::leaves
