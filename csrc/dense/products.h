// Room dense/: linear algebra of a few dozen to a few hundred rows, where packing and starting threads would cost more
// than they save. It knows nothing of recurrences or operators, and may include base/ only.
//
// Matrix products.
//
// Column-major, element (i, j) at p[i + j * ld]; rows padded to a multiple of ROWS. A leading dimension of
// `padded_stride(rows)` keeps columns out of each other's cache sets.

#pragma once

#include "base/simd.h"

namespace ess::ESS_LEVEL::dense {
namespace {

// rows and columns of every matrix are multiples of this, at every dispatch level
constexpr int64_t ROWS = 8;

constexpr int64_t padded(int64_t n) { return (n + ROWS - 1) / ROWS * ROWS; }
constexpr int64_t padded_stride(int64_t rows) { return padded(rows) + ROWS; }

enum class Update { Set, Add, Subtract };
enum class Right { Plain, Transposed };

// the register tile: TILE_VECTORS vectors of rows times TILE_COLUMNS columns
#if ESS_VECTOR_BYTES == 64
constexpr int TILE_VECTORS = 3, TILE_COLUMNS = 8;
#elif ESS_VECTOR_BYTES == 32
constexpr int TILE_VECTORS = 3, TILE_COLUMNS = 4;
#else
constexpr int TILE_VECTORS = 4, TILE_COLUMNS = 2;
#endif

// A range of the inner index, or nothing to do.
struct Range {
    int64_t begin, end;
    bool empty() const { return begin >= end; }
};

// One register tile: C (op)= sum over `depth` of A's columns times B's rows.
template <int VECTORS, int COLUMNS, Right RIGHT, Update UPDATE>
ESS_INLINE void multiply_tile(int64_t depth, const double *A, int64_t lda, const double *B, int64_t ldb, double *C,
                              int64_t ldc) {
    V sum[COLUMNS][VECTORS];
    ESS_UNROLL
    for (int j = 0; j < COLUMNS; j++) {
        ESS_UNROLL
        for (int i = 0; i < VECTORS; i++) sum[j][i] = V{};
    }
    if (UPDATE != Update::Set && depth >= 64) {
        // C is needed only after the long loop
        ESS_UNROLL
        for (int j = 0; j < COLUMNS; j++) {
            ESS_UNROLL
            for (int i = 0; i < VECTORS; i++) __builtin_prefetch(C + i * W + j * ldc, 1, 3);
        }
    }
    for (int64_t k = 0; k < depth; k++) {
        V a[VECTORS];
        ESS_UNROLL
        for (int i = 0; i < VECTORS; i++) a[i] = load(A + i * W);
        ESS_UNROLL
        for (int j = 0; j < COLUMNS; j++) {
            V b = all(RIGHT == Right::Transposed ? B[j] : B[j * ldb]);
            ESS_UNROLL
            for (int i = 0; i < VECTORS; i++) sum[j][i] += a[i] * b;
        }
        A += lda;
        B += RIGHT == Right::Transposed ? ldb : 1;
    }
    ESS_UNROLL
    for (int j = 0; j < COLUMNS; j++) {
        ESS_UNROLL
        for (int i = 0; i < VECTORS; i++) {
            double *c = C + i * W + j * ldc;
            if (UPDATE == Update::Set) store(c, sum[j][i]);
            else if (UPDATE == Update::Add) store(c, load(c) + sum[j][i]);
            else store(c, load(c) - sum[j][i]);
        }
    }
}

// C (op)= A B (Right::Plain: B(k, j) = B[k + j ldb]) or A B^T (Right::Transposed: B[j + k ldb]), C `rows` x `columns`,
// both multiples of ROWS. `inner(i0, i1, j0, j1)` gives the range of k that a tile needs; an empty one skips it, so
// that triangles cost what they hold. 2 rows columns depth flops.
template <Right RIGHT, Update UPDATE, class Inner>
void multiply(int64_t rows, int64_t columns, const double *A, int64_t lda, const double *B, int64_t ldb, double *C,
              int64_t ldc, Inner inner) {
    for (int64_t i0 = 0; i0 < rows;) {
        int64_t left = (rows - i0) / W;
        // never a tile of one vector where two of two will do
        int vectors = static_cast<int>(left >= TILE_VECTORS ? TILE_VECTORS : left);
        if (TILE_VECTORS == 3 && left == 4) vectors = 2;
        int64_t i1 = i0 + vectors * W;
        for (int64_t j0 = 0; j0 < columns; j0 += TILE_COLUMNS) {
            Range k = inner(i0, i1, j0, j0 + TILE_COLUMNS);
            if (k.empty()) continue;
            const double *a = A + i0 + k.begin * lda;
            const double *b = B + (RIGHT == Right::Transposed ? j0 + k.begin * ldb : k.begin + j0 * ldb);
            double *c = C + i0 + j0 * ldc;
            int64_t depth = k.end - k.begin;
            switch (vectors) {
            case 1: multiply_tile<1, TILE_COLUMNS, RIGHT, UPDATE>(depth, a, lda, b, ldb, c, ldc); break;
            case 2: multiply_tile<2, TILE_COLUMNS, RIGHT, UPDATE>(depth, a, lda, b, ldb, c, ldc); break;
            case 3: multiply_tile<3, TILE_COLUMNS, RIGHT, UPDATE>(depth, a, lda, b, ldb, c, ldc); break;
            default: multiply_tile<TILE_VECTORS, TILE_COLUMNS, RIGHT, UPDATE>(depth, a, lda, b, ldb, c, ldc);
            }
        }
        i0 = i1;
    }
}

// `count` numbers, a multiple of the vector's width
ESS_INLINE void fill(double *target, double value, int64_t count) {
    for (int64_t i = 0; i < count; i += W) store(target + i, all(value));
}

// Whether a tile reaches into the lower triangle of whole ROWS x ROWS tiles.
ESS_INLINE bool in_lower(int64_t i1, int64_t j0) { return padded(i1) > j0; }

// target(j, i) = source(i, j) * scale[i], i < rows, j < columns, both multiples of ROWS; a negative `source_stride`
// reads the columns backwards. `scale` may be null.
ESS_INLINE void transpose(int64_t rows, int64_t columns, const double *source, int64_t source_stride, double *target,
                          int64_t target_stride, const double *scale = nullptr) {
    for (int64_t j = 0; j < columns; j += W) {
        for (int64_t i = 0; i < rows; i += W) {
            V tile[W];
            ESS_UNROLL
            for (int l = 0; l < W; l++) tile[l] = load(source + i + (j + l) * source_stride);
            transpose_tile(tile);
            ESS_UNROLL
            for (int l = 0; l < W; l++) {
                store(target + j + (i + l) * target_stride, scale ? tile[l] * all(scale[i + l]) : tile[l]);
            }
        }
    }
}

// full = factor * A for a symmetric n x n matrix of which only the lower triangle is stored; n a multiple of ROWS.
// Without `upper`, tiles of W x W above the diagonal are left alone.
ESS_INLINE void symmetric_copy(int64_t n, const double *A, int64_t lda, double factor, double *full, int64_t ldf,
                               bool upper = true) {
    for (int64_t j = 0; j < n; j += W) {
        for (int64_t i = j; i < n; i += W) {
            V tile[W], turned[W];
            ESS_UNROLL
            for (int l = 0; l < W; l++) turned[l] = tile[l] = load(A + i + (j + l) * lda) * factor;
            if (upper || i == j) transpose_tile(turned);
            ESS_UNROLL
            for (int l = 0; l < W; l++) {
                if (i == j) tile[l] = select(load(LANES) < all(static_cast<double>(l)), turned[l], tile[l]);
                store(full + i + (j + l) * ldf, tile[l]);
                if (upper && i > j) store(full + j + (i + l) * ldf, turned[l]);
            }
        }
    }
}

// The sum of squares of `rows` x `columns` numbers, rows a multiple of ROWS.
inline double sum_of_squares(const double *x, int64_t ld, int64_t rows, int64_t columns) {
    V sum = V{};
    for (int64_t j = 0; j < columns; j++) {
        for (int64_t i = 0; i < rows; i += W) sum += load(x + i + j * ld) * load(x + i + j * ld);
    }
    return horizontal_sum(sum);
}

} // namespace
} // namespace ess::ESS_LEVEL::dense
