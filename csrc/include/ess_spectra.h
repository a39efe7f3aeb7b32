/* Singular values of many small matrices, or how many of them exceed given tolerances. Included by ess_native.h. */
#ifndef ESS_SPECTRA_H
#define ESS_SPECTRA_H

#include "ess_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The shorter side of a matrix, and of each factor of a product, is at most this. */
#define ESS_MAX_SMALL 256

/* A batch of matrices: element (i, j) of matrix b is data[b batch_stride + i row_stride + j column_stride]. Strides
 * count elements and may be anything that stays inside the caller's memory, zero and negative ones among them. */
typedef struct {
    const void *data;
    int64_t rows, columns;
    int64_t batch_stride, row_stride, column_stride;
} ess_matrices;

/* What is asked for.
 *
 *   element_bytes  8: matrices and values are double, computed in double; 4: float
 *   reserved       0
 *   batch          how many matrices, >= 0
 *   left           A [batch][m][n], min(m, n) <= ESS_MAX_SMALL
 *   right          R [batch][k][n], min(k, n) <= ESS_MAX_SMALL: the matrices are A R^T, formed here. With rows < 0
 *                  there is none: the matrices are A itself, and k stands for n below
 *   values         [batch][min(m, k)], contiguous, descending, in the matrices' precision; may be null
 *   tolerances     M >= 0, how many counts a matrix
 *   tau            [batch][M], contiguous doubles, absolute tolerances, not NaN; may be null if M is 0
 *   counts         [batch][M], contiguous: how many singular values exceed tau, by Sturm's theorem on the bidiagonal
 *                  form; no value is computed for them. May be null if M is 0.
 *
 * Matrices are scaled by exact powers of two, so that entries of any size pass. A matrix that holds NaN or infinity, or
 * whose largest singular value exceeds the largest number, gives NaN and -1; its neighbours do not notice.
 *
 * Errors of the values, and of the places where counts change, are at most (4 + min(m, k) / 2) eps s_1 for a matrix and
 * (8 + n) eps |A| |R| (Frobenius norms) for a product; eps is 2^-52 or 2^-23. */
typedef struct {
    int32_t element_bytes, reserved;
    int64_t batch;
    ess_matrices left, right;
    void *values;
    int64_t tolerances;
    const double *tau;
    int64_t *counts;
} ess_spectra_job;

ESS_KERNEL(spectra);

#ifdef __cplusplus
}
#endif

#endif /* ESS_SPECTRA_H */
