// Products of small matrices, each element of which is a vector: W matrices side by side.
//
// A matrix of `depth` columns is stored in strips of TILE rows: element (i, k) at [(i / TILE * depth + k) * TILE + i %
// TILE], so that products run through both operands from front to back.

#pragma once

#include "base/simd.h"

namespace ess::ESS_LEVEL::lanes {
namespace {

constexpr int TILE = 4;
// a tile's accumulators that live in registers at once
constexpr int TILE_COLUMNS_AT_ONCE = ESS_VECTOR_BYTES == 64 ? 4 : 2;

struct Tile {
    V at[TILE][TILE]; // [column][row]
};

enum class Sum { Add, Subtract };

// tile(i, j) +-= sum_k a(i, k) b(j, k): 2 TILE^2 depth flops a lane.
template <Sum SUM = Sum::Add> ESS_INLINE void accumulate(Tile &tile, const V *a, const V *b, int depth) {
    for (int j0 = 0; j0 < TILE; j0 += TILE_COLUMNS_AT_ONCE) {
        V sum[TILE_COLUMNS_AT_ONCE][TILE];
        ESS_UNROLL
        for (int j = 0; j < TILE_COLUMNS_AT_ONCE; j++) {
            ESS_UNROLL
            for (int i = 0; i < TILE; i++) sum[j][i] = tile.at[j0 + j][i];
        }
        for (int k = 0; k < depth; k++) {
            V x[TILE];
            ESS_UNROLL
            for (int i = 0; i < TILE; i++) x[i] = a[k * TILE + i];
            ESS_UNROLL
            for (int j = 0; j < TILE_COLUMNS_AT_ONCE; j++) {
                V y = b[k * TILE + j0 + j];
                keep_in_register(y);
                ESS_UNROLL
                for (int i = 0; i < TILE; i++) {
                    if (SUM == Sum::Add) sum[j][i] += x[i] * y;
                    else sum[j][i] -= x[i] * y;
                }
            }
        }
        ESS_UNROLL
        for (int j = 0; j < TILE_COLUMNS_AT_ONCE; j++) {
            ESS_UNROLL
            for (int i = 0; i < TILE; i++) tile.at[j0 + j][i] = sum[j][i];
        }
    }
}

// columns k..k+TILE-1 of a strip
ESS_INLINE void store_tile(V *strip, int k, const Tile &tile) {
    ESS_UNROLL
    for (int j = 0; j < TILE; j++) {
        ESS_UNROLL
        for (int i = 0; i < TILE; i++) strip[(k + j) * TILE + i] = tile.at[j][i];
    }
}

ESS_INLINE void store_transposed(V *strip, int k, const Tile &tile) {
    ESS_UNROLL
    for (int j = 0; j < TILE; j++) {
        ESS_UNROLL
        for (int i = 0; i < TILE; i++) strip[(k + i) * TILE + j] = tile.at[j][i];
    }
}

} // namespace
} // namespace ess::ESS_LEVEL::lanes
