// Sturm counts of bidiagonal matrices in lanes, and bisection with them.

#pragma once

#include "base/simd.h"

namespace ess::ESS_LEVEL::spectra {
namespace {

// below[k] = how many squares of singular values are at most sigma[k] > 0, for K tolerances at once (they hide each
// other's divisions): negative pivots of B^T B - sigma by the stationary qd recurrence, whose counts are those of a
// bidiagonal with entries changed by a few ulp. q, e: squares of the diagonal and of what stands beside it, `step`
// vectors apart; the matrix is of the order of 1. 5 n flops a matrix and tolerance.
template <class T, int K>
ESS_INLINE void count_below(int64_t n, const Vec<T> *q, const Vec<T> *e, int64_t step, const Vec<T> *sigma,
                            Vec<T> *below) {
    // smaller pivots count as negative; no quotient overflows
    const Vec<T> least = all(sizeof(T) == 8 ? T(1e-250) : T(1e-20));
    Vec<T> shift[K];
    ESS_UNROLL
    for (int k = 0; k < K; k++) shift[k] = -sigma[k], below[k] = Vec<T>{};
    for (int64_t i = 0; i < n; i++) {
        const Vec<T> diagonal = q[i * step], beside = e[i * step];
        ESS_UNROLL
        for (int k = 0; k < K; k++) {
            Vec<T> pivot = diagonal + shift[k];
            pivot = select(abs(pivot) < least, -least, pivot);
            below[k] += select(pivot < Vec<T>{}, all(T(1)), Vec<T>{});
            shift[k] = shift[k] * (beside / pivot) - sigma[k];
        }
    }
}

// All singular values, descending, out[k * step]: slow and safe.
template <class T> void bisect(int64_t n, const Vec<T> *q, const Vec<T> *e, int64_t step, Vec<T> *out) {
    constexpr int K = 4;
    Vec<T> bound{};
    for (int64_t i = 0; i < n; i++) {
        Vec<T> row = sqrt(q[i * step]) + sqrt(e[i * step]);
        if (i > 0) row += sqrt(e[(i - 1) * step]);
        bound = max(row, bound);
    }
    bound *= T(1.001);
    for (int64_t k = 0; k < n; k += K) {
        Vec<T> low[K], high[K], middle[K], sigma[K], below[K];
        for (int t = 0; t < K; t++) low[t] = Vec<T>{}, high[t] = bound;
        for (int turn = 0; turn < (sizeof(T) == 8 ? 60 : 30); turn++) {
            for (int t = 0; t < K; t++) {
                middle[t] = (low[t] + high[t]) * T(0.5);
                sigma[t] = max(middle[t] * middle[t], all(sizeof(T) == 8 ? T(1e-300) : T(1e-37)));
            }
            count_below<T, K>(n, q, e, step, sigma, below);
            for (int t = 0; t < K; t++) {
                Mask<T> beyond = all(T(n)) - below[t] > all(T(k + t));
                low[t] = select(beyond, middle[t], low[t]);
                high[t] = select(beyond, high[t], middle[t]);
            }
        }
        for (int t = 0; t < K && k + t < n; t++) {
            // of a zero value nothing but the bracket is left
            Vec<T> value = (low[t] + high[t]) * T(0.5);
            out[(k + t) * step] = select(low[t] > Vec<T>{}, value, Vec<T>{});
        }
    }
}

} // namespace
} // namespace ess::ESS_LEVEL::spectra
