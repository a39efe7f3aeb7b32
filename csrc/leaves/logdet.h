// The leaf of the staircase for log-determinants: all positions of a block, a vector of shifts side by side.
//
// The matrix and the algorithm are those of leaves/leaf.h, with signs turned so that both R and C are the identity and
// something positive: no pivot is below one, nothing needs a guard or a monitor, and four pivots go at a time. Position
// s has
//     log det = sum over the first c - s pivots of R + the log-determinant of the first s columns of
//               M_s = C + sum_{r >= s} w_r w_r^T / d_r,   W = L^-1 K.

#pragma once

#include "dense/shifts.h"
#include "leaves/leaf.h"

namespace ess::ESS_LEVEL::leaves {
using namespace dense;
namespace {

// One tile of PANEL x PANEL: target(i, j) -= sum over q < PANEL of x(i, q) y(j, q). All column-major.
ESS_INLINE void subtract_tile(const V *x, int64_t ldx, const V *y, int64_t ldy, V *target, int64_t ld) {
    ESS_UNROLL
    for (int j0 = 0; j0 < PANEL; j0 += SHIFT_TILE) {
        V sum[SHIFT_TILE][PANEL];
        ESS_UNROLL
        for (int j = 0; j < SHIFT_TILE; j++) {
            ESS_UNROLL
            for (int i = 0; i < PANEL; i++) sum[j][i] = target[i + (j0 + j) * ld];
        }
        ESS_UNROLL
        for (int q = 0; q < PANEL; q++) {
            V xs[PANEL];
            ESS_UNROLL
            for (int i = 0; i < PANEL; i++) {
                xs[i] = x[i + q * ldx];
                keep_in_register(xs[i]);
            }
            ESS_UNROLL
            for (int j = 0; j < SHIFT_TILE; j++) {
                V yj = y[j0 + j + q * ldy];
                keep_in_register(yj);
                ESS_UNROLL
                for (int i = 0; i < PANEL; i++) sum[j][i] -= xs[i] * yj;
            }
        }
        ESS_UNROLL
        for (int j = 0; j < SHIFT_TILE; j++) {
            ESS_UNROLL
            for (int i = 0; i < PANEL; i++) target[i + (j0 + j) * ld] = sum[j][i];
        }
    }
}

// PANEL columns of a factorisation: multipliers l of their corner, pivots and their inverses.
struct PivotPanel {
    V l[PANEL][PANEL], inverse[PANEL];

    // Factors the corner at M, unit lower L times D; pivots to d, NaN where they are not positive.
    ESS_INLINE void factor(V *M, int64_t ld, V *d) {
        V a[PANEL][PANEL];
        ESS_UNROLL
        for (int k = 0; k < PANEL; k++) {
            ESS_UNROLL
            for (int i = k; i < PANEL; i++) a[k][i] = M[i + k * ld];
        }
        ESS_UNROLL
        for (int k = 0; k < PANEL; k++) {
            // it is less than one only by rounding; where that has left nothing of it, there is no answer
            V pivot = max(a[k][k], all(1.0));
            d[k] = select(a[k][k] > V{}, pivot, all(__builtin_nan("")));
            inverse[k] = 1.0 / pivot;
            ESS_UNROLL
            for (int j = k + 1; j < PANEL; j++) {
                l[k][j] = a[k][j] * inverse[k];
                ESS_UNROLL
                for (int i = j; i < PANEL; i++) a[j][i] -= a[k][i] * l[k][j];
            }
        }
        ESS_UNROLL
        for (int k = 0; k < PANEL; k++) {
            ESS_UNROLL
            for (int i = k + 1; i < PANEL; i++) M[i + k * ld] = l[k][i];
        }
    }

    // Rows begin .. end of the same columns of M: they become L D, and with `scaled` that holds L.
    ESS_INLINE void rows(V *M, int64_t ld, int64_t begin, int64_t end, V *scaled) const {
        for (int64_t i = begin; i < end; i++) {
            V a[PANEL];
            ESS_UNROLL
            for (int k = 0; k < PANEL; k++) {
                a[k] = M[i + k * ld];
                ESS_UNROLL
                for (int q = 0; q < k; q++) a[k] -= a[q] * l[q][k];
                M[i + k * ld] = a[k];
                if (scaled) scaled[i + k * ld] = a[k] * inverse[k];
            }
        }
    }
};

// LDL^T of the c x c matrix M (lower triangle), c a multiple of PANEL, pivots to d. K, if there is one, is carried
// along: column r of K with column r of M, its rows j < c - 1 - r. M then holds L, unit lower, K the rows of L D that
// belong to it. `scaled`: PANEL ld vectors. c^3 / 3 flops and c^3 / 3 for K, each a lane.
inline void factor_panels(int64_t c, int64_t ld, V *M, V *K, V *d, V *scaled) {
    for (int64_t k = 0; k < c; k += PANEL) {
        PivotPanel panel;
        const int64_t next = k + PANEL, below = c - next; // rows of K that the following columns need, and rows of M
        panel.factor(M + k * (ld + 1), ld, d + k);
        panel.rows(M + k * ld, ld, next, c, scaled);
        if (K) panel.rows(K + k * ld, ld, 0, c - 1 - k, nullptr);
        for (int64_t j = next; j < c; j += PANEL) {
            for (int64_t i = j; i < c; i += PANEL) {
                subtract_tile(M + i + k * ld, ld, scaled + j, ld, M + i + j * ld, ld);
            }
            if (K) {
                for (int64_t i = 0; i < c - j; i += PANEL) {
                    subtract_tile(K + i + k * ld, ld, scaled + j, ld, K + i + j * ld, ld);
                }
            }
        }
        // what M keeps is L
        for (int q = 0; q < PANEL && below > 0; q++) {
            for (int64_t i = next; i < c; i++) M[i + (k + q) * ld] = scaled[i + q * ld];
        }
    }
}

// CHAIN rank-one terms on their way through two columns of L at a time: M + alpha w w^T, as in leaves/leaf.h.
ESS_INLINE void chain_two_columns(Chain &chain, V *L, V *d, V *w, int ld, int j, int rows, V (&after)[2][CHAIN]) {
    V *first = L + j * ld, *second = first + ld;
    chain.pivots(d[j], w, ld, j, after[0], false);
    const Chain left = chain;
    ESS_UNROLL
    for (int u = 0; u < CHAIN; u++) left.pass(u, first[j + 1], w[u * ld + j + 1]);
    chain.pivots(d[j + 1], w, ld, j + 1, after[1], false);
    for (int i = j + 2; i < rows; i++) {
        V l = first[i], m = second[i];
        ESS_UNROLL
        for (int u = 0; u < CHAIN; u++) {
            V x = w[u * ld + i];
            left.pass(u, l, x);
            chain.pass(u, m, x);
            w[u * ld + i] = x;
        }
        first[i] = l;
        second[i] = m;
    }
    d[j] = after[0][CHAIN - 1];
    d[j + 1] = after[1][CHAIN - 1];
}

// The stride of R, K and C: no power of two, which would put the columns of a tile into few cache sets.
constexpr int64_t leaf_stride(int64_t c) { return c + 4; }
// vectors of work
constexpr int64_t logdet_work(int64_t c) { return 2 * c + CHAIN * leaf_stride(c); }

// Log-determinants at all positions, `base` included. c is a multiple of PANEL; R and C are the identity and something
// positive semidefinite. Columns are leaf_stride(c) apart. R, K and C are overwritten, and all of K's tiles that reach
// into its wanted corner are read. About 1.7 c^3 flops a lane.
inline void leaf_logdet(int c, V *R, V *K, V *C, V *work, V base, V *logdets) {
    static_assert(CHAIN == PANEL, "what is scaled fits where the chain's vectors go");
    const int ld = static_cast<int>(leaf_stride(c));
    V *d = work, *dc = d + c, *w = dc + c;
    factor_panels(c, ld, R, K, d, w);
    factor_panels(c, ld, C, nullptr, dc, w);
    LaneProduct rows;
    for (int last = c - 1; last >= 0; last -= CHAIN) {
        Chain chain;
        LaneProduct product[CHAIN];
        for (int u = 0; u < CHAIN; u++) {
            const int s = last - u, r = c - 1 - s;
            for (int j = 0; j < last; j++) w[u * ld + j] = j < s ? K[r * ld + j] : V{};
            chain.alpha[u] = 1.0 / d[r];
            rows.multiply(d[r]);
            product[u] = rows;
        }
        V after[2][CHAIN];
        int j = 0;
        for (; j + 1 < last; j += 2) {
            chain_two_columns(chain, C, dc, w, ld, j, last, after);
            for (int u = 0; u < CHAIN; u++) {
                if (j < last - u) product[u].multiply(after[0][u]);
                if (j + 1 < last - u) product[u].multiply(after[1][u]);
            }
        }
        // c is a multiple of CHAIN: one column is left, and of the last position only
        chain.pivots(dc[j], w, ld, j, after[0], false);
        product[0].multiply(after[0][0]);
        for (int u = 0; u < CHAIN; u++) {
            logdets[last - u] = base + product[u].logarithm();
        }
    }
}

} // namespace
} // namespace ess::ESS_LEVEL::leaves
