// Counts at tolerances so small that squares of singular values have drowned in rounding errors: the same elimination
// of a block's outside, on the roots themselves.
//
// With G G^T = Q at the right edge and F F^T = P at the left one, H_i of a position in the block has the singular
// values of
//
//     [ M      G^T Z_i ]        M = G^T Phi F,
//     [ X_i F  Y_i     ]
//
// rows and columns of the block as far as the position has them. A symmetric matrix [[-tau, H], [H^T, -tau]] has as
// many positive eigenvalues as H has singular values above tau. Its rows and columns of M are eliminated, in an order
// in which that is stable: M P = H^T R by QR with column pivoting, then pair by pair the k-th row and column of R,
// turned by 45 degrees, so that the pivots are R_kk - tau and -R_kk - tau. What is left is the leaf (leaves/inertia.h).
//
// Errors are in proportion to s_1 instead of s_1^2 / tau, unless directions that M hardly sees are strongly coupled to
// the block's own tokens; the growth tells.

#pragma once

#include "base/team_work.h"
#include "dense/pivoted_qr.h"
#include "leaves/inertia.h"
#include "recurrence/counts.h"

namespace ess::ESS_LEVEL::recurrence {
using namespace dense;
using namespace leaves;
namespace {

// A block's outside, factorised: where it lies in the caller's memory.
struct OutsideFactors {
    int64_t ldm, ldx;
    double *M;    // [n, n + c]: R, then H G^T Z
    double *XF;   // [c, n]: X F P, rows reversed
    double *norm; // of all that H_i consists of, Frobenius

    OutsideFactors(double *memory, int64_t n, int64_t c)
        : ldm(padded_stride(n)), ldx(padded_stride(c)), M(memory), XF(M + ldm * (n + c)), norm(XF + ldx * n) {}
};

struct UnsquaredWork {
    int64_t n, c, m, lda, ldm, ldx;
    double *G;      // [n, n]: G^T
    double *F;      // [n, n]: Phi F
    double *X, *XF; // [c, n], rows reversed
    double *A, *L, *d, *growth, *qr;
    int64_t *order;
    InertiaLeaf leaf;

    UnsquaredWork(Arena &arena, int64_t n, int64_t c)
        : n(n), c(c), m(2 * n + 2 * c), lda(padded_stride(m)), ldm(padded_stride(n)), ldx(padded_stride(c)),
          G(arena.take<double>(ldm * n)), F(arena.take<double>(ldm * n)), X(arena.take<double>(ldx * n)),
          XF(arena.take<double>(ldx * n)), A(arena.take<double>(lda * m)), L(arena.take<double>(lda * 2 * n)),
          d(arena.take<double>(2 * n)), growth(arena.take<double>(m)), qr(arena.take<double>(pivoted_qr_work(n, c))),
          order(arena.take<int64_t>(n)), leaf(arena, c) {}
};

// M, G^T Z and X F of a block, M factorised. About 3.5 n^3 + 4 n^2 c flops (2 n^3 more where Phi is a matrix).
inline void factor_outside(const ess_recurrence &parts, const double *observe_roots, int64_t number,
                           UnsquaredWork &work, const OutsideFactors &out) {
    const int64_t n = work.n, c = work.c, ldm = work.ldm, ldx = work.ldx;
    const double *F = parts.F + number * n * n, *Phi = parts.Phi + number * phi_size(parts);
    const bool dense = full_phi(parts);
    transpose(n, n, observe_roots + number * n * n, n, work.G, ldm);
    if (dense) {
        multiply<Right::Plain, Update::Set>(
            n, n, Phi, n, F, n, work.F, ldm,
            [n](int64_t, int64_t, int64_t j0, int64_t) { return Range{j0 / ROWS * ROWS, n}; });
    } else {
        for (int64_t j = 0; j < n; j++) {
            for (int64_t i = 0; i < n; i += W) store(work.F + i + j * ldm, load(F + i + j * n) * load(Phi + i));
        }
    }
    multiply<Right::Plain, Update::Set>(n, n, work.G, ldm, work.F, ldm, out.M, ldm,
                                        [=](int64_t i0, int64_t, int64_t j0, int64_t) {
                                            const int64_t k = dense || i0 > j0 ? i0 : j0;
                                            return Range{k / ROWS * ROWS, n};
                                        });
    multiply<Right::Plain, Update::Set>(
        n, c, work.G, ldm, parts.Z + number * n * c, n, out.M + n * ldm, ldm,
        [n](int64_t i0, int64_t, int64_t, int64_t) { return Range{i0 / ROWS * ROWS, n}; });
    transpose(n, c, parts.X + number * n * c + (c - 1) * n, -n, work.X, ldx);
    multiply<Right::Plain, Update::Set>(
        c, n, work.X, ldx, F, n, work.XF, ldx,
        [n](int64_t, int64_t, int64_t j0, int64_t) { return Range{j0 / ROWS * ROWS, n}; });
    *out.norm = std::sqrt(sum_of_squares(out.M, ldm, n, n + c) + sum_of_squares(work.XF, ldx, c, n) +
                          sum_of_squares(parts.Y + number * c * c, c, c, c));
    pivoted_qr(n, c, out.M, ldm, work.order, work.qr);
    for (int64_t k = 0; k < n; k++) {
        memcpy(out.XF + k * ldx, work.XF + work.order[k] * ldx, static_cast<size_t>(c) * sizeof(double));
    }
}

// A = [[-1, H], [H^T, -1]] of a block's outside and its own rows (reversed) and columns, in units of tau: lower
// triangle, whole tiles on the diagonal.
inline void assemble_unsquared(const OutsideFactors &outside, const double *Y, double tau, UnsquaredWork &work) {
    constexpr int64_t PAIRS = ROWS / 2; // a tile on the diagonal holds so many
    const int64_t n = work.n, c = work.c, lda = work.lda, ldm = work.ldm;
    const double inverse_tau = 1 / tau, half = 0.5 * inverse_tau, turned = std::sqrt(0.5) * inverse_tau;
    for (int64_t k = 0; k < n; k++) {
        double *plus = work.A + 2 * k * lda, *minus = plus + lda; // of row k + column k, and of their difference
        const double pivot = outside.M[k + k * ldm] * inverse_tau;
        plus[2 * k] = pivot - 1;
        minus[2 * k + 1] = -pivot - 1;
        plus[2 * k + 1] = minus[2 * k] = 0;
        for (int64_t j = k + 1; j < n; j++) {
            const double x = outside.M[k + j * ldm] * half;
            plus[2 * j] = minus[2 * j] = x;
            plus[2 * j + 1] = minus[2 * j + 1] = -x;
            if (j / PAIRS != k / PAIRS) continue;
            double *later = work.A + 2 * j * lda;
            later[2 * k] = later[2 * k + 1] = x;
            later[lda + 2 * k] = later[lda + 2 * k + 1] = -x;
        }
        const double *reads = outside.XF + k * work.ldx;
        for (int64_t r = 0; r < c; r += W) {
            const V x = load(reads + r) * turned;
            store(plus + 2 * n + r, x);
            store(minus + 2 * n + r, -x);
        }
        for (int64_t j = 0; j < c; j++) {
            plus[2 * n + c + j] = minus[2 * n + c + j] = outside.M[k + (n + j) * ldm] * turned;
        }
    }
    for (int64_t r = 0; r < c; r++) {
        double *row = work.A + 2 * n + (2 * n + r) * lda, *column = row + c * lda;
        fill(row, 0, c);
        for (int64_t j = 0; j < c; j += W) store(row + c + j, load(Y + r * c + j) * inverse_tau);
        fill(column, 0, 2 * c);
        row[r] = column[c + r] = -1;
    }
}

// The positions of one block from its eliminated matrix; `growth` and `least` are what the elimination found.
inline void count_positions(const ess_recurrence_counts_job &job, int64_t place, int64_t present, double positive,
                            double growth, double least, UnsquaredWork &work) {
    const int64_t n = work.n, lda = work.lda;
    for (int64_t first = 0; first < present; first += W) {
        V above, grown = all(growth);
        Mask<double> tie;
        work.leaf.count(work.A + 2 * n + 2 * n * lda, lda, first, grown, above, tie);
        for (int l = 0; l < W && first + l < present; l++) {
            job.counts[place + first + l] = positive + above[l];
            job.growth[place + first + l] = grown[l] <= 1e300 ? grown[l] : HUGE_VAL;
            job.least[place + first + l] = tie[l] ? 0 : least;
        }
    }
}

// All wanted tolerances of one block: its outside is factorised once, and kept for other calls.
inline void count_unsquared(const ess_recurrence_unsquared_counts_job &unsquared, int64_t number, UnsquaredWork &work) {
    const ess_recurrence_counts_job &job = unsquared.counts;
    const ess_recurrence &parts = *job.parts;
    const int64_t head = number / parts.blocks, block = number % parts.blocks;
    const int64_t n = work.n, c = work.c, start = block * c, left = job.length - start;
    const OutsideFactors outside(unsquared.outsides + number * outside_size(n, c), n, c);
    for (int64_t s = 0; s < job.tolerances; s++) {
        const int64_t pair = (head * job.tolerances + s) * parts.blocks + block;
        if (!job.wanted[pair]) continue;
        if (!unsquared.made[number]) factor_outside(parts, unsquared.observe_roots, number, work, outside);
        unsquared.made[number] = 1;
        assemble_unsquared(outside, parts.Y + number * c * c, job.tau[pair], work);
        fill(work.growth, *outside.norm / job.tau[pair], work.m);
        eliminate(work.A, work.lda, work.m, 2 * n, work.L, work.lda, work.d, work.growth, ReadByLeaf{c});
        count_positions(job, (head * job.tolerances + s) * job.length + start, left < c ? left : c,
                        positive_pivots(work.d, 2 * n), largest_growth(work.growth, work.m),
                        least_eliminated(work.A, work.lda, work.m, 2 * n, work.d), work);
    }
}

inline int64_t unsquared_counts(const ess_recurrence_unsquared_counts_job &job, int32_t threads, void *workspace) {
    Arena shared(workspace);
    const ess_recurrence &parts = *job.counts.parts;
    TaskCounter blocks(blocks_of(parts));
    auto body = [&](UnsquaredWork &work) {
        FlushDenormals flush;
        for (int64_t b = blocks.take(); b >= 0; b = blocks.take()) count_unsquared(job, b, work);
    };
    return run_with<UnsquaredWork>(shared, threads, body, parts.n, parts.c);
}

} // namespace
} // namespace ess::ESS_LEVEL::recurrence
