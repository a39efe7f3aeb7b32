// A symmetric matrix S brought to tridiagonal form T = H^T S H by Householder reflections, and further rows B, on which S
// acts from the right, turned along: B H. For any shift s, B (s I + S)^-1 B^T = (B H) (s I + T)^-1 (B H)^T.

#pragma once

#include "products.h"

namespace ess {
namespace ESS_LEVEL {
namespace {

// squares of numbers below 1 that may be taken for zero
constexpr double NO_SQUARE = 1e-100;

// vectors of rows that stay in registers together with what is added to them
constexpr int64_t PASS_VECTORS = ESS_VECTOR_BYTES == 64 ? 8 : 3;

// S -= w v^T + v w^T and y = S x on VECTORS vectors of rows and the columns begin .. end: the update that the last
// reflection left and the product that the next one needs, in one pass. 6 flops an entry.
template <int VECTORS>
ESS_INLINE void update_and_multiply(double *S, int64_t lds, int64_t row, int64_t begin, int64_t end, const double *v,
                                    const double *w, const double *x, double *y) {
    V v_rows[VECTORS], w_rows[VECTORS], sum[VECTORS];
    ESS_UNROLL
    for (int i = 0; i < VECTORS; i++) {
        v_rows[i] = load(v + row + i * W);
        w_rows[i] = load(w + row + i * W);
        sum[i] = V{};
    }
    for (int64_t j = begin; j < end; j++) {
        double *column = S + row + j * lds;
        V vj = all(v[j]), wj = all(w[j]), xj = all(x[j]);
        ESS_UNROLL
        for (int i = 0; i < VECTORS; i++) {
            V entry = load(column + i * W) - w_rows[i] * vj - v_rows[i] * wj;
            store(column + i * W, entry);
            sum[i] += entry * xj;
        }
    }
    ESS_UNROLL
    for (int i = 0; i < VECTORS; i++) store(y + row + i * W, sum[i]);
}

template <int VECTORS>
void pass(int64_t vectors, double *S, int64_t lds, int64_t row, int64_t begin, int64_t end, const double *v,
          const double *w, const double *x, double *y) {
    if (vectors == VECTORS) update_and_multiply<VECTORS>(S, lds, row, begin, end, v, w, x, y);
    else if constexpr (VECTORS > 1) pass<VECTORS - 1>(vectors, S, lds, row, begin, end, v, w, x, y);
}

// Householder tridiagonalisation of the symmetric n x n matrix S, all of it stored, entries at most about 1.
//
// diagonal[n] and off[n] receive T (off[k] couples k and k + 1, the last is 0). Reflection k is I - factor[k] v v^T with
// v in rows k + 1 .. n of S's column k, zeros above as far as the strip of ROWS rows that k belongs to. `work`: 4 n
// doubles. Flops: 2 n^3.
void tridiagonalise(int64_t n, double *S, int64_t lds, double *diagonal, double *off, double *factor, double *work) {
    double *v = work, *w = v + n, *x = w + n, *y = x + n;
    for (int64_t i = 0; i < 2 * n; i++) v[i] = 0;
    for (int64_t k = 0; k < n; k++) {
        // the column as it is after all reflections so far; what lies below the diagonal is to be reflected
        double *column = S + k * lds;
        const int64_t first = k / W * W, next = k + 1;
        V vk = all(v[k]), wk = all(w[k]), squares{};
        for (int64_t i = first; i < n; i += W) {
            V entry = load(column + i) - load(w + i) * vk - load(v + i) * wk;
            store(column + i, entry);
            store(x + i, from_row(entry, i, next));
            V rest = from_row(entry, i, next + 1);
            squares += rest * rest;
        }
        diagonal[k] = column[k];
        factor[k] = off[k] = 0;
        for (int64_t i = k / ROWS * ROWS; i < first; i += W) store(column + i, V{});
        if (next == n) {
            for (int64_t i = first; i < n; i += W) store(column + i, V{});
            break;
        }
        // S times the column itself does not wait for the norm; S times the reflector follows from it
        const double rest = horizontal_sum(squares), head = x[next];
        double image = head, h = 0;
        if (rest > NO_SQUARE) {
            double norm = std::sqrt(head * head + rest);
            image = head > 0 ? -norm : norm;
            h = 1 / (image * (image - head));
        }
        const int64_t strip = next / W * W;
        for (int64_t row = strip; row < n;) {
            int64_t vectors = (n - row) / W < PASS_VECTORS ? (n - row) / W : PASS_VECTORS;
            pass<PASS_VECTORS>(vectors, S, lds, row, next, n, v, w, x, y);
            row += vectors * W;
        }
        off[k] = image;
        factor[k] = h;
        const double *beside = S + next * lds;
        V product{}, minus = all(image), zero = all(h == 0 ? 0.0 : 1.0);
        for (int64_t i = first; i < strip; i += W) store(column + i, V{});
        for (int64_t i = strip; i < n; i += W) {
            V shift = from_row(minus, i, next) - from_row(minus, i, next + 1);
            V reflector = (load(x + i) - shift) * zero;
            V image_rows = load(y + i) - load(beside + i) * minus;
            store(v + i, reflector);
            store(column + i, reflector);
            store(y + i, image_rows);
            product += reflector * image_rows;
        }
        V share = all(0.5 * h * h * horizontal_sum(product)), hh = all(h);
        for (int64_t i = strip; i < n; i += W) {
            store(w + i, from_row(load(y + i) * hh - load(v + i) * share, i, next));
        }
    }
}

// Turns B's rows by the reflections of `tridiagonalise`, ROWS of them at a time: with V the reflectors of one panel,
// H_0 H_1 ... = I - V U V^T, U upper triangular, B -= (B V U) V^T. `work`: ROWS padded_stride(rows) doubles. Flops:
// 2 rows n^2.
void turn(int64_t n, const double *S, int64_t lds, const double *factor, int64_t rows, double *B, int64_t ldb,
          double *work) {
    constexpr int P = static_cast<int>(ROWS);
    const int64_t ldw = padded_stride(rows);
    for (int64_t k0 = 0; k0 < n; k0 += P) {
        const double *reflectors = S + k0 + k0 * lds, *h = factor + k0;
        const int64_t depth = n - k0;
        multiply<Right::Plain, Update::Set>(rows, P, B + k0 * ldb, ldb, reflectors, lds, work, ldw,
                                            [=](int64_t, int64_t, int64_t, int64_t) { return Range{0, depth}; });
        // products of the reflectors with each other, the one of i and j, i < j, at j (j - 1) / 2 + i
        constexpr int PAIRS = P * (P - 1) / 2, PADDED = (PAIRS + W - 1) / W * W;
        V sums[PADDED];
        ESS_UNROLL
        for (int i = 0; i < PADDED / W; i++) {
            ESS_UNROLL
            for (int l = 0; l < W; l++) sums[i * W + l] = V{};
        }
        for (int64_t row = 0; row < depth; row += W) {
            V r[P];
            ESS_UNROLL
            for (int j = 0; j < P; j++) r[j] = load(reflectors + row + j * lds);
            ESS_UNROLL
            for (int j = 1; j < P; j++) {
                ESS_UNROLL
                for (int i = 0; i < j; i++) sums[j * (j - 1) / 2 + i] += r[j] * r[i];
            }
        }
        double gram[PADDED];
        ESS_UNROLL
        for (int i = 0; i < PADDED; i += W) store(gram + i, lane_sums(sums + i));
        // column j of B V U is h_j (B v_j - sum over i < j of column i times v_i . v_j)
        for (int64_t row = 0; row < rows; row += W) {
            V column[P];
            ESS_UNROLL
            for (int j = 0; j < P; j++) {
                V sum = load(work + row + j * ldw);
                ESS_UNROLL
                for (int i = 0; i < j; i++) sum -= column[i] * all(gram[j * (j - 1) / 2 + i]);
                column[j] = sum * all(h[j]);
                store(work + row + j * ldw, column[j]);
            }
        }
        multiply<Right::Transposed, Update::Subtract>(rows, depth, work, ldw, reflectors, lds, B + k0 * ldb, ldb,
                                                      [=](int64_t, int64_t, int64_t, int64_t) { return Range{0, P}; });
    }
}

} // namespace
} // namespace ESS_LEVEL
} // namespace ess
