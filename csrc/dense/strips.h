// Matrix products of operands that lie in strips: the form in which a register tile reads them, so that nothing is
// packed twice.

#pragma once

#include "dense/products.h"

namespace ess::ESS_LEVEL::dense {
namespace {

constexpr int64_t STRIP = 16;
// columns of a tile of C; half a strip, so that the right operand lies in strips as well
constexpr int64_t TILE = 8;

// the part of a tile that lives in registers: PART_VECTORS vectors of rows times PART_COLUMNS columns
constexpr int PART_VECTORS = 2;
constexpr int PART_COLUMNS = ESS_VECTOR_BYTES == 64 ? 8 : 4;

// inner index of one pass over C: what a tile reads of both operands fits in the first cache, 32 KiB
constexpr int64_t PASS = 128;

// A rows x depth matrix, PASS columns after PASS columns; each of these strip by strip: STRIP rows, column by column.
// What one pass reads of neighbouring strips is contiguous and so does not compete for the same cache sets.
struct Strips {
    double *data;
    int64_t rows, depth;

    double *at(int64_t row, int64_t k) const {
        const int64_t before = k / PASS * PASS, width = min(PASS, depth - before);
        return data + before * rows + row / STRIP * (STRIP * width) + (k - before) * STRIP + row % STRIP;
    }
};

// What a block of a matrix was before an update: source * scale, and `diagonal` on its own diagonal; without `data`,
// zero.
struct Block {
    const double *data;
    int64_t stride; // between columns
    double scale, diagonal;

    Block from(int64_t row, int64_t column) const {
        return {data ? data + row + column * stride : nullptr, stride, scale, diagonal};
    }
};

// Sixteen rows of a block, scaled, into a part of a strip.
ESS_INLINE void copy_strip(const Block &block, int64_t columns, double *strip) {
    const V scale = all(block.scale);
    const double *source = block.data;
    for (int64_t k = 0; k < columns; k++, source += block.stride, strip += STRIP) {
        ESS_UNROLL
        for (int64_t i = 0; i < STRIP; i += W) store(strip + i, load(source + i) * scale);
    }
}

// The same from a block that lies the other way: sixteen of its columns become rows, of which the first `padding` are
// zero.
ESS_INLINE void transpose_strip(const Block &block, int64_t columns, double *strip, int64_t padding = 0) {
    const V scale = all(block.scale);
    for (int64_t k = 0; k < columns; k += W) {
        for (int64_t i = 0; i < STRIP; i += W) {
            V tile[W];
            ESS_UNROLL
            for (int l = 0; l < W; l++) {
                tile[l] = i + l < padding ? V{} : load(block.data + k + (i + l) * block.stride) * scale;
            }
            transpose_tile(tile);
            ESS_UNROLL
            for (int l = 0; l < W; l++) store(strip + (k + l) * STRIP + i, tile[l]);
        }
    }
}

enum class First { Replace, Continue };

// One STRIP x TILE tile: C = block - sum (or + sum: PLUS), or C -= sum (C += sum) where an earlier part of the inner
// index has been there. A function of its own, so that the compiler has all registers for it.
template <bool PLUS>
__attribute__((noinline)) void strip_tile(int64_t depth, const double *a, const double *b, double *C, int64_t ldc,
                                          First first, const double *source, int64_t stride, double scale) {
    if (first == First::Continue) {
        source = C;
        stride = ldc;
        scale = 1.0;
    }
    if (depth >= 64 && source) {
        // C is needed only after the long loop
        ESS_UNROLL
        for (int j = 0; j < TILE; j++) {
            __builtin_prefetch(source + j * stride, 0, 3);
            __builtin_prefetch(source + j * stride + 8, 0, 3);
        }
    }
    for (int64_t i0 = 0; i0 < STRIP; i0 += PART_VECTORS * W) {
        for (int64_t j0 = 0; j0 < TILE; j0 += PART_COLUMNS) {
            V sum[PART_COLUMNS][PART_VECTORS];
            ESS_UNROLL
            for (int j = 0; j < PART_COLUMNS; j++) {
                ESS_UNROLL
                for (int i = 0; i < PART_VECTORS; i++) sum[j][i] = V{};
            }
            const double *ak = a + i0, *bk = b + j0;
            for (int64_t k = 0; k < depth; k++) {
                V x[PART_VECTORS];
                ESS_UNROLL
                for (int i = 0; i < PART_VECTORS; i++) {
                    x[i] = load(ak + i * W);
                    keep_in_register(x[i]);
                }
                ESS_UNROLL
                for (int j = 0; j < PART_COLUMNS; j++) {
                    V y = all(bk[j]);
                    ESS_UNROLL
                    for (int i = 0; i < PART_VECTORS; i++) sum[j][i] += x[i] * y;
                }
                ak += STRIP;
                bk += STRIP;
            }
            double *c = C + i0 + j0 * ldc;
            if (source == nullptr) {
                ESS_UNROLL
                for (int j = 0; j < PART_COLUMNS; j++) {
                    ESS_UNROLL
                    for (int i = 0; i < PART_VECTORS; i++) store(c + i * W + j * ldc, PLUS ? sum[j][i] : -sum[j][i]);
                }
                continue;
            }
            const double *before = source + i0 + j0 * stride;
            const V factor = all(scale);
            ESS_UNROLL
            for (int j = 0; j < PART_COLUMNS; j++) {
                ESS_UNROLL
                for (int i = 0; i < PART_VECTORS; i++) {
                    V x = load(before + i * W + j * stride) * factor;
                    store(c + i * W + j * ldc, PLUS ? x + sum[j][i] : x - sum[j][i]);
                }
            }
        }
    }
}

// Which tiles of a block anybody will read.
struct Wanted {
    int64_t rows; // of the block
    bool lower;   // those that reach the lower triangle, or else those with row + column < rows - 1

    bool tile(int64_t row, int64_t column) const { return lower ? row + STRIP > column : row + column < rows - 1; }
};

// strips of one bundle, which stay in the second cache while the right operand passes by
constexpr int64_t STRIP_BUNDLE = 16;

// Rows [row, row + rows) of C = block -+ A B^T, `columns` wide, tile by tile where wanted. C and block are
// column-major; their row and column 0 are rows `a` of A and `b` of B. 2 rows columns depth flops.
template <bool PLUS>
void multiply_strips(int64_t row, int64_t rows, int64_t columns, Strips A, int64_t a, Strips B, int64_t b,
                     const Block &block, double *C, int64_t ldc, Wanted wanted) {
    for (int64_t k0 = 0; k0 < A.depth; k0 += PASS) {
        const int64_t depth = min(PASS, A.depth - k0);
        const First first = k0 ? First::Continue : First::Replace;
        const double *left = A.at(a + row, k0);
        for (int64_t j = 0; j < columns; j += TILE) {
            const double *right = B.at(b + j, k0);
            for (int64_t i = 0; i < rows; i += STRIP) {
                if (!wanted.tile(row + i, j)) continue;
                const Block from = block.from(row + i, j);
                strip_tile<PLUS>(depth, left + i * depth, right, C + row + i + j * ldc, ldc, first, from.data,
                                 from.stride, from.scale);
            }
        }
    }
    if (wanted.lower && block.diagonal != 0.0) {
        for (int64_t i = row; i < row + rows; i++) C[i + i * ldc] += block.diagonal;
    }
}

} // namespace
} // namespace ess::ESS_LEVEL::dense
