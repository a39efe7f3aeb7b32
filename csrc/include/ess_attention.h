/* The weights of causal softmax attention as a dense operator for the kernels of ess_matrix.h. */
#ifndef ESS_ATTENTION_H
#define ESS_ATTENTION_H

#include "ess_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Rows and columns in memory are multiples of this. */
#define ESS_ATTENTION_TILE 16
/* Largest size of a query. */
#define ESS_MAX_QUERY 65536

/* weights[i, j], j <= i: softmax over j of the capped scores. What is right of the diagonal is undefined.
 *
 *   heads, length, size   at least 1; length at most ESS_MAX_LENGTH, size at most ESS_MAX_QUERY
 *   q, k                  [heads, length, size], contiguous, finite
 *   sinks                 [heads], one more score in the denominator, or null
 *   scale                 of the scores
 *   softcap               scores become softcap tanh(score / softcap); 0: they do not
 *   window                row i sees columns i - window + 1 .. i; 0: all before it
 *   begin, end            rows begin .. end - 1 are made; begin is a multiple of ESS_ATTENTION_TILE
 *   weights               [heads, end - begin rounded up to a multiple of ESS_ATTENTION_TILE, row_stride]
 *   row_stride            at least end, rounded up likewise */
typedef struct {
    int64_t heads, length, size;
    const double *q, *k, *sinks;
    double scale, softcap;
    int64_t window, begin, end;
    double *weights;
    int64_t row_stride;
} ess_attention_rows_job;
ESS_KERNEL(attention_rows);

#ifdef __cplusplus
}
#endif

#endif /* ESS_ATTENTION_H */
