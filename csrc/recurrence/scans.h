// The two recurrences over blocks: what all earlier writes and all later reads look like from a block's edges.
//
//   forward   F <- tria[Phi F, Z]          P = F F^T, the reachability Gramian, never squared
//   backward  Q <- Phi^T Q Phi + X^T X     the observability Gramian

#pragma once

#include "dense/limits.h"
#include "dense/products.h"
#include "recurrence/sizes.h"

namespace ess::ESS_LEVEL::recurrence {
using namespace dense;
namespace {

// Reflectors of ROWS columns of [F^T; rows], and what they do to the columns behind them, as one block: I - V T V^T
// with V = [diag(head); x], x[t][j] the reflectors' entries at the rows.
struct ReflectorPanel {
    double *x;            // [c][ROWS]
    double head[ROWS];    // entry of reflector j at the triangle's row j
    double T[ROWS][ROWS]; // T[k][j], k <= j
};

// Factorises the panel whose columns are the ROWS states from `states` on: F points to F(first state, first state), and
// `rows` to the rows' entries of these states, n apart. One pass over the rows a column: the update by the last
// reflector and the products of the next one. 6 ROWS^2 c flops.
inline void factor_panel(double *F, int64_t n, const double *rows, int64_t c, ReflectorPanel &panel) {
    constexpr int P = static_cast<int>(ROWS), PARTS = P / W, CHAINS = 4;
    double *x = panel.x;
    V update[PARTS];
    for (int64_t t = 0; t < c; t++) {
        for (int p = 0; p < PARTS; p++) store(x + t * P + p * W, load(rows + t * n + p * W));
    }
    for (int p = 0; p < PARTS; p++) update[p] = V{};
    for (int j = 0; j < P; j++) {
        // CHAINS sums side by side hide the latency of additions
        V sums[CHAINS][PARTS];
        ESS_UNROLL
        for (int q = 0; q < CHAINS; q++) {
            ESS_UNROLL
            for (int p = 0; p < PARTS; p++) sums[q][p] = V{};
        }
        const int last = j > 0 ? j - 1 : 0; // there is no reflector yet: `update` is zero
        for (int64_t t = 0; t < c; t += CHAINS) {
            ESS_UNROLL
            for (int q = 0; q < CHAINS; q++) {
                double *row = x + (t + q) * P;
                const V reflected = all(row[last]);
                ESS_UNROLL
                for (int p = 0; p < PARTS; p++) store(row + p * W, load(row + p * W) - reflected * update[p]);
                const V now = all(row[j]);
                ESS_UNROLL
                for (int p = 0; p < PARTS; p++) sums[q][p] += now * load(row + p * W);
            }
        }
        V sum[PARTS];
        double dots[P];
        ESS_UNROLL
        for (int p = 0; p < PARTS; p++) {
            sum[p] = (sums[0][p] + sums[1][p]) + (sums[2][p] + sums[3][p]);
            store(dots + p * W, sum[p]);
        }
        double *f = F + j * n;
        const double diagonal = f[j], squares = dots[j];
        double head = 0, inverse = 0, beta = diagonal;
        if (squares > NO_COLUMN) {
            const double norm = std::sqrt(diagonal * diagonal + squares);
            beta = diagonal > 0 ? -norm : norm;
            head = diagonal - beta;
            inverse = 1 / (-beta * head);
        }
        // columns behind j in the panel: their share of the reflector
        ESS_UNROLL
        for (int p = 0; p < PARTS; p++) {
            V column = load(f + p * W), share = (column * all(head) + sum[p]) * all(inverse);
            update[p] = from_row(share, p * W, j + 1);
            store(f + p * W, column - update[p] * all(head));
        }
        f[j] = beta;
        panel.head[j] = head;
        // T's column j: -h T (x_k . x_j), and h on the diagonal
        for (int k = 0; k < j; k++) {
            double sum = 0;
            for (int l = k; l < j; l++) sum += panel.T[k][l] * dots[l];
            panel.T[k][j] = -inverse * sum;
        }
        panel.T[j][j] = inverse;
    }
}

// The lower triangular F with F F^T = F F^T + rows^T rows: Householder reflectors on the columns of [F^T; rows], ROWS
// of them at a time. F [n, n] column-major with zeros above the diagonal; rows [c][n], destroyed, c a multiple of ROWS;
// `work` holds tria_work(n, c) numbers. 2 n^2 c flops.
constexpr int64_t tria_work(int64_t n, int64_t c) { return ROWS * (padded_stride(n) + c); }

inline void tria(double *F, int64_t n, double *rows, int64_t c, double *work) {
    constexpr int P = static_cast<int>(ROWS);
    ReflectorPanel panel;
    panel.x = work;
    double *shares = work + ROWS * c;
    const int64_t lds = padded_stride(n);
    for (int64_t j0 = 0; j0 < n; j0 += P) {
        double *f = F + j0 + j0 * n;
        factor_panel(f, n, rows + j0, c, panel);
        const int64_t behind = n - j0 - P;
        if (behind == 0) break;
        f += P;
        // V^T times the columns behind the panel, a column a row: first the rows' part
        multiply<Right::Transposed, Update::Set>(behind, P, rows + j0 + P, n, panel.x, P, shares, lds,
                                                 [c](int64_t, int64_t, int64_t, int64_t) { return Range{0, c}; });
        for (int64_t i = 0; i < behind; i += W) {
            V share[P];
            ESS_UNROLL
            for (int j = 0; j < P; j++)
                share[j] = load(shares + i + j * lds) + load(f + i + j * n) * all(panel.head[j]);
            ESS_UNROLL
            for (int j = P - 1; j >= 0; j--) {
                V sum = share[j] * all(panel.T[j][j]);
                ESS_UNROLL
                for (int k = 0; k < j; k++) sum += share[k] * all(panel.T[k][j]);
                store(shares + i + j * lds, sum);
                store(f + i + j * n, load(f + i + j * n) - sum * all(panel.head[j]));
            }
        }
        multiply<Right::Plain, Update::Subtract>(behind, c, shares, lds, panel.x, P, rows + j0 + P, n,
                                                 [](int64_t, int64_t, int64_t, int64_t) { return Range{0, P}; });
    }
}

// What one direction of one head needs: rows of [(Phi F)^T; Z^T], and products where Phi is a matrix.
struct ScanWork {
    double *rows, *reflectors, *full, *product;

    ScanWork(Arena &arena, int64_t n, int64_t c, bool dense)
        : rows(arena.take<double>((dense ? n + c : c) * n)), reflectors(arena.take<double>(tria_work(n, n + c))),
          full(arena.take<double>(dense ? n * padded_stride(n) : 0)),
          product(arena.take<double>(dense ? n * padded_stride(n) : 0)) {}
};

// F at the left edge of block b + 1 from the one of block b.
inline void reach_step(const ess_recurrence &parts, int64_t number, ScanWork &work) {
    const int64_t n = parts.n, c = parts.c;
    const double *F = parts.F + number * n * n, *Phi = parts.Phi + number * phi_size(parts);
    double *next = parts.F + (number + 1) * n * n;
    int64_t rows = 0;
    if (full_phi(parts)) {
        // (Phi F)^T is no triangle: its rows join those of Z, and F starts from nothing. Column k of Phi F is row k.
        multiply<Right::Plain, Update::Set>(n, n, Phi, n, F, n, work.rows, n,
                                            [n](int64_t, int64_t, int64_t j0, int64_t) { return Range{j0, n}; });
        memset(next, 0, static_cast<size_t>(n * n) * sizeof(double));
        rows = n;
    } else {
        for (int64_t j = 0; j < n; j++) {
            for (int64_t i = 0; i < n; i += W) store(next + i + j * n, load(F + i + j * n) * load(Phi + i));
        }
    }
    memcpy(work.rows + rows * n, parts.Z + number * n * c, static_cast<size_t>(n * c) * sizeof(double));
    tria(next, n, work.rows, rows + c, work.reflectors);
}

// Q at the right edge of block b - 1 from the one of block b. n^2 c flops, and those of products with a matrix Phi.
inline void observe_step(const ess_recurrence &parts, int64_t number, ScanWork &work) {
    const int64_t n = parts.n, c = parts.c;
    const double *Q = parts.Q + number * n * n, *Phi = parts.Phi + number * phi_size(parts);
    const double *X = parts.X + number * n * c;
    double *next = parts.Q + (number - 1) * n * n;
    multiply<Right::Transposed, Update::Set>(n, n, X, n, X, n, next, n, [c](int64_t, int64_t i1, int64_t j0, int64_t) {
        return Range{0, in_lower(i1, j0) ? c : 0};
    });
    if (full_phi(parts)) {
        const int64_t ld = padded_stride(n);
        symmetric_copy(n, Q, n, 1.0, work.full, ld);
        multiply<Right::Plain, Update::Set>(n, n, work.full, ld, Phi, n, work.product, ld,
                                            [n](int64_t, int64_t, int64_t, int64_t) { return Range{0, n}; });
        // Phi^T (Q Phi): the transpose of Phi takes the place of the symmetric matrix
        transpose(n, n, Phi, n, work.full, ld);
        multiply<Right::Plain, Update::Add>(
            n, n, work.full, ld, work.product, ld, next, n,
            [n](int64_t, int64_t i1, int64_t j0, int64_t) { return Range{0, in_lower(i1, j0) ? n : 0}; });
        return;
    }
    for (int64_t j = 0; j < n; j++) {
        V phi = all(Phi[j]);
        for (int64_t i = j / ROWS * ROWS; i < n; i += W) {
            store(next + i + j * n, load(next + i + j * n) + load(Q + i + j * n) * (load(Phi + i) * phi));
        }
    }
}

// `ready()` is called whenever one more block, from the first on, has its F.
template <class Ready> void reach_scan(const ess_recurrence &parts, int64_t head, ScanWork &work, Ready ready) {
    const int64_t n = parts.n, first = head * parts.blocks;
    memset(parts.F + first * n * n, 0, static_cast<size_t>(n * n) * sizeof(double));
    ready();
    for (int64_t b = 0; b + 1 < parts.blocks; b++) {
        reach_step(parts, first + b, work);
        ready();
    }
}

inline void observe_scan(const ess_recurrence &parts, int64_t head, ScanWork &work) {
    const int64_t n = parts.n, first = head * parts.blocks, last = first + parts.blocks - 1;
    memset(parts.Q + last * n * n, 0, static_cast<size_t>(n * n) * sizeof(double));
    for (int64_t b = parts.blocks - 1; b > 0; b--) observe_step(parts, first + b, work);
}

} // namespace
} // namespace ess::ESS_LEVEL::recurrence
