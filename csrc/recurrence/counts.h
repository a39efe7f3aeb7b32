// Counts of singular values above tolerances at every position of a recurrence.
//
// Per block and tolerance, in units of the tolerance: [[S - I], [X F, -I], [Z^T Q Phi F, Y, Z^T Q Z - I]]
// (recurrence/boundary.h, divided by tau once or twice) is eliminated up to the block's own rows and columns: n pivots,
// of which the positive ones are the singular values of T[e:, :a] above tau. What is left is the leaf (leaves/leaf.h),
// W of them side by side.

#pragma once

#include "leaves/counts.h"
#include "recurrence/boundary.h"
#include "recurrence/tasks.h"

namespace ess::ESS_LEVEL::recurrence {
using namespace leaves;
namespace {

// Leaves on their way into lanes.
struct Leaves {
    int64_t c;
    double *waiting; // [W][3 c][c]: a node's R, K and C
    V *R, *K, *C, *work, *counts, *growths, *leasts;
    double before[W], growth[W], least[W]; // what the boundary brought
    int64_t head[W], block[W], tolerance[W];
    int filled = 0;

    Leaves(Arena &arena, int64_t c)
        : c(c), waiting(arena.take<double>(W * 3 * c * c)), R(arena.take<V>(c * c)), K(arena.take<V>(c * c)),
          C(arena.take<V>(c * c)), work(arena.take<V>(leaf_work(c))), counts(arena.take<V>(c)),
          growths(arena.take<V>(c)), leasts(arena.take<V>(c)) {}

    // Keeps the Schur complement [[R], [K, C]] (column-major, lower) of one more node.
    void add(const double *schur, int64_t ld) {
        double *r = waiting + filled * 3 * c * c, *k = r + c * c, *q = k + c * c;
        for (int64_t j = 0; j < c; j++) {
            const double *rows = schur + j * ld, *columns = schur + c + (c + j) * ld;
            for (int64_t i = 0; i < c; i += W) {
                store(r + j * c + i, load(rows + i));
                store(k + j * c + i, load(rows + c + i));
                store(q + j * c + i, load(columns + i));
            }
        }
        filled++;
    }

    // Every node into a lane: W numbers of every node at once, instead of a cache line for every number.
    void interleave() const {
        for (int64_t j = 0; j < c; j++) {
            interleave(0, j, j, c, R);
            interleave(1, j, 0, c - 1 - j, K);
        }
        interleave_columns(C);
    }

    void interleave_columns(V *target) const {
        for (int64_t j = 0; j < c; j++) interleave(2, j, j, c, target);
    }

  private:
    // Rows begin .. end of column j of one of the three matrices.
    void interleave(int64_t matrix, int64_t j, int64_t begin, int64_t end, V *lanes) const {
        for (int64_t i = begin / W * W; i < end; i += W) {
            V tile[W];
            ESS_UNROLL
            for (int l = 0; l < W; l++) {
                const int64_t node = l < filled ? l : 0; // lanes that hold none repeat the first
                tile[l] = load(waiting + ((node * 3 + matrix) * c + j) * c + i);
            }
            transpose_tile(tile);
            ESS_UNROLL
            for (int l = 0; l < W; l++) lanes[j * c + i + l] = tile[l];
        }
    }
};

struct CountsWork {
    RecurrenceWork making;
    Boundary boundary;
    Leaves leaves;
    double *A, *L, *d, *growth;

    CountsWork(Arena &arena, const ess_recurrence &parts, const ess_recurrence_parts_job *making)
        : making(arena, parts, making), boundary(arena, parts.n, parts.c), leaves(arena, parts.c),
          A(arena.take<double>(boundary.lda * boundary.m)), L(arena.take<double>(boundary.lda * parts.n)),
          d(arena.take<double>(parts.n)), growth(arena.take<double>(boundary.m)) {}
};

// A = boundary in units of tau, with the diagonal of the empty block.
inline void scale_boundary(const Boundary &b, const double *Y, double tau, double *A, double *growth) {
    const int64_t n = b.n, c = b.c, lda = b.lda;
    const V once = all(1 / tau), twice = all(1 / tau / tau);
    auto copy = [=](double *target, const double *source, int64_t begin, int64_t end, V factor) {
        for (int64_t i = begin; i < end; i += W) store(target + i, load(source + i) * factor);
    };
    for (int64_t j = 0; j < n; j++) {
        double *a = A + j * lda;
        const double *source = b.A + j * lda;
        copy(a, source, j / ROWS * ROWS, n, twice);
        copy(a, source, n, n + c, once);
        copy(a, source, n + c, n + 2 * c, twice);
        a[j] -= 1;
    }
    for (int64_t r = 0; r < c; r++) {
        double *rows = A + n + (n + r) * lda, *columns = A + n + c + (n + c + r) * lda;
        fill(rows, 0, c);
        rows[r] = -1;
        copy(rows + c, Y + r * c, 0, c, once);
        copy(columns, b.A + n + c + (n + c + r) * lda, r / ROWS * ROWS, c, twice);
        columns[r] -= 1;
    }
    for (int64_t i = 0; i < b.m; i += W) store(growth + i, load(b.magnitude + i) * twice);
}

// The smallest of the largest entries of the eliminated rows, where a pivot is small enough to make it matter.
inline double least_eliminated(const double *A, int64_t lda, int64_t m, int64_t pivots, const double *d) {
    double least = 1;
    for (int64_t k = 0; k < pivots; k++) {
        double most = std::fabs(d[k]);
        if (!(most < SMALL_PIVOT)) continue;
        for (int64_t i = k + 1; i < m; i++) most = max(most, std::fabs(A[i + k * lda]));
        least = min(least, most);
    }
    return least;
}

// Which tiles of the Schur complement on a block's rows and columns are read: of K only j + r < c - 1.
struct ReadByLeaf {
    int64_t c;
    bool operator()(int64_t i0, int64_t, int64_t j0, int64_t j1) const {
        return !(i0 >= c && j1 <= c) || i0 - c + j0 < c - 1;
    }
};

inline double positive_pivots(const double *d, int64_t count) {
    double positive = 0;
    for (int64_t k = 0; k < count; k++) positive += d[k] > 0;
    return positive;
}

// Infinite where there is no answer.
inline double largest_growth(const double *growth, int64_t m) {
    double largest = 0;
    for (int64_t i = 0; i < m; i++) largest = max(largest, growth[i]);
    return largest <= 1e300 ? largest : HUGE_VAL;
}

inline void finish_leaves(const ess_recurrence_counts_job &job, Leaves &leaves) {
    if (leaves.filled == 0) return;
    const int64_t c = leaves.c;
    leaves.interleave();
    V growth = V{}, least = all(1.0);
    for (int l = 0; l < leaves.filled; l++) {
        growth[l] = leaves.growth[l];
        least[l] = leaves.least[l];
    }
    leaf_counts(static_cast<int>(c), leaves.R, leaves.K, leaves.C, leaves.work, growth, least,
                [&](V *target) { leaves.interleave_columns(target); }, {leaves.counts, leaves.growths, leaves.leasts});
    for (int l = 0; l < leaves.filled; l++) {
        const int64_t start = leaves.block[l] * c, left = job.length - start, present = left < c ? left : c;
        const int64_t place = (leaves.head[l] * job.tolerances + leaves.tolerance[l]) * job.length + start;
        for (int64_t s = 0; s < present; s++) {
            job.counts[place + s] = leaves.before[l] + leaves.counts[s][l];
            job.growth[place + s] = leaves.growths[s][l];
            job.least[place + s] = leaves.leasts[s][l];
        }
    }
    leaves.filled = 0;
}

// All wanted tolerances of one block: its boundary is made once.
inline void count_block(const ess_recurrence_counts_job &job, int64_t number, CountsWork &work) {
    const ess_recurrence &parts = *job.parts;
    const int64_t head = number / parts.blocks, block = number % parts.blocks;
    const Boundary &boundary = work.boundary;
    const int64_t n = boundary.n, c = boundary.c, m = boundary.m, lda = boundary.lda;
    bool assembled = false;
    for (int64_t s = 0; s < job.tolerances; s++) {
        const int64_t pair = (head * job.tolerances + s) * parts.blocks + block;
        if (!job.wanted[pair]) continue;
        if (!assembled) work.boundary.assemble(parts, number);
        assembled = true;
        scale_boundary(boundary, parts.Y + number * c * c, job.tau[pair], work.A, work.growth);
        eliminate(work.A, lda, m, n, work.L, lda, work.d, work.growth, ReadByLeaf{c});
        Leaves &leaves = work.leaves;
        const int l = leaves.filled;
        leaves.before[l] = positive_pivots(work.d, n);
        leaves.growth[l] = largest_growth(work.growth, m);
        leaves.least[l] = least_eliminated(work.A, lda, m, n, work.d);
        leaves.head[l] = head;
        leaves.block[l] = block;
        leaves.tolerance[l] = s;
        leaves.add(work.A + n + n * lda, lda);
        if (leaves.filled == W) finish_leaves(job, leaves);
    }
}

inline int64_t counts(const ess_recurrence_counts_job &job, int32_t threads, void *workspace) {
    Arena shared(workspace);
    const Making making(job);
    RecurrenceTasks tasks(shared, *job.parts, making.job(), true, threads);
    auto body = [&](CountsWork &work) {
        FlushDenormals flush;
        tasks.share(work.making, [&](int64_t number) { count_block(job, number, work); });
        finish_leaves(job, work.leaves);
    };
    return run_with<CountsWork>(shared, threads, body, *job.parts, making.job());
}

} // namespace
} // namespace ess::ESS_LEVEL::recurrence
