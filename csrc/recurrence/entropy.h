// Sums of log-determinants at every position of a recurrence, block by block, all shifts of a block together.

#pragma once

#include "dense/shifts.h"
#include "dense/tridiagonal.h"
#include "leaves/logdet.h"
#include "recurrence/boundary.h"
#include "recurrence/tasks.h"

namespace ess::ESS_LEVEL::recurrence {
using namespace dense;
using namespace leaves;
namespace {

// What a thread needs for one block.
struct EntropyWork {
    RecurrenceWork making;
    Boundary boundary;
    int64_t n, c, lds, ldb, vectors;
    double *S, *B;                                      // the boundary's matrix and the block's rows and columns
    double *gram;                                       // two c x c matrices, padded
    double *Y, *corner, *minus_one;                     // c x c
    double *diagonal, *off, *factor, *reflect, *turned; // tridiagonalisation
    V *root, *link, *shift, *logdet, *packed, *lasts;   // shifts
    V *R, *K, *C, *leaf, *logdets, *sums;

    EntropyWork(Arena &arena, const ess_recurrence &parts, const ess_recurrence_parts_job *making, int64_t nodes)
        : making(arena, parts, making), boundary(arena, parts.n, parts.c), n(parts.n), c(parts.c), lds(n),
          ldb(padded_stride(2 * c)), vectors(nodes / W) {
        S = arena.take<double>(n * lds);
        B = arena.take<double>(n * ldb);
        gram = arena.take<double>(2 * c * padded_stride(c));
        Y = arena.take<double>(c * c);
        corner = arena.take<double>(c * c);
        minus_one = arena.take<double>(c * c);
        diagonal = arena.take<double>(n);
        off = arena.take<double>(n);
        factor = arena.take<double>(n);
        reflect = arena.take<double>(6 * n);
        turned = arena.take<double>(ROWS * padded_stride(2 * c));
        root = arena.take<V>(n * vectors);
        link = arena.take<V>(n * vectors);
        shift = arena.take<V>(vectors);
        logdet = arena.take<V>(vectors);
        packed = arena.take<V>(2 * c * (STATES + 1));
        lasts = arena.take<V>(2 * c);
        R = arena.take<V>(c * leaf_stride(c));
        K = arena.take<V>(c * leaf_stride(c));
        C = arena.take<V>(c * leaf_stride(c));
        leaf = arena.take<V>(logdet_work(c));
        logdets = arena.take<V>(c);
        sums = arena.take<V>(2 * c);
        if (minus_one) {
            for (int64_t i = 0; i < c * c; i++) minus_one[i] = i % (c + 1) == 0 ? -1 : 0;
            for (int64_t i = 0; i < c * leaf_stride(c); i++) R[i] = K[i] = C[i] = V{}; // whole tiles are read
        }
    }
};

// The exponent e for which 4^e <= x < 4^(e + 1); x > 0 and finite.
inline int root_exponent(double x) { return (std::ilogb(x) + 2048) / 2 - 1024; }

inline double trace(int64_t n, const double *A, int64_t lda) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += A[i * (lda + 1)];
    return sum;
}

// A bound of the norm of the symmetric c x c matrix M, within a factor c^(1/4): the square root of the Frobenius norm
// of its square, which goes to `work`, as large as M. 2 c^3 flops.
inline double norm_bound_of_square(int64_t c, const double *M, int64_t ldm, double *work) {
    multiply<Right::Transposed, Update::Set>(c, c, M, ldm, M, ldm, work, ldm,
                                             [c](int64_t, int64_t, int64_t, int64_t) { return Range{0, c}; });
    return std::sqrt(std::sqrt(sum_of_squares(work, ldm, c, c)));
}

// A bound of the squared norm of the c x k matrix A: as above for A A^T, which goes to `gram`. 2 k c^2 flops more.
inline double squared_norm_bound(int64_t c, int64_t k, const double *A, int64_t lda, double *gram, double *work) {
    const int64_t ldg = padded_stride(c);
    multiply<Right::Transposed, Update::Set>(c, c, A, lda, A, lda, gram, ldg,
                                             [k](int64_t, int64_t, int64_t, int64_t) { return Range{0, k}; });
    return norm_bound_of_square(c, gram, ldg, work);
}

// The largest |eigenvalue| of a tridiagonal matrix is at most this (Gershgorin).
inline double tridiagonal_bound(int64_t n, const double *diagonal, const double *off) {
    double bound = 0;
    for (int64_t k = 0; k < n; k++) {
        double radius = std::fabs(diagonal[k]) + std::fabs(off[k]) + (k > 0 ? std::fabs(off[k - 1]) : 0.0);
        bound = max(bound, radius);
    }
    return bound;
}

inline void fill_results(int64_t c, double value, double *total, double *mixed) {
    for (int64_t s = 0; s < c; s++) total[s] = mixed[s] = value;
}

// One block; `weights` total and mixed, [2][nodes].
//
// Everything is first divided by a power of two, such that squares are at most about 1, then by sqrt(scale) by way of
// the shifts. The norm of every H in the block is at most that of the four parts side by side: what leaps over the
// block (S), leads into it (X F), out of it (Z^T Q Z) and stays in it (Y).
inline void block_entropy(const ess_recurrence_entropy_job &job, const double *weights, int64_t number,
                          EntropyWork &work) {
    const int64_t n = work.n, c = work.c, lda = work.boundary.lda;
    const int64_t head = number / job.parts->blocks, start = number % job.parts->blocks * c, left = job.length - start;
    const int64_t present = left < c ? left : c, place = head * job.length + start;
    double *total = job.total + place, *mixed = job.mixed + place;
    const double *given_scale = job.scale ? job.scale + head : nullptr;

    work.boundary.assemble(*job.parts, number);
    job.rounding[number] = job.unit[number] = 0;
    const double *A = work.boundary.A, *corner = A + (n + c) * (lda + 1), *Y = job.parts->Y + number * c * c;
    const double own = sum_of_squares(A + n, lda, c, n) + trace(c, corner, lda) + sum_of_squares(Y, c, c, c);
    double bound = own + trace(n, A, lda);
    if (given_scale && *given_scale > bound) bound = *given_scale;
    // beyond this the unit's square would be a denormal number
    if (!(bound <= 1e307)) return fill_results(present, __builtin_nan(""), total, mixed);
    if (!(bound > 0) || (given_scale && !(*given_scale > 0))) return fill_results(present, 0, total, mixed);
    const int exponent = -root_exponent(bound) - 1;
    const double unit = std::ldexp(1.0, exponent), square_unit = std::ldexp(1.0, 2 * exponent);

    symmetric_copy(n, A, lda, square_unit, work.S, work.lds, false);
    for (int64_t k = 0; k < n; k++) {
        const double *from = A + n + k * lda;
        double *to = work.B + k * work.ldb;
        for (int64_t i = 0; i < c; i += W) store(to + i, load(from + i) * unit);
        for (int64_t i = c; i < 2 * c; i += W) store(to + i, load(from + i) * square_unit);
    }
    for (int64_t j = 0; j < c; j++) {
        for (int64_t i = 0; i < c; i += W) {
            store(work.Y + i + j * c, load(Y + i + j * c) * unit);
            store(work.corner + i + j * c, load(corner + i + j * lda) * square_unit);
        }
    }
    tridiagonalise(n, work.S, work.lds, work.diagonal, work.off, work.factor, work.reflect);
    turn(n, work.S, work.lds, work.factor, 2 * c, work.B, work.ldb, work.turned);

    double scale = given_scale ? *given_scale * square_unit : 0;
    if (!given_scale) {
        double *gram = work.gram, *square = gram + c * padded_stride(c);
        scale = tridiagonal_bound(n, work.diagonal, work.off);
        scale += squared_norm_bound(c, n, work.B, work.ldb, gram, square);
        scale += squared_norm_bound(c, c, work.Y, c, gram, square);
        symmetric_copy(c, corner, lda, square_unit, gram, padded_stride(c));
        scale += norm_bound_of_square(c, gram, padded_stride(c), square);
    }
    double magnitude = 0;
    for (int64_t i = 0; i < work.boundary.m; i++) magnitude = max(magnitude, work.boundary.magnitude[i]);
    job.rounding[number] = __DBL_EPSILON__ * magnitude * square_unit / scale;
    job.unit[number] = std::sqrt(scale) / unit;
    for (int64_t v = 0; v < work.vectors; v++) work.shift[v] = load(job.quadrature->t + v * W) * scale;
    for (int64_t v = 0; v < work.vectors;) {
        auto factor = v + 2 <= work.vectors ? factor_shifts<2> : factor_shifts<1>;
        factor(n, work.diagonal, work.off, work.shift + v, work.root + v * n, work.link + v * n, work.logdet + v);
        v += v + 2 <= work.vectors ? 2 : 1;
    }
    for (int64_t i = 0; i < 2 * c; i++) work.sums[i] = V{};
    for (int64_t v = 0; v < work.vectors; v++) {
        const V square = 1.0 / work.shift[v];
        const int64_t ld = leaf_stride(c);
        const Sums rows{work.minus_one, c, work.R, ld, all(1.0)};
        const Sums between{work.Y, c, work.K, ld, -sqrt(square)};
        const Sums columns{work.corner, c, work.C, ld, -square};
        shift_products(n, c, work.B, work.ldb, work.root + v * n, work.link + v * n, rows, between, columns,
                       work.packed, work.lasts);
        for (int64_t i = 0; i < c; i++) work.C[i * (ld + 1)] += 1.0;
        leaf_logdet(static_cast<int>(c), work.R, work.K, work.C, work.leaf, work.logdet[v], work.logdets);
        const double *weight = weights + v * W;
        for (int64_t s = 0; s < c; s++) {
            for (int64_t q = 0; q < 2; q++)
                work.sums[q * c + s] += work.logdets[s] * load(weight + q * job.quadrature->nodes);
        }
    }
    for (int64_t s = 0; s < present; s++) {
        total[s] = horizontal_sum(work.sums[s]);
        mixed[s] = horizontal_sum(work.sums[c + s]);
    }
}

// The weights of the two sums, [2][nodes].
inline double *entropy_weights(const ess_quadrature &quadrature, Arena &arena) {
    double *weights = arena.take<double>(2 * quadrature.nodes);
    if (weights) {
        for (int64_t k = 0; k < quadrature.nodes; k++) {
            weights[k] = quadrature.total_weight[k];
            weights[quadrature.nodes + k] = quadrature.mixed_weight[k];
        }
    }
    return weights;
}

inline int64_t entropy(const ess_recurrence_entropy_job &job, int32_t threads, void *workspace) {
    Arena shared(workspace);
    const double *weights = entropy_weights(*job.quadrature, shared);
    const Making making(job);
    RecurrenceTasks tasks(shared, *job.parts, making.job(), true, threads);
    auto body = [&](EntropyWork &work) {
        FlushDenormals flush;
        tasks.share(work.making, [&](int64_t number) {
            if (job.wanted[number]) block_entropy(job, weights, number, work);
        });
    };
    return run_with<EntropyWork>(shared, threads, body, *job.parts, making.job(), job.quadrature->nodes);
}

} // namespace
} // namespace ess::ESS_LEVEL::recurrence
