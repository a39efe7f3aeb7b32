/* From eliminations to answers: ess_kernels/engine/certainty.py and quadrature.py in one look at every number.
 *
 * All arrays are contiguous, the last axis innermost. No function needs workspace. They return
 *
 *   ESS_ERR_NULL   a pointer is null
 *   ESS_ERR_SIZE   a size is below 1, or there is no position 1 to judge
 *   ESS_ERR_LEVEL  as everywhere */
#ifndef ESS_CERTAINTY_H
#define ESS_CERTAINTY_H

#include "ess_base.h"
#include "ess_recurrence.h"

#ifdef __cplusplus
extern "C" {
#endif

/* When a count by elimination is believed.
 *
 *   unit        the relative width that a growth of one means
 *   sure        the largest width of a count that is taken as it is
 *   tiny_row    a least row of no more than this times 1 + growth is as good as zero,
 *   small_row   unless it is larger than this
 *   blurred     the largest blur (see below) of a count that is taken as it is */
typedef struct {
    double unit, sure, tiny_row, small_row, blurred;
} ess_limits;

/* What an elimination says about the positions 1 .. length - 1.
 *
 *   blur                   [heads][tolerances][ceil(length / blur_group)]: relative widths that belong to the data, whatever
 *                          eliminates them, added to the others; null: none
 *   value, growth, least   [heads][tolerances][length], as ess_recurrence_counts returns them
 *   rows                   [heads][tolerances]: 0 where no elimination can answer: all is zero there
 *   asked                  [length]: where it is 0 nothing is doubtful, and value, growth and least may be anything
 *   counts, width          [tolerances][heads][length - 1]: the counts, and the relative width growth * unit of the band
 *                          of singular values that may have been miscounted, infinite for NaN; both zero where not asked
 *   doubtful               the same: 1 where the width or the least row does not let the count be believed, else 0
 *   number                 receives how many are doubtful */
ESS_API int32_t ess_judge_counts(const ess_run *run, int64_t heads, int64_t tolerances, int64_t length,
                                 const ess_limits *limits, const double *value, const double *growth,
                                 const double *least, const uint8_t *rows, const uint8_t *asked, const double *blur,
                                 int64_t blur_group, int64_t *counts, double *width, uint8_t *doubtful,
                                 int64_t *number);

/* A width for each group of positions that are to be counted on both sides of a tolerance.
 *
 *   group             positions that share a tolerance
 *   typical           not 0: the smallest width of the positions asked for, or if that is infinite the smallest of the
 *                     head; 0: the largest width of the doubtful positions, where those above `hopeless` count as zero;
 *                     NaN if one is
 *   hopeless          see above
 *   asked             [length]
 *   doubtful, width   [tolerances][heads][length - 1]
 *   chosen            [heads][tolerances][ceil(length / group)]: that width; infinite where no position is doubtful */
ESS_API int32_t ess_group_widths(const ess_run *run, int64_t heads, int64_t tolerances, int64_t length, int64_t group,
                                 int32_t typical, double hopeless, const uint8_t *asked, const uint8_t *doubtful,
                                 const double *width, double *chosen);

/* Settles doubtful counts by counts at tau (1 - move) and tau (1 + move): where both agree, and each is sure to within
 * that distance, no singular value lies between.
 *
 *   group             positions that share a tolerance
 *   unit              as in ess_limits
 *   value, growth     [heads][tolerances][2][length], as ess_recurrence_counts returns them
 *   move              [heads][tolerances][ceil(length / group)]; NaN where nothing was tried
 *   counts, width, doubtful   [tolerances][heads][length - 1]. What is doubtful, was tried, and has a width that is a
 *                     number changes: if settled, to the count, a width of zero and 0; else only the width, to NaN where
 *                     both are sure, to the larger width of the two where not
 *   number            receives how many are still doubtful */
ESS_API int32_t ess_compare_counts(const ess_run *run, int64_t heads, int64_t tolerances, int64_t length, int64_t group,
                                   double unit, const double *value, const double *growth, const double *move,
                                   const double *blur, int64_t blur_group, int64_t *counts, double *width,
                                   uint8_t *doubtful, int64_t *number);

/* Entropy-ESS from log-determinants summed over the nodes of a quadrature.
 *
 *   group                   positions that share one rounding
 *   quadrature              its errors and slopes
 *   total, mixed            [heads][length], as ess_recurrence_entropy returns them
 *   rounding                [heads][ceil(length / group)]: error of squared singular values in units of the scale
 *   cap                     [length]: the largest possible number of non-zero singular values
 *   ess                     [heads][length]
 *   bound                   [heads][length]: a bound of its relative error, to first order; infinite where nothing is
 *                           seen */
ESS_API int32_t ess_judge_entropy(const ess_run *run, int64_t heads, int64_t length, int64_t group,
                                  const ess_quadrature *quadrature, const double *total, const double *mixed,
                                  const double *rounding, const double *cap, double *ess, double *bound);

#ifdef __cplusplus
}
#endif

#endif /* ESS_CERTAINTY_H */
