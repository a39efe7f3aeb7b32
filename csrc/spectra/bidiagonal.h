// Householder reductions in lanes that work column by column: of tall matrices to triangles, of small ones to
// bidiagonals.

#pragma once

#include "base/simd.h"

namespace ess::ESS_LEVEL::spectra {
namespace {

// squares below this count as zero; entries have been scaled to the order of 1
template <class T> constexpr T TINY_SQUARE = sizeof(T) == 8 ? T(1e-290) : T(1e-35);

// H = I - inverse v v^T maps (first, rest) to (beta, 0), with v = (head, rest). Where nothing is to be mapped, inverse
// is 0.
template <class T> struct Reflector {
    Vec<T> head, inverse, beta;
};

template <class T> ESS_INLINE Reflector<T> reflector(Vec<T> first, Vec<T> square_of_rest) {
    Mask<T> nothing = square_of_rest <= all(TINY_SQUARE<T>);
    Vec<T> norm = sqrt(first * first + square_of_rest);
    Vec<T> beta = select(first > Vec<T>{}, -norm, norm);
    Vec<T> head = first - beta;
    Vec<T> inverse = all(T(1)) / select(nothing, all(T(1)), -beta * head);
    return {select(nothing, Vec<T>{}, head), select(nothing, Vec<T>{}, inverse), select(nothing, first, beta)};
}

// R'^T R' = R^T R + C^T C for triangular R (upper, column-major, n x n) and `rows` more rows C, which are overwritten.
// 2 n^2 rows flops a matrix.
template <class T>
ESS_ONE_COPY void append_rows(int64_t n, Vec<T> *R, int64_t ldr, int64_t rows, Vec<T> *C, int64_t ldc) {
    constexpr int K = 4; // columns a pass
    for (int64_t k = 0; k < n; k++) {
        const Vec<T> *v = C + k * ldc;
        Vec<T> square{};
        for (int64_t i = 0; i < rows; i++) square += v[i] * v[i];
        const Reflector<T> h = reflector<T>(R[k + k * ldr], square);
        R[k + k * ldr] = h.beta;
        int64_t j = k + 1;
        for (; j + K <= n; j += K) {
            Vec<T> *c = C + j * ldc, t[K];
            ESS_UNROLL
            for (int a = 0; a < K; a++) t[a] = h.head * R[k + (j + a) * ldr];
            for (int64_t i = 0; i < rows; i++) {
                ESS_UNROLL
                for (int a = 0; a < K; a++) t[a] += v[i] * c[i + a * ldc];
            }
            ESS_UNROLL
            for (int a = 0; a < K; a++) {
                t[a] *= h.inverse;
                R[k + (j + a) * ldr] -= t[a] * h.head;
            }
            for (int64_t i = 0; i < rows; i++) {
                ESS_UNROLL
                for (int a = 0; a < K; a++) c[i + a * ldc] -= t[a] * v[i];
            }
        }
        for (; j < n; j++) {
            Vec<T> *c = C + j * ldc, t = h.head * R[k + j * ldr];
            for (int64_t i = 0; i < rows; i++) t += v[i] * c[i];
            t *= h.inverse;
            R[k + j * ldr] -= t * h.head;
            for (int64_t i = 0; i < rows; i++) c[i] -= t * v[i];
        }
    }
}

// vectors of workspace of `bidiagonalise`
constexpr int64_t bidiagonalise_work(int64_t m, int64_t n) { return 3 * m + 2 * n; }

// x[i] = scale (sum over j of A(i, j) u[j] - v[i] z), rows [begin, end), columns [begin, columns)
template <class T, int R>
ESS_INLINE void times_rows(int64_t i, int64_t begin, int64_t columns, const Vec<T> *A, int64_t ld, const Vec<T> *u,
                           const Vec<T> *v, Vec<T> z, Vec<T> scale, Vec<T> *x) {
    Vec<T> sum[R];
    ESS_UNROLL
    for (int r = 0; r < R; r++) sum[r] = -v[i + r] * z;
    const Vec<T> *a = A + i + begin * ld;
    for (int64_t j = begin; j < columns; j++, a += ld) {
        ESS_UNROLL
        for (int r = 0; r < R; r++) sum[r] += a[r] * u[j];
    }
    ESS_UNROLL
    for (int r = 0; r < R; r++) x[i + r] = sum[r] * scale;
}

// A(:, j..j+C) -= v y^T + x u^T from row `begin` on, and y = scale w^T A of what comes out: one pass
template <class T, int C>
ESS_INLINE void update_columns(int64_t begin, int64_t m, Vec<T> *A, int64_t ld, const Vec<T> *v, const Vec<T> *x,
                               const Vec<T> *w, Vec<T> *y, const Vec<T> *u, Vec<T> scale) {
    Vec<T> before[C], right[C], sum[C];
    ESS_UNROLL
    for (int c = 0; c < C; c++) before[c] = y[c], right[c] = u[c], sum[c] = Vec<T>{};
    for (int64_t i = begin; i < m; i++) {
        Vec<T> p = v[i], q = x[i], next = w[i];
        ESS_UNROLL
        for (int c = 0; c < C; c++) {
            Vec<T> a = A[i + c * ld] - p * before[c] - q * right[c];
            A[i + c * ld] = a;
            sum[c] += next * a;
        }
    }
    ESS_UNROLL
    for (int c = 0; c < C; c++) y[c] = sum[c] * scale;
}

// Upper bidiagonal form of A (m x n, m >= n, column-major in lanes): d[k * step], e[k * step]. A is destroyed.
//
// A step holds the last left reflector (v, with y^T = inverse v^T A) unapplied; it makes the right reflector u of row
// k, x = inverse (A - v y^T) u, the next left reflector w, and then one pass that applies v y^T + x u^T and sums w^T A.
// 4 n^2 (m - n / 3) flops a matrix.
template <class T>
ESS_ONE_COPY void bidiagonalise(int64_t m, int64_t n, Vec<T> *A, int64_t ld, Vec<T> *d, Vec<T> *e, int64_t step,
                                Vec<T> *work) {
    Vec<T> *v = work, *w = v + m, *x = w + m, *u = x + m, *y = u + n;
    Vec<T> square{};
    for (int64_t i = 1; i < m; i++) square += A[i] * A[i];
    Reflector<T> left = reflector<T>(A[0], square);
    d[0] = left.beta;
    v[0] = left.head;
    for (int64_t i = 1; i < m; i++) v[i] = A[i];
    for (int64_t j = 1; j < n; j++) {
        Vec<T> sum{};
        for (int64_t i = 0; i < m; i++) sum += v[i] * A[i + j * ld];
        y[j] = sum * left.inverse;
    }
    for (int64_t k = 0; k + 1 < n; k++) {
        const int64_t next = k + 1;
        square = Vec<T>{};
        for (int64_t j = next; j < n; j++) {
            u[j] = A[k + j * ld] - v[k] * y[j];
            if (j > next) square += u[j] * u[j];
        }
        const Reflector<T> right = reflector<T>(u[next], square);
        e[k * step] = right.beta;
        u[next] = right.head;
        Vec<T> z{};
        for (int64_t j = next; j < n; j++) z += y[j] * u[j];
        int64_t i = next;
        for (; i + 8 <= m; i += 8) times_rows<T, 8>(i, next, n, A, ld, u, v, z, right.inverse, x);
        for (; i + 4 <= m; i += 4) times_rows<T, 4>(i, next, n, A, ld, u, v, z, right.inverse, x);
        for (; i < m; i++) times_rows<T, 1>(i, next, n, A, ld, u, v, z, right.inverse, x);

        Vec<T> *column = A + next * ld;
        square = Vec<T>{};
        for (i = next; i < m; i++) {
            w[i] = column[i] - v[i] * y[next] - x[i] * u[next];
            if (i > next) square += w[i] * w[i];
        }
        left = reflector<T>(w[next], square);
        d[next * step] = left.beta;
        w[next] = left.head;
        int64_t j = next + 1;
        for (; j + 3 <= n; j += 3) update_columns<T, 3>(next, m, A + j * ld, ld, v, x, w, y + j, u + j, left.inverse);
        for (; j < n; j++) update_columns<T, 1>(next, m, A + j * ld, ld, v, x, w, y + j, u + j, left.inverse);
        Vec<T> *swap = v;
        v = w;
        w = swap;
    }
}

} // namespace
} // namespace ess::ESS_LEVEL::spectra
