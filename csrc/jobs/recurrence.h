// What the kernels for recurrences are asked to do; plain data, the same at every dispatch level.

#pragma once

#include <cstdint>

#include "include/ess_tokens.h"

namespace ess {

// A recurrence of `heads` heads cut into `blocks` blocks of `c` tokens. State size n is padded to a multiple of ROWS
// (with coordinates that are never written), the last block with zero tokens. Block b of head h is number h * blocks +
// b of every array; see algorithms in recurrence/parts.h and recurrence/scans.h.
struct RecurrenceParts {
    int64_t heads, blocks, n, c;
    bool dense;  // Phi is a matrix
    double *X;   // [n, c] column-major: token r's read-out seen from the block's left edge in column r
    double *Z;   // [n, c]: token j's write carried to the right edge in column j
    double *Y;   // [c, c]: Y[j + r c] = T[a + c - 1 - r, a + j], rows reversed, zero on and above T's diagonal
    double *Phi; // [n], or [n, n] column-major
    double *F;   // [n, n] lower triangular root of the reachability Gramian at the left edge, zeros above the diagonal
    double *Q;   // [n, n] observability Gramian at the right edge, its lower triangle
    double *norms; // [1] the largest Frobenius norm of the block's transitions, where they are dense; or null

    int64_t count() const { return heads * blocks; }
    int64_t phi_size() const { return dense ? n * n : n; }
};

// Fills X, Z, Y, Phi, F and Q from tokens; `transition` instead of a gate where transitions are dense.
struct RecurrencePartsJob {
    RecurrenceParts parts;
    ess_tokens tokens;
    const double *const *transition; // [heads] pointers to A_0, [states, states], or null
    int64_t transition_stride;       // from A_t to A_{t+1}
    bool columns;                    // they are column-major
    int32_t threads;
    void *workspace;
};

// Counts of singular values above tolerances at every position.
struct RecurrenceCountsJob {
    RecurrenceParts parts;
    const RecurrencePartsJob *making; // what fills the parts first; null: they are filled
    int64_t length, tolerances;
    const double *tau;               // [heads, tolerances, blocks]
    const uint8_t *wanted;           // the same: which blocks are to be done at which tolerance
    double *counts, *growth, *least; // [heads, tolerances, length], written where wanted
    int32_t threads;
    void *workspace;
};

// The same where squares of the tolerances are lost in rounding.
struct RecurrenceUnsquaredJob {
    RecurrenceCountsJob counts;
    const double *observe_roots; // [n, n] a block: lower triangular root of Q at its right edge
    double *outsides;            // [unsquared_outside(n, c)] a block: see OutsideFactors in recurrence/unsquared.h
    uint8_t *made;               // [heads, blocks]: which of them are there
};

// n + 8 and c + 8 keep columns out of each other's cache sets
constexpr int64_t unsquared_outside(int64_t n, int64_t c) { return (n + 8) * (n + c) + (c + 8) * n + 8; }

// Matrices with the singular values of H_i at some positions.
struct RecurrenceRootsJob {
    RecurrencePartsJob parts;
    double *observe_roots; // [n, n] a block: lower triangular root of Q at its right edge
    int64_t count;
    const int64_t *heads, *positions; // [count], in ascending order
    double *products;                 // [count][n, n] column-major
};

// Sums over a quadrature's nodes t_k of log det(I + H H^T / (t_k scale)) at every position.
struct RecurrenceEntropyJob {
    RecurrenceParts parts;
    const RecurrencePartsJob *making; // as above
    int64_t length;
    const double *scale; // [heads], bounds of the squared largest singular value; null: every block has its own
    int64_t nodes;       // a multiple of ROWS
    const double *t, *total_weight, *mixed_weight; // [nodes]
    const uint8_t *wanted;                         // [heads, blocks]
    double *total, *mixed;                         // [heads, length], written where wanted
    double *rounding, *unit; // [heads, blocks], error of the squares in units of the scale, and the root of that
    int32_t threads;
    void *workspace;
};

// How large a recurrence's numbers are.
struct SurveyJob {
    ess_tokens tokens;
    double *read_peak, *write_peak; // [heads]
    uint8_t *fair;                  // [heads]
    int32_t threads;
    void *workspace;
};

// By how much rounding may have spoilt a recurrence's states.
struct LostJob {
    ess_tokens tokens;
    int64_t group; // tokens
    double *lost;  // [heads, groups]
    int32_t threads;
    void *workspace;

    int64_t groups() const { return (tokens.length + group - 1) / group; }
};

struct RecurrenceKernels {
    int64_t (*parts_workspace)(const RecurrencePartsJob &);
    void (*parts)(const RecurrencePartsJob &);
    int64_t (*counts_workspace)(const RecurrenceCountsJob &);
    void (*counts)(const RecurrenceCountsJob &);
    int64_t (*unsquared_workspace)(const RecurrenceUnsquaredJob &);
    void (*unsquared)(const RecurrenceUnsquaredJob &);
    int64_t (*entropy_workspace)(const RecurrenceEntropyJob &);
    void (*entropy)(const RecurrenceEntropyJob &);
    int64_t (*roots_workspace)(const RecurrenceRootsJob &);
    void (*observe_roots)(const RecurrenceRootsJob &);
    void (*root_products)(const RecurrenceRootsJob &);
    int64_t (*survey_workspace)(const SurveyJob &);
    void (*survey)(const SurveyJob &);
    int64_t (*lost_workspace)(const LostJob &);
    void (*lost)(const LostJob &);
};

} // namespace ess
