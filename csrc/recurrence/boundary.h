// What a block's outside does to it, before any tolerance is known: the products of algorithm "one elimination per
// block".
//
// All earlier inputs act on a block through n numbers, and all later outputs see it through n numbers. With the root F
// of the reachability Gramian at its left edge and the observability Gramian Q at its right edge, and
// D = [F^T Phi^T; Z^T]:
//
//         state                rows (reversed)   columns
//   A = [ F^T Phi^T Q Phi F                                  ]
//       [ X F                  0                             ]
//       [ Z^T Q Phi F          Y                 Z^T Q Z     ]     (lower triangle)
//
// The eigenvalues of its first block are the squared singular values of T[e:, :a].

#pragma once

#include "dense/products.h"
#include "recurrence/scans.h"
#include "recurrence/sizes.h"

namespace ess::ESS_LEVEL::recurrence {
using namespace dense;
namespace {

// One block's products, and what it takes to make them. Column-major, m = n + 2c rows.
struct Boundary {
    int64_t n, c, m, lda;
    double *A; // [m, m], lower triangle; rows and columns of "rows" hold nothing but X F
    // [m]: the largest sums of absolute terms behind the diagonal, to which rounding errors are in proportion
    double *magnitude;

    Boundary(Arena &arena, int64_t n, int64_t c)
        : n(n), c(c), m(n + 2 * c), lda(padded_stride(m)), A(arena.take<double>(lda * m)),
          magnitude(arena.take<double>(m)), lf_(padded_stride(n)), ld_(padded_stride(n + c)), lx_(padded_stride(c)),
          F_(arena.take<double>(lf_ * n)), D_(arena.take<double>(ld_ * n)), Q_(arena.take<double>(lf_ * n)),
          G_(arena.take<double>(ld_ * n)), X_(arena.take<double>(lx_ * n)) {
        // where Phi is diagonal, D starts with an upper triangle, whose zeros nothing overwrites
        if (D_) fill(D_, 0, ld_ * n);
    }

    // Fills A and `magnitude` for a block. Flops: n^3 (S) + 2 n^2 c (Z^T Q) + n^2 c + n c^2 + n^2 c.
    void assemble(const ess_recurrence &parts, int64_t number) {
        const double *X = parts.X + number * n * c, *Z = parts.Z + number * n * c;
        const double *Phi = parts.Phi + number * phi_size(parts);
        const bool dense = full_phi(parts);
        const int64_t n = this->n, c = this->c; // for the lambdas
        copy_root(parts.F + number * n * n);
        symmetric_copy(n, parts.Q + number * n * n, n, 1.0, Q_, lf_);
        if (dense) carry_dense(Phi);
        else carry_diagonal(Phi);
        transpose(n, c, Z, n, D_ + n, ld_);
        transpose(n, c, X + (c - 1) * n, -n, X_, lx_);

        // S = D G^T with G = D Q. Where Phi is diagonal, D's first rows are a triangle: sums start at its diagonal, and
        // of G only what tiles on and above the diagonal need is made (tiles that do not start with ROWS rows reach
        // further)
        multiply<Right::Plain, Update::Set>(
            n, n, D_, ld_, Q_, lf_, G_, ld_, [=](int64_t i0, int64_t, int64_t j0, int64_t) {
                const int64_t first = i0 / ROWS * ROWS, needed = i0 == first ? first : first - 2 * ROWS;
                return dense ? Range{0, n} : Range{first, j0 / ROWS * ROWS >= needed ? n : 0};
            });
        multiply<Right::Transposed, Update::Set>(
            n, n, D_, ld_, G_, ld_, A, lda, [=](int64_t i0, int64_t i1, int64_t j0, int64_t) {
                return in_lower(i1, j0) ? Range{dense ? 0 : i0 / ROWS * ROWS, n} : Range{0, 0};
            });
        // Z^T Q, Z^T Q Phi F, Z^T Q Z
        multiply<Right::Plain, Update::Set>(c, n, D_ + n, ld_, Q_, lf_, G_ + n, ld_,
                                            [=](int64_t, int64_t, int64_t, int64_t) { return Range{0, n}; });
        multiply<Right::Transposed, Update::Set>(
            c, n, G_ + n, ld_, D_, ld_, A + n + c, lda,
            [=](int64_t, int64_t, int64_t j0, int64_t) { return Range{dense ? 0 : j0 / ROWS * ROWS, n}; });
        multiply<Right::Transposed, Update::Set>(
            c, c, G_ + n, ld_, D_ + n, ld_, A + n + c + (n + c) * lda, lda,
            [=](int64_t, int64_t i1, int64_t j0, int64_t) { return Range{0, in_lower(i1, j0) ? n : 0}; });
        // X F
        multiply<Right::Plain, Update::Set>(
            c, n, X_, lx_, F_, lf_, A + n, lda,
            [=](int64_t, int64_t, int64_t j0, int64_t) { return Range{j0 / ROWS * ROWS, n}; });
        measure();
    }

  private:
    int64_t lf_, ld_, lx_;
    double *F_, *D_, *Q_, *G_, *X_;

    void copy_root(const double *F) {
        for (int64_t j = 0; j < n; j++) {
            for (int64_t i = j / ROWS * ROWS; i < n; i += W) store(F_ + i + j * lf_, load(F + i + j * n));
        }
    }

    // D's first n rows: (Phi F)^T
    void carry_diagonal(const double *Phi) {
        for (int64_t j0 = 0; j0 < n; j0 += ROWS) {
            transpose(n - j0, ROWS, F_ + j0 + j0 * lf_, lf_, D_ + j0 + j0 * ld_, ld_, Phi + j0);
        }
    }

    void carry_dense(const double *Phi) {
        // G_ is free until D is complete
        multiply<Right::Plain, Update::Set>(
            n, n, Phi, n, F_, lf_, G_, ld_,
            [n = this->n](int64_t, int64_t, int64_t j0, int64_t) { return Range{j0 / ROWS * ROWS, n}; });
        transpose(n, n, G_, ld_, D_, ld_);
    }

    // sum_k D_ik^2 Q_kk, the diagonal of |D| diag(Q) |D|^T; rows of the block have none
    void measure() {
        for (int64_t i = 0; i < n + c; i += W) {
            V sum = V{};
            for (int64_t k = 0; k < n; k++) {
                V d = load(D_ + i + k * ld_);
                sum += d * d * all(Q_[k + k * lf_]);
            }
            store(magnitude + (i < n ? i : i + c), sum);
        }
        for (int64_t i = n; i < n + c; i += W) store(magnitude + i, V{});
    }
};

} // namespace
} // namespace ess::ESS_LEVEL::recurrence
