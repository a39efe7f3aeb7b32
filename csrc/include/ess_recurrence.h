/* Recurrences with a finite state: block parts and boundary scans, then counts at every position.
 *
 * A recurrence of `heads` heads is cut into `blocks` blocks of `c` tokens; the last block is filled up with zero tokens.
 * The caller owns all arrays; block b of head h is number h * blocks + b of each. Matrices in them are column-major. */
#ifndef ESS_RECURRENCE_H
#define ESS_RECURRENCE_H

#include "ess_base.h"
#include "ess_tokens.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Largest padded state size and block. */
#define ESS_MAX_STATES 1024
#define ESS_MAX_BLOCK 64
#define ESS_COLUMN_MAJOR 2

/*   heads, blocks   at least 1 each
 *   n               state size, padded to a multiple of 8, at most ESS_MAX_STATES
 *   c               tokens a block: 8, 16, 32 or 64
 *   dense           0: transitions are diagonal; 1 or ESS_COLUMN_MAJOR: they are matrices, row-major or column-major
 *   X, Z            [n, c] a block: each token's read-out seen from the left edge; its write carried to the right edge
 *   Y               [c, c] a block: Y[j + r * c] = T[a + c - 1 - r, a + j], the block's own rows in reverse order
 *   Phi             [n] a block, or [n, n] if dense: the product of the block's transitions
 *   F               [n, n] a block: lower triangular root of the reachability Gramian at its left edge
 *   Q               [n, n] a block: observability Gramian at its right edge; tiles of 8 x 8 above the diagonal are undefined
 *   norms           one number a block: the largest Frobenius norm of its transitions, where they are matrices; or null
 * All but the last are aligned to 64 bytes. */
typedef struct {
    int64_t heads, blocks, n, c;
    int32_t dense, reserved;
    double *X, *Z, *Y, *Phi, *F, *Q, *norms;
} ess_recurrence;

/* How large a recurrence's numbers are, and whether its transitions are fair, before anything is made of them. Tokens may
 * hold anything here, NaN and infinities too; a gate is needed.
 *
 *   read_peak, write_peak   [heads]: at least the largest magnitude of reads and writes, scales and units included; NaN where
 *                           a number is not finite
 *   fair                    [heads]: 1 where all transitions are numbers of magnitude at most 1
 */
ESS_API int64_t ess_tokens_survey_workspace(const ess_run *run, const ess_tokens *tokens, double *read_peak,
                                            double *write_peak, uint8_t *fair);
ESS_API int32_t ess_tokens_survey(const ess_run *run, const ess_tokens *tokens, double *read_peak, double *write_peak,
                                  uint8_t *fair);

/* By how much H_i may be wrong because the states are rounded, before anything is eliminated: a bound of the 2-norm, to first
 * order in the unit roundoff.
 *
 *   group   positions in a row that share one bound, at least 1; position i belongs to group i / group
 *   lost    [heads][ceil(length / group)]; infinite where the bound overflows
 */
ESS_API int64_t ess_tokens_lost_workspace(const ess_run *run, const ess_tokens *tokens, int64_t group, double *lost);
ESS_API int32_t ess_tokens_lost(const ess_run *run, const ess_tokens *tokens, int64_t group, double *lost);

/* Fills all arrays of `parts` from tokens, in O(length n c + blocks n^2 c) flops; dense transitions O(length n^3).
 *
 *   tokens       sizes must agree: heads, states <= n, length in (blocks - 1) c + 1 .. blocks c. If dense, the gate is not read.
 *   transition   if dense, `[heads]` pointers to A_0, [states, states], contiguous; else null
 *   transition_stride   if dense, A_t lies t times this many numbers further; 0 where all tokens share one matrix
 *
 * ESS_ERR_NULL, ESS_ERR_SIZE, ESS_ERR_WORKSPACE, ESS_ERR_LEVEL. */
ESS_API int64_t ess_recurrence_parts_workspace(const ess_run *run, const ess_recurrence *parts,
                                               const ess_tokens *tokens, const double *const *transition,
                                               int64_t transition_stride);
ESS_API int32_t ess_recurrence_parts(const ess_run *run, const ess_recurrence *parts, const ess_tokens *tokens,
                                     const double *const *transition, int64_t transition_stride);

/* How many singular values of H_i exceed tolerances, at every position of the wanted blocks. About
 * n^3 + 5 n^2 c a block and (n^3 / 3 + 2 n^2 c + 2 n c^2 + 1.2 c^3) a block and tolerance.
 *
 *   tokens       null: the parts are filled. Else they are filled first, as by ess_recurrence_parts (diagonal transitions
 *                only), to the same bits but in less time: blocks are counted while the forward scan goes on
 *   length       positions; (blocks - 1) c < length <= blocks c
 *   tolerances   how many, at least 1
 *   tau          [heads, tolerances, blocks], positive
 *   wanted       [heads, tolerances, blocks], not 0 where a block is to be done
 *   counts       [heads, tolerances, length], written for all positions of wanted blocks, as are the next two
 *   growth       the largest update of a diagonal entry in units of tau: times 2^-52, the relative width around tau within
 *                which a singular value could have been miscounted; infinite or NaN: no answer
 *   least        the smallest of the eliminated rows' largest entries in units of tau, at most 1: near zero, tau is a
 *                singular value, and the sign of a pivot says nothing
 */
ESS_API int64_t ess_recurrence_counts_workspace(const ess_run *run, const ess_recurrence *parts,
                                                const ess_tokens *tokens, int64_t length, int64_t tolerances,
                                                const double *tau, const uint8_t *wanted, double *counts,
                                                double *growth, double *least);
ESS_API int32_t ess_recurrence_counts(const ess_run *run, const ess_recurrence *parts, const ess_tokens *tokens,
                                      int64_t length, int64_t tolerances, const double *tau, const uint8_t *wanted,
                                      double *counts, double *growth, double *least);

/* Roots of the observability Gramians at every block's right edge, by QR, in O(blocks n^2 c) flops.
 *
 *   parts, tokens, transition, transition_stride   as in ess_recurrence_parts, which has filled the parts
 *   observe_roots               [n, n] a block, aligned to 64 bytes: G lower triangular, G G^T = Q
 */
ESS_API int64_t ess_recurrence_observe_roots_workspace(const ess_run *run, const ess_recurrence *parts,
                                                       const ess_tokens *tokens, const double *const *transition,
                                                       int64_t transition_stride, double *observe_roots);
ESS_API int32_t ess_recurrence_observe_roots(const ess_run *run, const ess_recurrence *parts, const ess_tokens *tokens,
                                             const double *const *transition, int64_t transition_stride,
                                             double *observe_roots);

/* As ess_recurrence_counts, without squaring anything: errors are in proportion to s_1 / tau instead of its square, as long
 * as directions that are hardly seen from a block's right edge are not much stronger inside it; the growth tells. About
 * 3.5 n^3 + 4 n^2 c a block, and (8/3 n^3 + 4 n^2 c + 4 n c^2 + 1.4 c^4) a block and tolerance.
 *
 *   observe_roots      from ess_recurrence_observe_roots
 *   outsides           [(n + 8) (n + c) + (c + 8) n + 8] a block, aligned to 64 bytes: factors that no tolerance changes
 *   made               [heads, blocks], not 0 where they are there; the others that are needed are made, and marked
 *   least              also zero where an eigenvalue of a position's own matrix is as good as zero
 */
ESS_API int64_t ess_recurrence_unsquared_counts_workspace(const ess_run *run, const ess_recurrence *parts,
                                                          const double *observe_roots, double *outsides, uint8_t *made,
                                                          int64_t length, int64_t tolerances, const double *tau,
                                                          const uint8_t *wanted, double *counts, double *growth,
                                                          double *least);
ESS_API int32_t ess_recurrence_unsquared_counts(const ess_run *run, const ess_recurrence *parts,
                                                const double *observe_roots, double *outsides, uint8_t *made,
                                                int64_t length, int64_t tolerances, const double *tau,
                                                const uint8_t *wanted, double *counts, double *growth, double *least);

/* n x n matrices with the singular values of H_i at chosen positions, to a few 2^-52 s_1: about 3 n^2 c flops a block that
 * is asked for, 3 n^2 + n^3 a position (dense transitions 6 n^3).
 *
 *   observe_roots      from ess_recurrence_observe_roots
 *   count              how many, at least 1
 *   heads, positions   [count], sorted by head, then by position; 1 <= position < length
 *   products           [count][n, n], aligned to 64 bytes
 */
ESS_API int64_t ess_recurrence_root_products_workspace(const ess_run *run, const ess_recurrence *parts,
                                                       const ess_tokens *tokens, const double *const *transition,
                                                       int64_t transition_stride, double *observe_roots, int64_t count,
                                                       const int64_t *heads, const int64_t *positions,
                                                       double *products);
ESS_API int32_t ess_recurrence_root_products(const ess_run *run, const ess_recurrence *parts, const ess_tokens *tokens,
                                             const double *const *transition, int64_t transition_stride,
                                             double *observe_roots, int64_t count, const int64_t *heads,
                                             const int64_t *positions, double *products);

#define ESS_MAX_NODES 64
#define ESS_LEAST_NODE 1e-20

/* Nodes and weights of a quadrature: sums over k of weight_k log(1 + x / t_k) for x in 0..1.
 *
 *   nodes                       at most ESS_MAX_NODES; ess_recurrence_entropy wants a multiple of 8
 *   t                           [nodes], in units of the scale, at least ESS_LEAST_NODE
 *   total_weight, mixed_weight  [nodes], of root(x) and of root(x) log root(x)
 *   total_error, mixed_error    the largest error of either sum
 *   total_slope, mixed_slope    bounds of how fast either sum changes with x */
typedef struct {
    int64_t nodes;
    const double *t, *total_weight, *mixed_weight;
    double total_error, mixed_error, total_slope, mixed_slope;
} ess_quadrature;

/* Sums over the nodes k of ld_k = log det(I + H_i H_i^T / (t_k scale)) at every position of the wanted blocks. About
 * 2.3 n^3 + 8 n^2 c flops a block and n (3 c^2 + 6 c) + 2 c^3 a block and node.
 *
 *   tokens   null, or what the parts are filled from first, as in ess_recurrence_counts
 *   length   positions; (blocks - 1) c < length <= blocks c
 *   scale    [heads], a bound of the squared largest singular value at all positions; null: every block has its own
 *   wanted   [heads, blocks], not 0 where a block is to be done
 *   total    [heads, length], sum of total_weight_k ld_k, written for all positions of wanted blocks, as are the next two
 *   mixed    sum of mixed_weight_k ld_k
 *   rounding [heads, blocks]: how wrong squared singular values may be by rounding, in units of the scale
 *   unit     [heads, blocks]: the root of the scale
 *
 * All are zero where the scale is, and NaN where the squares of a block overflow. */
ESS_API int64_t ess_recurrence_entropy_workspace(const ess_run *run, const ess_recurrence *parts,
                                                 const ess_tokens *tokens, int64_t length, const double *scale,
                                                 const ess_quadrature *quadrature, const uint8_t *wanted, double *total,
                                                 double *mixed, double *rounding, double *unit);
ESS_API int32_t ess_recurrence_entropy(const ess_run *run, const ess_recurrence *parts, const ess_tokens *tokens,
                                       int64_t length, const double *scale, const ess_quadrature *quadrature,
                                       const uint8_t *wanted, double *total, double *mixed, double *rounding,
                                       double *unit);

#ifdef __cplusplus
}
#endif

#endif /* ESS_RECURRENCE_H */
