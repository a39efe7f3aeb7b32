// QR with column pivoting: the diagonal of R says how much each further column adds to those before it, so that
// eliminating in this order meets large pivots first.

#pragma once

#include "dense/limits.h"
#include "dense/products.h"

namespace ess::ESS_LEVEL::dense {
namespace {

// Householder reflector v, zero before row k, on its way through other columns.
struct ColumnReflector {
    int64_t n, k;
    const double *v;
    double inverse; // I - inverse v v^T

    // Reflects COLUMNS columns, `ld` apart, and says what is left of their squares below row k. 6 (n - k) flops a
    // column.
    template <int COLUMNS> ESS_INLINE void apply(double *a, int64_t ld, double *squares) const {
        const int64_t begin = k / W * W;
        V sum[COLUMNS], left[COLUMNS], share[COLUMNS];
        ESS_UNROLL
        for (int q = 0; q < COLUMNS; q++) sum[q] = V{};
        for (int64_t i = begin; i < n; i += W) {
            const V rows = load(v + i);
            ESS_UNROLL
            for (int q = 0; q < COLUMNS; q++) sum[q] += rows * load(a + q * ld + i);
        }
        const V first = load(v + begin);
        ESS_UNROLL
        for (int q = 0; q < COLUMNS; q++) {
            share[q] = all(horizontal_sum(sum[q]) * inverse);
            const V x = load(a + q * ld + begin) - first * share[q], below = from_row(x, begin, k + 1);
            store(a + q * ld + begin, x);
            left[q] = below * below;
        }
        for (int64_t i = begin + W; i < n; i += W) {
            const V rows = load(v + i);
            ESS_UNROLL
            for (int q = 0; q < COLUMNS; q++) {
                const V x = load(a + q * ld + i) - rows * share[q];
                store(a + q * ld + i, x);
                left[q] += x * x;
            }
        }
        ESS_UNROLL
        for (int q = 0; q < COLUMNS; q++) squares[q] = horizontal_sum(left[q]);
    }
};

constexpr int64_t pivoted_qr_work(int64_t n, int64_t extra) { return 2 * n + extra; }

// A = [M, B], [n, n + extra] column-major, becomes H [M P, B] with R = H M P upper triangular, |R_kk| falling. order[k]
// is the column of M that came k-th. Squares of columns are summed anew in every update, never updated themselves: what
// is chosen is really the largest. 4 n^3 / 3 + 2 n^2 extra flops, half as much again for the squares.
inline void pivoted_qr(int64_t n, int64_t extra, double *A, int64_t lda, int64_t *order, double *work) {
    constexpr int COLUMNS = 4;
    const int64_t columns = n + extra;
    double *squares = work, *v = work + columns;
    for (int64_t j = 0; j < n; j++) {
        squares[j] = sum_of_squares(A + j * lda, lda, n, 1);
        order[j] = j;
    }
    for (int64_t k = 0; k < n; k++) {
        int64_t largest = k;
        for (int64_t j = k + 1; j < n; j++) largest = squares[j] > squares[largest] ? j : largest;
        if (!(squares[largest] > NO_COLUMN)) {
            for (int64_t j = k; j < n; j++) {
                for (int64_t i = k; i < n; i++) A[i + j * lda] = 0;
            }
            return;
        }
        double *column = A + k * lda;
        if (largest != k) {
            double *other = A + largest * lda;
            for (int64_t i = 0; i < n; i += W) {
                const V x = load(column + i);
                store(column + i, load(other + i));
                store(other + i, x);
            }
            const int64_t number = order[k];
            order[k] = order[largest];
            order[largest] = number;
            const double square = squares[k];
            squares[k] = squares[largest];
            squares[largest] = square;
        }
        const double norm = std::sqrt(squares[k]), beta = column[k] > 0 ? -norm : norm, head = column[k] - beta;
        for (int64_t i = k / W * W; i < n; i += W) store(v + i, from_row(load(column + i), i, k));
        v[k] = head;
        column[k] = beta;
        for (int64_t i = k + 1; i < n; i++) column[i] = 0;
        const ColumnReflector reflector{n, k, v, 1 / (-beta * head)};
        int64_t j = k + 1;
        for (; j + COLUMNS <= columns; j += COLUMNS) reflector.apply<COLUMNS>(A + j * lda, lda, squares + j);
        for (; j < columns; j++) reflector.apply<1>(A + j * lda, lda, squares + j);
    }
}

} // namespace
} // namespace ess::ESS_LEVEL::dense
