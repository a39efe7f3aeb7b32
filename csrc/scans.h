// The two recurrences over blocks: what all earlier writes and all later reads look like from a block's edges.
//
//   forward   F <- tria[Phi F, Z]          P = F F^T, the reachability Gramian, never squared
//   backward  Q <- Phi^T Q Phi + X^T X     the observability Gramian

#pragma once

#include "products.h"
#include "recurrence_jobs.h"

namespace ess {
namespace ESS_LEVEL {
namespace {

// squares below this are zero: a reflector of such a column would be noise
constexpr double NO_COLUMN = 1e-280;
// vectors of the state that one pass keeps in registers
constexpr int STATE_CHUNK = ESS_VECTOR_BYTES == 64 ? 8 : 4;

// One pass over the rows t < c of `rows` (n numbers each): the pending update of the step before, then this step's sums
//   row_t -= before_t * update,   sum += now_t * row_t.
template <int VECTORS>
ESS_INLINE void reflect_pass(double *rows, int64_t n, int64_t c, const double *before, const double *now,
                             const double *update, double *sum) {
    V pending[VECTORS], total[VECTORS];
    ESS_UNROLL
    for (int r = 0; r < VECTORS; r++) {
        pending[r] = load(update + r * W);
        total[r] = load(sum + r * W);
    }
    for (int64_t t = 0; t < c; t++) {
        double *row = rows + t * n;
        V x = all(before[t]), y = all(now[t]);
        ESS_UNROLL
        for (int r = 0; r < VECTORS; r++) {
            V q = load(row + r * W) - x * pending[r];
            store(row + r * W, q);
            total[r] += y * q;
        }
    }
    ESS_UNROLL
    for (int r = 0; r < VECTORS; r++) store(sum + r * W, total[r]);
}

template <int VECTORS = STATE_CHUNK>
ESS_INLINE void reflect_pass_of(int64_t vectors, double *rows, int64_t n, int64_t c, const double *before,
                                const double *now, const double *update, double *sum) {
    if constexpr (VECTORS > 0) {
        if (vectors == VECTORS) reflect_pass<VECTORS>(rows, n, c, before, now, update, sum);
        else reflect_pass_of<VECTORS - 1>(vectors, rows, n, c, before, now, update, sum);
    }
}

// The lower triangular F with F F^T = F F^T + rows^T rows: Householder reflectors on the columns of [F^T; rows], one pass
// over the rows per step, in which the last reflector is applied together with the next one's products. F [n, n]
// column-major with zeros above the diagonal; rows [c][n], destroyed; `work` holds 2 (n + c) numbers. 2 n^2 c flops.
inline void tria(double *F, int64_t n, double *rows, int64_t c, double *work) {
    double *before = work, *now = before + c, *update = now + c, *sum = update + n;
    for (int64_t t = 0; t < c; t++) before[t] = 0;
    for (int64_t i = 0; i < n; i++) update[i] = 0;
    for (int64_t j = 0; j < n; j++) {
        double *f = F + j * n;
        double squares = 0;
        for (int64_t t = 0; t < c; t++) {
            double x = rows[t * n + j] - before[t] * update[j];
            now[t] = x;
            squares += x * x;
        }
        double diagonal = f[j], head = 0, inverse = 0, beta = diagonal;
        if (squares > NO_COLUMN) {
            double norm = std::sqrt(diagonal * diagonal + squares);
            beta = diagonal > 0 ? -norm : norm;
            head = diagonal - beta;
            inverse = 1 / (-beta * head);
        } else {
            for (int64_t t = 0; t < c; t++) now[t] = 0;
        }
        const int64_t first = j / W * W;
        for (int64_t i = first; i < n; i += W) store(sum + i, load(f + i) * all(head));
        for (int64_t i = first; i < n;) {
            int64_t vectors = (n - i) / W < STATE_CHUNK ? (n - i) / W : STATE_CHUNK;
            reflect_pass_of(vectors, rows + i, n, c, before, now, update + i, sum + i);
            i += vectors * W;
        }
        for (int64_t i = first; i < n; i += W) {
            V x = load(sum + i) * all(inverse);
            store(sum + i, x);
            store(f + i, load(f + i) - x * all(head));
        }
        f[j] = beta;
        for (int64_t i = first; i < j; i++) f[i] = 0;
        double *other = before;
        before = now;
        now = other;
        other = update;
        update = sum;
        sum = other;
    }
}

// What one direction of one head needs: rows of [(Phi F)^T; Z^T], and for dense transitions products.
struct ScanWork {
    double *rows, *reflectors, *full, *product;

    ScanWork(Arena &arena, int64_t n, int64_t c, bool dense)
        : rows(arena.take<double>((dense ? n + c : c) * n)), reflectors(arena.take<double>(2 * (2 * n + c))),
          full(arena.take<double>(dense ? n * padded_stride(n) : 0)),
          product(arena.take<double>(dense ? n * padded_stride(n) : 0)) {}
};

// F at the left edge of block b + 1 from the one of block b.
inline void reach_step(const RecurrenceParts &parts, int64_t number, ScanWork &work) {
    const int64_t n = parts.n, c = parts.c;
    const double *F = parts.F + number * n * n, *Phi = parts.Phi + number * parts.phi_size();
    double *next = parts.F + (number + 1) * n * n;
    int64_t rows = 0;
    if (parts.dense) {
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

// The whole symmetric matrix from its lower triangle of ROWS x ROWS tiles.
inline void mirror(const double *lower, int64_t stride, int64_t n, double *full, int64_t full_stride) {
    for (int64_t j0 = 0; j0 < n; j0 += ROWS) {
        for (int64_t j = j0; j < j0 + ROWS; j++) {
            for (int64_t i = j0; i < n; i += W) store(full + i + j * full_stride, load(lower + i + j * stride));
        }
        if (j0 + ROWS < n) {
            transpose(n - j0 - ROWS, ROWS, lower + j0 + ROWS + j0 * stride, stride,
                      full + j0 + (j0 + ROWS) * full_stride, full_stride);
        }
        // the diagonal tile's own upper half
        for (int64_t j = j0; j < j0 + ROWS; j++) {
            for (int64_t i = j0; i < j; i++) full[i + j * full_stride] = lower[j + i * stride];
        }
    }
}

// Q at the right edge of block b - 1, where X^T X of block b lies already, from the one of block b.
inline void observe_step(const RecurrenceParts &parts, int64_t number, ScanWork &work) {
    const int64_t n = parts.n;
    const double *Q = parts.Q + number * n * n, *Phi = parts.Phi + number * parts.phi_size();
    double *next = parts.Q + (number - 1) * n * n;
    if (parts.dense) {
        const int64_t ld = padded_stride(n);
        mirror(Q, n, n, work.full, ld);
        multiply<Right::Plain, Update::Set>(n, n, work.full, ld, Phi, n, work.product, ld,
                                            [n](int64_t, int64_t, int64_t, int64_t) { return Range{0, n}; });
        // Phi^T (Q Phi): the transpose of Phi takes the place of the symmetric matrix
        transpose(n, n, Phi, n, work.full, ld);
        multiply<Right::Plain, Update::Add>(n, n, work.full, ld, work.product, ld, next, n,
                                            [n](int64_t, int64_t i1, int64_t j0, int64_t) {
                                                return Range{0, in_lower(i1, j0) ? n : 0};
                                            });
        return;
    }
    for (int64_t j = 0; j < n; j++) {
        V phi = all(Phi[j]);
        for (int64_t i = j / ROWS * ROWS; i < n; i += W) {
            store(next + i + j * n, load(next + i + j * n) + load(Q + i + j * n) * (load(Phi + i) * phi));
        }
    }
}

inline void reach_scan(const RecurrenceParts &parts, int64_t head, ScanWork &work) {
    const int64_t n = parts.n, first = head * parts.blocks;
    memset(parts.F + first * n * n, 0, static_cast<size_t>(n * n) * sizeof(double));
    for (int64_t b = 0; b + 1 < parts.blocks; b++) reach_step(parts, first + b, work);
}

inline void observe_scan(const RecurrenceParts &parts, int64_t head, ScanWork &work) {
    const int64_t n = parts.n, first = head * parts.blocks, last = first + parts.blocks - 1;
    memset(parts.Q + last * n * n, 0, static_cast<size_t>(n * n) * sizeof(double));
    for (int64_t b = parts.blocks - 1; b > 0; b--) observe_step(parts, first + b, work);
}

} // namespace
} // namespace ESS_LEVEL
} // namespace ess
