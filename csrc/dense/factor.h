// LDL^T without pivoting, and what is known about its errors.

#pragma once

#include "dense/limits.h"
#include "dense/products.h"

namespace ess::ESS_LEVEL::dense {
namespace {

// Partial LDL^T of the symmetric m x m matrix A (lower triangle, column-major): eliminates the first `pivots` rows.
//
// On return A's first `pivots` columns hold U = L D, `L` the unit lower factor, `d` the pivots, and A[pivots:, pivots:]
// the Schur complement A - L D L^T in the tiles for which `wanted(i0, i1, j0, j1)` (indices behind the pivots) is true.
// growth[i] += sum_k |u_ik l_ik|, the diagonal of |L| |D| |L|^T, in proportion to which rounding errors are.
//
// Left-looking, panels of ROWS columns; m and pivots are multiples of ROWS. Flops: p^3 / 3 + p (m - p) m.
template <class Wanted>
void eliminate(double *A, int64_t lda, int64_t m, int64_t pivots, double *L, int64_t ldl, double *d, double *growth,
               Wanted wanted) {
    constexpr int P = static_cast<int>(ROWS);
    for (int64_t j0 = 0; j0 < pivots; j0 += P) {
        if (j0 > 0) {
            multiply<Right::Transposed, Update::Subtract>(
                m - j0, P, A + j0, lda, L + j0, ldl, A + j0 + j0 * lda, lda,
                [=](int64_t, int64_t, int64_t, int64_t) { return Range{0, j0}; });
        }
        // the panel's own P x P corner, by scalars
        double corner[P][P], l[P][P], inverse[P];
        for (int j = 0; j < P; j++) {
            for (int i = j; i < P; i++) corner[j][i] = A[j0 + i + (j0 + j) * lda];
        }
        for (int k = 0; k < P; k++) {
            double pivot = corner[k][k];
            if (pivot == 0) pivot = ZERO_PIVOT;
            d[j0 + k] = pivot;
            inverse[k] = 1 / pivot;
            for (int i = k + 1; i < P; i++) l[k][i] = corner[k][i] * inverse[k];
            for (int j = k + 1; j < P; j++) {
                for (int i = j; i < P; i++) corner[j][i] -= corner[k][i] * l[k][j];
            }
        }
        // all rows of the panel, the corner's among them: one pass in registers
        for (int64_t i = j0; i < m; i += W) {
            V a[P], sum = load(growth + i);
            ESS_UNROLL
            for (int j = 0; j < P; j++) a[j] = load(A + i + (j0 + j) * lda);
            ESS_UNROLL
            for (int k = 0; k < P; k++) {
                ESS_UNROLL
                for (int j = k + 1; j < P; j++) a[j] -= a[k] * all(l[k][j]);
            }
            ESS_UNROLL
            for (int j = 0; j < P; j++) {
                V scaled = a[j] * all(inverse[j]);
                store(A + i + (j0 + j) * lda, a[j]);
                store(L + i + (j0 + j) * ldl, scaled);
                sum += abs(a[j] * scaled);
            }
            store(growth + i, sum);
        }
    }
    if (m > pivots) {
        multiply<Right::Transposed, Update::Subtract>(
            m - pivots, m - pivots, A + pivots, lda, L + pivots, ldl, A + pivots + pivots * lda, lda,
            [=](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
                return in_lower(i1, j0) && wanted(i0, i1, j0, j1) ? Range{0, pivots} : Range{0, 0};
            });
    }
}

} // namespace
} // namespace ess::ESS_LEVEL::dense
