// The leaf of the staircase where squares must not be taken: positive eigenvalues of every position's own matrix,
// positions side by side in vector lanes.
//
// A node holds [[R, K^T], [K, C]] on its c rows (reversed) and c columns, as in leaves/leaf.h. Position s is the
// principal submatrix of the rows s..c-1 and the columns 0..s-1: c x c, ordered by token, for every s. It is brought to
// tridiagonal form by Householder reflections, whose errors are a few 2^-52 of its norm whatever its pivots would have
// been, and a Sturm sequence counts.

#pragma once

#include "dense/products.h"

namespace ess::ESS_LEVEL::leaves {
using namespace dense;
namespace {

// W positions of one node.
struct InertiaLeaf {
    int64_t c;
    V *S;                  // lower triangle, a column after the other: half of it stays in the first cache
    V *diagonal, *squares; // of the tridiagonal form; squares[k] stands between k and k + 1
    V *v, *w, *next, *y;   // the last reflection, which S lacks yet, and the coming one

    InertiaLeaf(Arena &arena, int64_t c)
        : c(c), S(arena.take<V>(c * (c + 1) / 2)), diagonal(arena.take<V>(c)), squares(arena.take<V>(c)),
          v(arena.take<V>(c)), w(arena.take<V>(c)), next(arena.take<V>(c)), y(arena.take<V>(c)) {}

    // Numbers of positive eigenvalues at the positions first..first+W-1, the largest number that errors are in
    // proportion to (`growth` before the leaf, afterwards at least the Frobenius norm), and whether an eigenvalue is as
    // good as zero: then the count means nothing. About 4 c^3 / 3 flops a position.
    void count(const double *node, int64_t ld, int64_t first, V &growth, V &positive, Mask<double> &tie) {
        const V norm = sqrt(gather(node, ld, first));
        growth = max(growth, norm);
        tridiagonalise();
        V low, high;
        const V slack = growth * (TIE * __DBL_EPSILON__);
        sturm(slack, low, positive, high);
        tie = low != high;
    }

  private:
    // an eigenvalue of this many ulp of the growth may have either sign
    static constexpr double TIE = 8;

    // column(u)[t] is entry (t, u), t >= u
    V *column(int64_t u) const { return S + u * c - u * (u + 1) / 2; }

    // Fills S and returns the sum of squares of all entries.
    V gather(const double *node, int64_t ld, int64_t first) {
        const V s = load(LANES) + static_cast<double>(first);
        V total = V{};
        for (int64_t u = 0; u < c; u++) {
            const Mask<double> row_u = s <= all(static_cast<double>(u)); // token u is a row, else a column
            for (int64_t t = u; t < c; t++) {
                const double *reversed = node + (c - 1 - t) * ld; // row t's entries
                const V x = select(
                    row_u, all(reversed[c - 1 - u]),
                    select(s <= all(static_cast<double>(t)), all(reversed[c + u]), all(node[c + t + (c + u) * ld])));
                column(u)[t] = x;
                total += x * x * (t == u ? 1.0 : 2.0);
            }
        }
        return total;
    }

    void tridiagonalise() {
        for (int64_t t = 0; t < c; t++) v[t] = w[t] = V{};
        for (int64_t k = 0; k < c; k++) {
            // column k, as it is after the last reflection
            const V *column = this->column(k);
            V beside = V{};
            const V vk = v[k], wk = w[k];
            diagonal[k] = column[k] - 2.0 * (vk * wk);
            if (k + 1 == c) return;
            for (int64_t t = k + 1; t < c; t++) {
                next[t] = column[t] - v[t] * wk - w[t] * vk;
                if (t > k + 1) beside += next[t] * next[t];
            }
            const V alpha = next[k + 1], norm = sqrt(alpha * alpha + beside);
            squares[k] = alpha * alpha + beside;
            const V beta = select(alpha > V{}, -norm, norm), head = alpha - beta;
            // nothing to reflect: I - 0 v v^T
            const V inverse = select(beside > all(NO_ENTRY), 1.0 / (-beta * head), V{});
            next[k + 1] = head;
            reflect_and_multiply(k + 1);
            V overlap = V{};
            for (int64_t t = k + 1; t < c; t++) overlap += y[t] * next[t];
            overlap *= 0.5 * inverse * inverse;
            for (int64_t t = k + 1; t < c; t++) {
                w[t] = y[t] * inverse - overlap * next[t];
                v[t] = next[t];
            }
        }
    }

    // squares below this are zero, in units of the tolerance
    static constexpr double NO_ENTRY = 1e-100;

    // From row and column `begin` on: S -= v w^T + w v^T and y = S next, in one pass. 8 flops an entry of the triangle.
    void reflect_and_multiply(int64_t begin) {
        for (int64_t t = begin; t < c; t++) y[t] = V{};
        int64_t u = begin;
        for (; u + COLUMNS <= c; u += COLUMNS) columns<COLUMNS>(u);
        for (; u < c; u++) columns<1>(u);
    }

    // columns that are worked on together: what belongs to a row is then loaded once
    static constexpr int COLUMNS = 3;

    template <int COUNT> ESS_INLINE void columns(int64_t u) {
        V vu[COUNT], wu[COUNT], x[COUNT], sum[COUNT];
        ESS_UNROLL
        for (int q = 0; q < COUNT; q++) {
            vu[q] = v[u + q];
            wu[q] = w[u + q];
            x[q] = next[u + q];
            sum[q] = V{};
        }
        V *first[COUNT];
        ESS_UNROLL
        for (int q = 0; q < COUNT; q++) first[q] = column(u + q);
        auto row = [&](int64_t t, int count) {
            const V vt = v[t], wt = w[t], xt = next[t];
            V yt = y[t];
            ESS_UNROLL
            for (int q = 0; q < count; q++) {
                V *const place = first[q] + t;
                const V entry = *place - vt * wu[q] - wt * vu[q];
                *place = entry;
                yt += entry * x[q];
                if (t != u + q) sum[q] += entry * xt;
            }
            y[t] = yt;
        };
        for (int q = 0; q < COUNT; q++) row(u + q, q + 1);
        for (int64_t t = u + COUNT; t < c; t++) row(t, COUNT);
        ESS_UNROLL
        for (int q = 0; q < COUNT; q++) y[u + q] += sum[q];
    }

    // Eigenvalues above -slack, 0 and slack: positive pivots of T - x, exact for entries changed by a few ulp.
    void sturm(V slack, V &low, V &middle, V &high) const {
        constexpr double LEAST = 1e-250;
        const V shift[3] = {-slack, V{}, slack};
        V pivot[3], above[3];
        for (int q = 0; q < 3; q++) above[q] = V{};
        for (int64_t k = 0; k < c; k++) {
            ESS_UNROLL
            for (int q = 0; q < 3; q++) {
                V p = diagonal[k] - shift[q];
                if (k > 0) p -= squares[k - 1] / pivot[q];
                pivot[q] = select(abs(p) < all(LEAST), all(-LEAST), p);
                above[q] += select(pivot[q] > V{}, all(1.0), V{});
            }
        }
        low = above[0];
        middle = above[1];
        high = above[2];
    }
};

} // namespace
} // namespace ess::ESS_LEVEL::leaves
