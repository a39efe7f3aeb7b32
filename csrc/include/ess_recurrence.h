/* Recurrences with a finite state: block parts and boundary scans, then counts and entropies at every position.
 *
 * A recurrence of `heads` heads is cut into `blocks` blocks of `c` tokens; the last block is filled up with zero
 * tokens. State size n is padded with coordinates that are never written. Block b of head h is number h * blocks + b of
 * every array. Matrices in the arrays are column-major. */
#ifndef ESS_RECURRENCE_H
#define ESS_RECURRENCE_H

#include "ess_base.h"
#include "ess_quadrature.h"
#include "ess_tokens.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Largest block. */
#define ESS_MAX_BLOCK 64

/* Kinds of transitions: diagonal; matrices, row-major or column-major; diagonal with a rank-one term a token. */
enum { ESS_DIAGONAL = 0, ESS_ROW_MAJOR = 1, ESS_COLUMN_MAJOR = 2, ESS_RANK_ONE = 3 };

/*   heads, blocks   at least 1 each
 *   n               state size, padded to a multiple of 8, at most ESS_MAX_STATES
 *   c               tokens a block: 8, 16, 32 or 64
 *   transitions     ESS_DIAGONAL, ESS_ROW_MAJOR, ESS_COLUMN_MAJOR or ESS_RANK_ONE
 *   reserved        0
 *   X, Z            [n, c] a block: in column r, token r's read-out seen from the left edge; in column j, token j's
 *                   write carried to the right edge
 *   Y               [c, c] a block: Y[j + r * c] = T[a + c - 1 - r, a + j], the block's own rows in reverse order, zero
 *                   on and above T's diagonal
 *   Phi             the product of the block's transitions: [n] a block if they are diagonal, else [n, n]
 *   F               [n, n] a block: lower triangular root of the reachability Gramian at its left edge
 *   Q               [n, n] a block: observability Gramian at its right edge; tiles of 8 x 8 above the diagonal are
 *                   undefined
 *   norms           how large tokens are, unless transitions are diagonal; or null. Of matrices one number a block,
 *                   their largest Frobenius norm. With rank-one terms [c, 4] a block: for each token the norms of its
 *                   read and write, a bound of the 2-norm of its transition, and one of the terms that it is made of,
 *                   (max |d_t| + |a_t| |b_t|) (1 + |a_t| |b_t|)
 *
 * All arrays but the last are aligned to 64 bytes. */
typedef struct {
    int64_t heads, blocks, n, c;
    int32_t transitions, reserved;
    double *X, *Z, *Y, *Phi, *F, *Q, *norms;
} ess_recurrence;

/* Fills all arrays of `parts` from tokens, in O(length n c + blocks n^2 c) flops; rank-one terms O(blocks n^3) more,
 * matrices O(length n^3).
 *
 *   tokens              sizes must agree: heads, states <= n, length in (blocks - 1) c + 1 .. blocks c. With lookups
 *                       where transitions have a rank-one term, and only there. The gate is not read where they are
 *                       matrices
 *   transition          of matrices: `[heads]` pointers to A_0, [states, states], contiguous; else null
 *   transition_stride   of matrices: A_t lies t times this many numbers further; 0 where all tokens share one */
typedef struct {
    const ess_recurrence *parts;
    const ess_tokens *tokens;
    const double *const *transition;
    int64_t transition_stride;
} ess_recurrence_parts_job;
ESS_KERNEL(recurrence_parts);

/* How many singular values of H_i exceed tolerances, at every position of the wanted blocks. About
 * n^3 + 5 n^2 c a block and (n^3 / 3 + 2 n^2 c + 2 n c^2 + 1.2 c^3) a block and tolerance.
 *
 *   tokens       null: the parts are filled. Else they are filled first, as by ess_recurrence_parts (not where
 *                transitions are matrices), to the same bits but in less time: blocks are counted while the forward
 *                scan goes on
 *   length       positions; (blocks - 1) c < length <= blocks c
 *   tolerances   how many, at least 1
 *   tau          [heads, tolerances, blocks], positive
 *   wanted       [heads, tolerances, blocks], not 0 where a block is to be done
 *   counts       [heads, tolerances, length], written for all positions of wanted blocks, as are the next two
 *   growth       the largest update of a diagonal entry in units of tau: times 2^-52, the relative width around tau
 *                within which a singular value could have been miscounted; infinite or NaN: no answer
 *   least        the smallest of the eliminated rows' largest entries in units of tau, at most 1: near zero, tau is a
 *                singular value, and the sign of a pivot says nothing */
typedef struct {
    const ess_recurrence *parts;
    const ess_tokens *tokens;
    int64_t length, tolerances;
    const double *tau;
    const uint8_t *wanted;
    double *counts, *growth, *least;
} ess_recurrence_counts_job;
ESS_KERNEL(recurrence_counts);

/* Roots of the observability Gramians at every block's right edge, by QR, in O(blocks n^2 c) flops.
 *
 *   made            as in the job of ess_recurrence_parts that has filled the parts
 *   observe_roots   [n, n] a block, aligned to 64 bytes: G lower triangular, G G^T = Q */
typedef struct {
    ess_recurrence_parts_job made;
    double *observe_roots;
} ess_recurrence_observe_roots_job;
ESS_KERNEL(recurrence_observe_roots);

/* As ess_recurrence_counts, without squaring anything: errors are in proportion to s_1 / tau instead of its square, as
 * long as directions that are hardly seen from a block's right edge are not much stronger inside it; the growth tells.
 * About 3.5 n^3 + 4 n^2 c a block, and (8/3 n^3 + 4 n^2 c + 4 n c^2 + 1.4 c^4) a block and tolerance.
 *
 *   counts          as above, of parts that are filled: counts.tokens is null. `least` is also zero where an eigenvalue
 *                   of a position's own matrix is as good as zero
 *   observe_roots   from ess_recurrence_observe_roots
 *   outsides        [ess_recurrence_outside_size(n, c)] a block, aligned to 64 bytes: factors that no tolerance changes
 *   made            [heads, blocks], not 0 where they are there; the others that are needed are made, and marked */
typedef struct {
    ess_recurrence_counts_job counts;
    const double *observe_roots;
    double *outsides;
    uint8_t *made;
} ess_recurrence_unsquared_counts_job;
ESS_KERNEL(recurrence_unsquared_counts);

/* How many doubles a block's factors take, or a negative error code where n or c is out of range. */
ESS_API int64_t ess_recurrence_outside_size(int64_t n, int64_t c);

/* n x n matrices with the singular values of H_i at chosen positions, to a few 2^-52 s_1: about 3 n^2 c flops a block
 * that is asked for, 3 n^2 + n^3 a position (with a rank-one term 8 n^2 more, matrices 6 n^3).
 *
 *   roots              the job that has filled observe_roots
 *   count              how many, at least 1
 *   heads, positions   [count], sorted by head, then by position; 1 <= position < length
 *   products           [count][n, n], aligned to 64 bytes */
typedef struct {
    ess_recurrence_observe_roots_job roots;
    int64_t count;
    const int64_t *heads, *positions;
    double *products;
} ess_recurrence_root_products_job;
ESS_KERNEL(recurrence_root_products);

/* Sums over the nodes k of ld_k = log det(I + H_i H_i^T / (t_k scale)) at every position of the wanted blocks. About
 * 2.3 n^3 + 8 n^2 c flops a block and n (3 c^2 + 6 c) + 2 c^3 a block and node.
 *
 *   tokens       null, or what the parts are filled from first, as in ess_recurrence_counts_job
 *   length       positions; (blocks - 1) c < length <= blocks c
 *   scale        [heads], a bound of the squared largest singular value at all positions; null: every block has its own
 *   quadrature   its nodes and weights
 *   wanted       [heads, blocks], not 0 where a block is to be done
 *   total        [heads, length], sum of total_weight_k ld_k, written for all positions of wanted blocks, as are the
 *                next two
 *   mixed        sum of mixed_weight_k ld_k
 *   rounding     [heads, blocks]: how wrong squared singular values may be by rounding, in units of the scale
 *   unit         [heads, blocks]: the root of the scale
 *
 * All are zero where the scale is, and NaN where the squares of a block overflow. */
typedef struct {
    const ess_recurrence *parts;
    const ess_tokens *tokens;
    int64_t length;
    const double *scale;
    const ess_quadrature *quadrature;
    const uint8_t *wanted;
    double *total, *mixed, *rounding, *unit;
} ess_recurrence_entropy_job;
ESS_KERNEL(recurrence_entropy);

#ifdef __cplusplus
}
#endif

#endif /* ESS_RECURRENCE_H */
