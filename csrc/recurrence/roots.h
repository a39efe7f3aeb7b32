// Where elimination must not answer: the n x n matrix whose singular values are those of H_i, without any squaring.
//
// H_i = O_i R_i factors through the state: with triangular roots F F^T = R_i R_i^T and G G^T = O_i^T O_i its singular
// values are those of M_i = G^T F. Both roots come from the block's edges by one Givens update per token.

#pragma once

#include "base/team_work.h"
#include "recurrence/parts.h"
#include "recurrence/scans.h"
#include "recurrence/triangles.h"

namespace ess::ESS_LEVEL::recurrence {
namespace {

// G at the right edge of block b - 1 from the one of block b: G <- tria[Phi^T G, X], [n, n] lower triangular.
inline void observe_root_step(const ess_recurrence &parts, double *G, int64_t number, ScanWork &work) {
    const int64_t n = parts.n, c = parts.c;
    const double *now = G + number * n * n, *Phi = parts.Phi + number * phi_size(parts);
    double *next = G + (number - 1) * n * n;
    int64_t rows = 0;
    if (full_phi(parts)) {
        transpose(n, n, Phi, n, work.full, padded_stride(n));
        multiply<Right::Plain, Update::Set>(
            n, n, work.full, padded_stride(n), now, n, work.rows, n,
            [n](int64_t, int64_t, int64_t j0, int64_t) { return Range{j0 / ROWS * ROWS, n}; });
        memset(next, 0, static_cast<size_t>(n * n) * sizeof(double));
        rows = n;
    } else {
        memcpy(next, now, static_cast<size_t>(n * n) * sizeof(double));
        scale_rows(next, n, Phi);
    }
    memcpy(work.rows + rows * n, parts.X + number * n * c, static_cast<size_t>(n * c) * sizeof(double));
    tria(next, n, work.rows, rows + c, work.reflectors);
}

struct RootsWork {
    BlockTokens tokens;
    ScanWork scan;
    double *F, *column, *transition, *transposed, *observed; // observed: G at every position of the block

    RootsWork(Arena &arena, const ess_recurrence &parts) : RootsWork(arena, parts, parts.n, parts.c) {}

  private:
    RootsWork(Arena &arena, const ess_recurrence &parts, int64_t n, int64_t c)
        : tokens(arena, n, c, parts.transitions == ESS_RANK_ONE), scan(arena, n, c, full_phi(parts)),
          F(arena.take<double>(n * n)), column(arena.take<double>(n)),
          transition(arena.take<double>(has_matrices(parts) ? n * n : 0)), transposed(arena.take<double>(n * n)),
          observed(arena.take<double>(c * n * n)) {}
};

// One token's effect on roots, for every kind of transitions.
struct RootSteps {
    const ess_recurrence_parts_job &job;
    int64_t head, block;
    RootsWork &work;

    int64_t n() const { return job.parts->n; }

    // F <- A_t F, or F <- A_t^T F (`transposed`): for a matrix with a triangle made anew.
    void move(double *F, int64_t t, bool transposed) {
        const int64_t n = this->n(), start = block * job.parts->c;
        if (!has_matrices(*job.parts)) {
            const double *factor = work.tokens.factor + t * n;
            if (!work.tokens.lookup) return scale_rows(F, n, factor);
            const double *lookup = work.tokens.lookup + t * n, *replace = work.tokens.replace + t * n;
            if (transposed) move_rank_one(F, n, factor, lookup, replace, work.column);
            else move_rank_one(F, n, factor, replace, lookup, work.column);
            return;
        }
        if (start + t >= job.tokens->length) return;
        const int64_t states = job.tokens->states;
        const bool columns = job.parts->transitions == ESS_COLUMN_MAJOR;
        const double *A = job.transition[head] + (start + t) * job.transition_stride;
        // column-major A, or A^T, with the identity in padded coordinates
        double *M = work.transition;
        for (int64_t j = 0; j < n; j++) {
            for (int64_t i = 0; i < n; i++) {
                const bool inside = i < states && j < states;
                M[i + j * n] = inside ? (transposed == columns ? A[i * states + j] : A[j * states + i]) : i == j;
            }
        }
        multiply<Right::Plain, Update::Set>(
            n, n, M, n, F, n, work.scan.rows, n,
            [n](int64_t, int64_t, int64_t j0, int64_t) { return Range{j0 / ROWS * ROWS, n}; });
        memset(F, 0, static_cast<size_t>(n * n) * sizeof(double));
        tria(F, n, work.scan.rows, n, work.scan.reflectors);
    }

    void add(double *F, const double *token) {
        for (int64_t i = 0; i < n(); i += W) store(work.column + i, load(token + i));
        add_column(F, n(), work.column);
    }

    // O_i from O_{i+1}: row i is c_i A_i, or c_i where reads come before the transition.
    void observe(double *G, int64_t t) {
        const double *read = work.tokens.read + t * n();
        if (!job.tokens->reads_before) add(G, read);
        move(G, t, true);
        if (job.tokens->reads_before) add(G, read);
    }

    // R_{i+1} from R_i
    void reach(double *F, int64_t t) {
        move(F, t, false);
        add(F, work.tokens.write + t * n());
    }
};

// The products of the positions first..last-1 of the job's list, all of one block, in ascending order.
inline void block_root_products(const ess_recurrence_root_products_job &job, int64_t first, int64_t last,
                                RootsWork &work) {
    const ess_recurrence &parts = *job.roots.made.parts;
    const int64_t n = parts.n, c = parts.c, head = job.heads[first], block = job.positions[first] / c;
    const int64_t number = head * parts.blocks + block, start = block * c;
    const size_t bytes = static_cast<size_t>(n * n) * sizeof(double);
    read_tokens(*job.roots.made.tokens, head, block, !has_matrices(parts), work.tokens);
    RootSteps steps{job.roots.made, head, block, work};

    // downwards: what later rows see, kept at every position down to the first that is asked for
    double *G = work.observed + (c - 1) * n * n;
    memcpy(G, job.roots.observe_roots + number * n * n, bytes);
    for (int64_t t = c - 1;; t--) {
        steps.observe(G, t);
        if (t == job.positions[first] - start) break;
        memcpy(G - n * n, G, bytes);
        G -= n * n;
    }
    // upwards: what earlier columns reach
    memcpy(work.F, parts.F + number * n * n, bytes);
    int64_t t = 0;
    for (int64_t q = first; q < last; q++) {
        for (; start + t < job.positions[q]; t++) steps.reach(work.F, t);
        G = work.observed + t * n * n;
        // M = G^T F: both triangles, so that k starts at the larger of row and column
        transpose(n, n, G, n, work.transposed, n);
        multiply<Right::Plain, Update::Set>(n, n, work.transposed, n, work.F, n, job.products + q * n * n, n,
                                            [n](int64_t i0, int64_t, int64_t j0, int64_t) {
                                                const int64_t k = i0 > j0 ? i0 : j0;
                                                return Range{k / ROWS * ROWS, n};
                                            });
    }
}

// G at the right edge of every block of every head.
inline int64_t observe_roots(const ess_recurrence_observe_roots_job &job, int32_t threads, void *workspace) {
    Arena shared(workspace);
    const ess_recurrence &parts = *job.made.parts;
    const int64_t size = parts.n * parts.n;
    TaskCounter heads(parts.heads);
    auto body = [&](RootsWork &work) {
        FlushDenormals flush;
        for (int64_t h = heads.take(); h >= 0; h = heads.take()) {
            const int64_t first = h * parts.blocks, last = first + parts.blocks - 1;
            memset(job.observe_roots + last * size, 0, static_cast<size_t>(size) * sizeof(double));
            for (int64_t b = last; b > first; b--) observe_root_step(parts, job.observe_roots, b, work.scan);
        }
    };
    return run_with<RootsWork>(shared, threads, body, parts);
}

inline int64_t root_products(const ess_recurrence_root_products_job &job, int32_t threads, void *workspace) {
    Arena shared(workspace);
    const ess_recurrence &parts = *job.roots.made.parts;
    auto block_of = [&](int64_t q) { return job.heads[q] * parts.blocks + job.positions[q] / parts.c; };
    // a task is a block with some of its positions: it belongs to the first of them
    TaskCounter tasks(job.count);
    auto body = [&](RootsWork &work) {
        FlushDenormals flush;
        for (int64_t q = tasks.take(); q >= 0; q = tasks.take()) {
            if (q > 0 && block_of(q) == block_of(q - 1)) continue;
            int64_t last = q + 1;
            while (last < job.count && block_of(last) == block_of(q)) last++;
            block_root_products(job, q, last, work);
        }
    };
    return run_with<RootsWork>(shared, threads, body, parts);
}

} // namespace
} // namespace ess::ESS_LEVEL::recurrence
