/* Recurrences with diagonal transitions and at most ESS_LANES_MAX_STATES states: heads side by side in vector lanes.
 *
 * Positions come in blocks of ESS_LANES_BLOCK. All arrays are contiguous, the last axis innermost. */
#ifndef ESS_LANES_H
#define ESS_LANES_H

#include "ess_base.h"
#include "ess_quadrature.h"
#include "ess_tokens.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Positions that share one tolerance and one elimination of their outside. */
#define ESS_LANES_BLOCK 8
/* Positions that share one tridiagonal matrix of their outside. */
#define ESS_LANES_ENTROPY_BLOCK 4
/* The largest state; smaller ones are padded to 8 or to this. */
#define ESS_LANES_MAX_STATES 16

/* How many singular values of every H_i = T[i:, :i] exceed a tolerance, by inertia.
 *
 *   tokens      the recurrence
 *   tolerances  S, at least 1
 *   tau         [heads][S][blocks]: the tolerance of each block of positions, positive and finite where wanted
 *   wanted      [heads][S][blocks]: not 0 where a block is to be done
 *   value       [heads][S][length]: the counts. Here and below all positions of the wanted blocks are written, and no
 *               others; the number at position 0, where there is no block H, means nothing
 *   growth      [heads][S][length]: the largest sum of absolute updates, in units of tau: rounding errors move singular
 *               values by no more than about 2^-52 growth tau; infinity or NaN if a pivot was zero
 *   least       [heads][S][length]: the smallest magnitude, in units of tau, of the row of a pivot, where that is
 *               below 1e-2 (otherwise anything above): the sign of a pivot in a row that is negligible as a whole is a
 *               matter of rounding, which no growth shows */
typedef struct {
    const ess_tokens *tokens;
    int64_t tolerances;
    const double *tau;
    const uint8_t *wanted;
    double *value, *growth, *least;
} ess_lanes_counts_job;
ESS_KERNEL(lanes_counts);

/* Entropy-ESS of every H_i from log-determinants ld_k = log det(I + H_i H_i^T / (t_k scale)) at the nodes of a
 * quadrature, where scale bounds the squared largest singular value in each block of ESS_LANES_ENTROPY_BLOCK positions:
 * exp(log N - E / N) with N and E the sums of ld_k with total and mixed weights, within 1 and the cap.
 *
 *   quadrature    nodes and weights
 *   wanted        [heads][ceil(length / ESS_LANES_ENTROPY_BLOCK)]: not 0 where a block is to be done
 *   cap           [length]: the largest possible number of non-zero singular values at each position
 *   ess           [heads][length]. Here and below all positions of the wanted blocks are written, and no others
 *   bound         [heads][length]: a bound of its relative error, to first order; infinite where nothing is seen
 *   total         [heads][length]: the sum of the singular values */
typedef struct {
    const ess_tokens *tokens;
    const ess_quadrature *quadrature;
    const uint8_t *wanted;
    const double *cap;
    double *ess, *bound, *total;
} ess_lanes_entropy_job;
ESS_KERNEL(lanes_entropy);

#ifdef __cplusplus
}
#endif

#endif /* ESS_LANES_H */
