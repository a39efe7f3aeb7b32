/* Dense lower triangular operators: counts and log-determinants of H_i = T[i:, :i] at every position i.
 *
 * An operator is [length, length], row-major; only what lies strictly below its diagonal is read. Its numbers are taken
 * times scale[head], which should be a power of two that brings the largest near 1: squares of it are formed. They must
 * be finite. */
#ifndef ESS_MATRIX_H
#define ESS_MATRIX_H

#include "ess_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Largest length. */
#define ESS_MAX_LENGTH 1048576

/* Which part of an operator is there. With m = ess_matrix_middle(length), the products of level zero need its corner
 * only, and the positions before and from m on, with all that is below level zero, its first and its last quarter: an
 * operator can be worked on without ever being whole. */
enum {
    ESS_MATRIX_WHOLE = 0,  /* [length, length] */
    ESS_MATRIX_CORNER = 1, /* rows m .. length - 1, columns 0 .. m - 1 */
    ESS_MATRIX_FIRST = 2,  /* rows and columns 0 .. m - 1 */
    ESS_MATRIX_LAST = 3    /* rows and columns m .. length - 1 */
};

/*   heads         at least 1
 *   length        1 .. ESS_MAX_LENGTH, of the whole operator
 *   T             first operator, or its part
 *   row_stride    at least its columns
 *   head_stride   from one operator to the next, at least rows * row_stride if there are several
 *   scale         [heads], positive
 *   part          one of ESS_MATRIX_*; other parts than the whole only where the middle is not 0
 *   reserved      0 */
typedef struct {
    int64_t heads, length;
    const double *T;
    int64_t row_stride, head_stride;
    const double *scale;
    int32_t part, reserved;
} ess_matrix;

/* The position at which the two halves of the positions meet, 0 for short operators, or a negative error code. */
ESS_API int64_t ess_matrix_middle(int64_t length);

/* The largest magnitude strictly below the diagonal of a whole operator, unscaled; infinity where something there is
 * not finite.
 *
 *   largest   [heads] */
typedef struct {
    const ess_matrix *matrix;
    double *largest;
} ess_matrix_largest_job;
ESS_KERNEL(matrix_largest);

/* An upper bound of the squared norm of the strictly lower T scale, by Schur's test, and the squared Frobenius norm of
 * every H_i; T is whole. Both are right to rounding errors of their sums.
 *
 *   steps     so many weights are tried, at least 1: after some of them the bound is near the squared norm of |T|
 *   norm      [heads]
 *   squares   [heads, length] */
typedef struct {
    const ess_matrix *matrix;
    int64_t steps;
    double *norm, *squares;
} ess_matrix_norm_job;
ESS_KERNEL(matrix_norm);

/* How many doubles the products of one head take (0 for short operators), or a negative error code. */
ESS_API int64_t ess_matrix_products_size(int64_t length);

/* The symmetric products of parts of T with themselves that every tolerance and every shift shares, for all heads:
 * about 2/7 length^3 flops a head. Of a corner those of level zero, which are most of it; of the first or last quarter
 * those below, which add to what the corner has left in `products`.
 *
 *   products   [heads, ess_matrix_products_size(length)], aligned to 64 bytes; may be null if that size is 0 */
typedef struct {
    const ess_matrix *matrix;
    double *products;
} ess_matrix_products_job;
ESS_KERNEL(matrix_products);

/* One elimination an item for all its wanted positions, about length^3 / 4 flops. Of a first or last quarter for those
 * of them that it has, half of that; a corner is refused.
 *
 *   products   as ess_matrix_products made them from the same operators
 *   items      at least 1
 *   head       [items], which operator
 *   shift      [items], positive: the tolerance tau, or the root of the shift t, in units of T scale
 *   definite   0: counts of singular values above tau. Else log det(I + H H^T / t).
 *   reserved   0
 *   wanted     [items, length], not 0 where a position is asked for; position 0 has no H
 *   value      [items, length], written where wanted, as are the next two: the count, or log-determinant (NaN if T is
 *              not finite)
 *   growth     the largest update of a diagonal entry, in units of tau: times 2^-52, the relative width around tau
 *              within which a singular value could have been miscounted; infinite or NaN: no answer. Null if definite
 *   least      the smallest of the eliminated rows' largest entries in units of tau, 1 where none is below 0.01: near
 *              zero, tau is a singular value of an eliminated block, and the sign of a pivot says nothing. Null if
 *              definite */
typedef struct {
    const ess_matrix *matrix;
    const double *products;
    int64_t items;
    const int64_t *head;
    const double *shift;
    int32_t definite, reserved;
    const uint8_t *wanted;
    double *value, *growth, *least;
} ess_matrix_staircase_job;
ESS_KERNEL(matrix_staircase);

#ifdef __cplusplus
}
#endif

#endif /* ESS_MATRIX_H */
