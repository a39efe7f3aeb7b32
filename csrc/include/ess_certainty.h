/* From eliminations to answers: ess_kernels/engine/certainty.py and quadrature.py in one look at every number.
 *
 * All arrays are contiguous, the last axis innermost. None of these kernels needs workspace. */
#ifndef ESS_CERTAINTY_H
#define ESS_CERTAINTY_H

#include "ess_base.h"
#include "ess_quadrature.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Relative widths that belong to the data, whatever eliminates them, and are added to the others.
 *
 *   width   [heads][tolerances][ceil(length / span)], or null: there are none
 *   span    positions in a row that share one of them, at least 1 */
typedef struct {
    const double *width;
    int64_t span;
} ess_blur;

/* What an elimination says about the positions 1 .. length - 1.
 *
 *   heads, tolerances      at least 1; length at least 2
 *   eps                    the relative width that a growth of one means
 *   sure                   the largest width of a count that is taken as it is
 *   tiny_row               a least row of no more than this times 1 + growth is as good as zero,
 *   small_row              unless it is larger than this
 *   blurred                the largest blur of a count that is taken as it is
 *   blur                   widths of the data
 *   value, growth, least   [heads][tolerances][length], as ess_recurrence_counts writes them
 *   possible               [heads][tolerances]: 0 where no elimination can answer at this tolerance: all is zero there
 *   asked                  [length]: where it is 0 nothing is doubtful, and value, growth and least may be anything
 *   counts, width          [tolerances][heads][length - 1]: the counts, and the relative width growth * eps of the
 *                          band of singular values that may have been miscounted, infinite for NaN; both zero where not
 *                          asked
 *   doubtful               the same: 1 where the width or the least row does not let the count be believed, else 0
 *   number                 receives how many are doubtful */
typedef struct {
    int64_t heads, tolerances, length;
    double eps, sure, tiny_row, small_row, blurred;
    ess_blur blur;
    const double *value, *growth, *least;
    const uint8_t *possible, *asked;
    int64_t *counts;
    double *width;
    uint8_t *doubtful;
    int64_t *number;
} ess_judge_counts_job;
ESS_KERNEL(judge_counts);

/* A width for each group of positions that are to be counted on both sides of a tolerance.
 *
 *   heads, tolerances   at least 1; length at least 2
 *   group             positions that share a tolerance, at least 1
 *   typical           not 0: the smallest width of the positions asked for, or if that is infinite the smallest of the
 *                     head; 0: the largest width of the doubtful positions, where those above `hopeless` count as zero;
 *                     NaN if one is
 *   reserved          0
 *   hopeless          see above
 *   asked             [length]
 *   doubtful, width   [tolerances][heads][length - 1]
 *   chosen            [heads][tolerances][ceil(length / group)]: that width; infinite where no position is doubtful */
typedef struct {
    int64_t heads, tolerances, length, group;
    int32_t typical, reserved;
    double hopeless;
    const uint8_t *asked, *doubtful;
    const double *width;
    double *chosen;
} ess_group_widths_job;
ESS_KERNEL(group_widths);

/* Settles doubtful counts by counts at tau (1 - move) and tau (1 + move): where both agree, and each is sure to within
 * that distance, no singular value lies between.
 *
 *   heads, tolerances   at least 1; length at least 2
 *   group             positions that share a tolerance, at least 1
 *   eps               the relative width that a growth of one means
 *   value, growth     [heads][tolerances][2][length], as ess_recurrence_counts writes them
 *   move              [heads][tolerances][ceil(length / group)]; NaN where nothing was tried
 *   blur              widths of the data
 *   counts, width, doubtful   [tolerances][heads][length - 1]. What is doubtful, was tried, and has a width that is a
 *                     number changes: if settled, to the count, a width of zero and 0; else only the width, to NaN
 *                     where both are sure, to the larger width of the two where not
 *   number            receives how many are still doubtful */
typedef struct {
    int64_t heads, tolerances, length, group;
    double eps;
    const double *value, *growth, *move;
    ess_blur blur;
    int64_t *counts;
    double *width;
    uint8_t *doubtful;
    int64_t *number;
} ess_compare_counts_job;
ESS_KERNEL(compare_counts);

/* Entropy-ESS from log-determinants summed over the nodes of a quadrature.
 *
 *   heads, length   at least 1
 *   group           positions that share one rounding, at least 1
 *   quadrature      its errors and slopes
 *   total, mixed    [heads][length], as ess_recurrence_entropy writes them
 *   rounding        [heads][ceil(length / group)]: error of squared singular values in units of the scale
 *   cap             [length]: the largest possible number of non-zero singular values
 *   ess             [heads][length]
 *   bound           [heads][length]: a bound of its relative error, to first order; infinite where nothing is seen */
typedef struct {
    int64_t heads, length, group;
    const ess_quadrature *quadrature;
    const double *total, *mixed, *rounding, *cap;
    double *ess, *bound;
} ess_judge_entropy_job;
ESS_KERNEL(judge_entropy);

#ifdef __cplusplus
}
#endif

#endif /* ESS_CERTAINTY_H */
