// Blocks of C tokens of W heads, and the recurrences over them: what lies outside of a block, seen through N states.
//
// For a block [a, e) with transitions A_t: X row r = read_r A_r ... A_a, Z row j = A_{e-1} ... A_{j+1} write_j, Phi =
// A_{e-1} ... A_a, Y the block's own strictly lower part of T. Left of it lies P_a = F F^T (reachability, F lower
// triangular), right of it Q_e (observability). Running products only, never differences of logarithms.

#pragma once

#include "dense/limits.h"
#include "lanes/tiles.h"
#include "lanes/tokens.h"

namespace ess::ESS_LEVEL::lanes {
using namespace dense;
namespace {

// strips of TILE rows
template <int N> constexpr int STRIPS = N / TILE;
template <int C> constexpr int BLOCK_STRIPS = C / TILE;

template <int N, int C> struct BlockParts {
    V X[C * N]; // row r at C - 1 - r, strips of depth N
    V Z[C * N]; // strips of depth N
    V Y[C * C]; // element (r, j) at [r * C + j], only r > j
    V Phi[N];
};

// X, Y, Z and Phi by halving: pairs, quads, the block of 4 or 8 tokens. About N C^2 flops.
template <int N, int C>
void block_parts(const BlockTokens<N, C> &tokens, const V *transitions, bool reads_before, BlockParts<N, C> &parts) {
    // reads of the right half and writes of the left half, as seen from between them
    V right[TILE * N], left[TILE * N];
    V pairs[C / 2] = {}, quads[C / 4][4] = {};
    for (int k = 0; k < N; k++) {
        const V *a = transitions + k * C;
        V x[C], z[C], pair[C / 2], quad[C / 4];
        ESS_UNROLL
        for (int t = 0; t < C; t++) {
            V read = tokens.read[k * C + t];
            x[t] = reads_before ? read : read * a[t];
            z[t] = tokens.write[k * C + t];
        }
        ESS_UNROLL
        for (int p = 0; p < C / 2; p++) {
            const int t = 2 * p;
            pairs[p] += x[t + 1] * z[t];
            x[t + 1] *= a[t];
            z[t] *= a[t + 1];
            pair[p] = a[t] * a[t + 1];
        }
        ESS_UNROLL
        for (int q = 0; q < C / 4; q++) {
            const int t = 4 * q;
            ESS_UNROLL
            for (int i = 0; i < 4; i++) quads[q][i] += x[t + 2 + i / 2] * z[t + i % 2];
            ESS_UNROLL
            for (int i = 0; i < 2; i++) {
                x[t + 2 + i] *= pair[2 * q];
                z[t + i] *= pair[2 * q + 1];
            }
            quad[q] = pair[2 * q] * pair[2 * q + 1];
        }
        if (C == 8) {
            ESS_UNROLL
            for (int t = 0; t < TILE; t++) {
                right[k * TILE + t] = x[C - TILE + t];
                left[k * TILE + t] = z[t];
                x[C - TILE + t] *= quad[0];
                z[t] *= quad[C / 4 - 1];
            }
        }
        ESS_UNROLL
        for (int t = 0; t < C; t++) {
            parts.X[(t / TILE * N + k) * TILE + t % TILE] = x[C - 1 - t];
            parts.Z[(t / TILE * N + k) * TILE + t % TILE] = z[t];
        }
        parts.Phi[k] = C == 8 ? quad[0] * quad[C / 4 - 1] : quad[0];
    }
    V *y = parts.Y;
    for (int p = 0; p < C / 2; p++) y[(2 * p + 1) * C + 2 * p] = pairs[p];
    for (int q = 0; q < C / 4; q++) {
        for (int i = 0; i < 4; i++) y[(4 * q + 2 + i / 2) * C + 4 * q + i % 2] = quads[q][i];
    }
    if (C == 8) {
        Tile tile = {};
        accumulate(tile, right, left, N);
        for (int j = 0; j < TILE; j++) {
            for (int r = 0; r < TILE; r++) y[(C - TILE + r) * C + j] = tile.at[j][r];
        }
    }
}

// --- observability ---------------------------------------------------------------------------------------------------

// vectors of a Gramian's lower tiles, strip by strip: tile (I, J), J <= I, is number I (I + 1) / 2 + J
template <int N> constexpr int GRAMIAN = STRIPS<N> * (STRIPS<N> + 1) / 2 * TILE * TILE;

ESS_INLINE int lower_tile(int I, int J) { return (I * (I + 1) / 2 + J) * TILE * TILE; }

// Q_a = Phi Q_e Phi + X^T X, lower tiles: N^2 C flops and N^2 products.
template <int N, int C>
void observe(const BlockTokens<N, C> &tokens, const V *transitions, bool reads_before, const V *after, V *before) {
    V x[C * N], carry[N]; // X^T in strips of depth C
    for (int k = 0; k < N; k++) {
        V product = all(1.0);
        V *row = x + k / TILE * TILE * C + k % TILE;
        ESS_UNROLL
        for (int t = 0; t < C; t++) {
            V read = tokens.read[k * C + t];
            V with = product * transitions[k * C + t];
            row[t * TILE] = read * (reads_before ? product : with);
            product = with;
        }
        carry[k] = product;
    }
    for (int I = 0; I < STRIPS<N>; I++) {
        for (int J = 0; J <= I; J++) {
            const V *q = after + lower_tile(I, J);
            Tile tile;
            ESS_UNROLL
            for (int j = 0; j < TILE; j++) {
                ESS_UNROLL
                for (int i = 0; i < TILE; i++) {
                    tile.at[j][i] = q[j * TILE + i] * (carry[I * TILE + i] * carry[J * TILE + j]);
                }
            }
            accumulate(tile, x + I * TILE * C, x + J * TILE * C, C);
            store_tile(before + lower_tile(I, J), 0, tile);
        }
    }
}

// A Gramian from its lower tiles, in strips of depth N.
template <int N> void unpack(const V *lower, V *full) {
    for (int I = 0; I < STRIPS<N>; I++) {
        for (int J = 0; J <= I; J++) {
            Tile tile;
            ESS_UNROLL
            for (int j = 0; j < TILE; j++) {
                ESS_UNROLL
                for (int i = 0; i < TILE; i++) tile.at[j][i] = lower[lower_tile(I, J) + j * TILE + i];
            }
            store_tile(full + I * TILE * N, J * TILE, tile);
            if (J < I) store_transposed(full + J * TILE * N, I * TILE, tile);
        }
    }
}

// --- reachability ----------------------------------------------------------------------------------------------------

// F^T at the right edge of a block, in place, from `carried` = F^T Phi and Z, which is destroyed: Householder on
// [F^T Phi; Z], 2 N^2 C flops. All in strips of depth N; F^T is upper triangular, and below it nothing is touched.
template <int N, int C> void reach(const V *carried, V *Z, V *F) {
    for (int j = 0; j < N; j++) {
        const int row = j / TILE * TILE * N + j % TILE;
        V v[C], s0 = {}, s1 = {};
        ESS_UNROLL
        for (int t = 0; t < C; t++) v[t] = Z[(t / TILE * N + j) * TILE + t % TILE];
        ESS_UNROLL
        for (int t = 0; t < C; t += 2) {
            s0 += v[t] * v[t];
            s1 += v[t + 1] * v[t + 1];
        }
        V below = s0 + s1, pivot = carried[row + j * TILE];
        Mask<double> done = below <= all(NO_COLUMN);
        V length = sqrt(pivot * pivot + below);
        V turned = select(pivot > V{}, -length, length);
        V first = select(done, V{}, pivot - turned);
        V factor = select(done, V{}, 1.0 / select(done, all(1.0), -turned * first));
        F[row + j * TILE] = select(done, pivot, turned);
        for (int k = j + 1; k < N; k++) {
            V x = carried[row + k * TILE], z[C], u0 = x * first, u1 = {};
            ESS_UNROLL
            for (int t = 0; t < C; t++) z[t] = Z[(t / TILE * N + k) * TILE + t % TILE];
            ESS_UNROLL
            for (int t = 0; t < C; t += 2) {
                u0 += v[t] * z[t];
                u1 += v[t + 1] * z[t + 1];
            }
            V u = (u0 + u1) * factor;
            F[row + k * TILE] = x - first * u;
            ESS_UNROLL
            for (int t = 0; t < C; t++) Z[(t / TILE * N + k) * TILE + t % TILE] = z[t] - v[t] * u;
        }
    }
}

// --- the outside of a block ------------------------------------------------------------------------------------------

// Everything of a block that no tolerance changes, as a symmetric matrix on [N states, C rows backwards, C columns] of
// which the lower tiles are held in strips of depth N + C:
//   states x states    S = F^T Phi Q Phi F
//   rows x states      X F
//   columns x states   Z Q Phi F
//   columns x rows     Y^T
// and, by itself, columns x columns  Z Q Z^T. Rows x rows hold nothing and are not written.
template <int N, int C> struct Outside {
    static constexpr int DEPTH = N + C;
    V matrix[(N + 2 * C) * DEPTH];
    V corner[C * C]; // strips of depth C
    V magnitude;     // the largest sum of absolute terms behind a diagonal entry of S or of the corner

    V *tile(int I, int J) { return matrix + (I * DEPTH + J * TILE) * TILE; }
    const V *tile(int I, int J) const { return matrix + (I * DEPTH + J * TILE) * TILE; }
};

// `carried` = F^T Phi. About 4.2 N^3 + 9 N^2 C / 2 + N C^2 flops.
template <int N, int C>
void outside(const BlockParts<N, C> &parts, const V *Q, const V *F, const V *carried, V *seen, Outside<N, C> &out) {
    constexpr int S = STRIPS<N>, B = BLOCK_STRIPS<C>;
    // states: G = F^T Phi Q, columns right of the diagonal tile
    for (int I = 0; I < S; I++) {
        const int k0 = I * TILE;
        for (int J = I; J < S; J++) {
            Tile tile = {};
            accumulate(tile, carried + (I * N + k0) * TILE, Q + (J * N + k0) * TILE, N - k0);
            store_tile(seen + I * TILE * N, J * TILE, tile);
        }
    }
    for (int J = 0; J < S; J++) {
        for (int I = 0; I <= J; I++) {
            const int k0 = J * TILE;
            Tile tile = {};
            accumulate(tile, carried + (J * N + k0) * TILE, seen + (I * N + k0) * TILE, N - k0);
            store_tile(out.tile(J, I), 0, tile);
        }
    }
    for (int I = 0; I < B; I++) {
        // rows
        for (int J = 0; J < S; J++) {
            const int k0 = J * TILE;
            Tile tile = {};
            accumulate(tile, parts.X + (I * N + k0) * TILE, F + (J * N + k0) * TILE, N - k0);
            store_tile(out.tile(S + I, J), 0, tile);
        }
        // columns
        V *mine = seen + I * TILE * N;
        for (int J = 0; J < S; J++) {
            Tile tile = {};
            accumulate(tile, parts.Z + I * TILE * N, Q + J * TILE * N, N);
            store_tile(mine, J * TILE, tile);
        }
        for (int J = 0; J < S; J++) {
            const int k0 = J * TILE;
            Tile tile = {};
            accumulate(tile, mine + k0 * TILE, carried + (J * N + k0) * TILE, N - k0);
            store_tile(out.tile(S + B + I, J), 0, tile);
        }
        for (int J = 0; J <= I; J++) {
            Tile tile = {};
            accumulate(tile, mine, parts.Z + J * TILE * N, N);
            store_tile(out.corner + I * TILE * C, J * TILE, tile);
        }
        for (int J = 0; J < B; J++) {
            V *target = out.tile(S + B + I, S + J);
            for (int r = 0; r < TILE; r++) {
                for (int j = 0; j < TILE; j++) {
                    const int row = C - 1 - (J * TILE + r), column = I * TILE + j;
                    target[r * TILE + j] = row > column ? parts.Y[row * C + column] : V{};
                }
            }
        }
    }
    V largest = {};
    for (int I = 0; I < S + B; I++) {
        const V *strip = I < S ? carried + I * TILE * N : parts.Z + (I - S) * TILE * N;
        V sum[TILE] = {};
        for (int k = I < S ? I * TILE : 0; k < N; k++) {
            V mass = Q[(k / TILE * N + k) * TILE + k % TILE];
            ESS_UNROLL
            for (int i = 0; i < TILE; i++) sum[i] += strip[k * TILE + i] * strip[k * TILE + i] * mass;
        }
        for (int i = 0; i < TILE; i++) largest = max(largest, sum[i]);
    }
    out.magnitude = largest;
}

} // namespace
} // namespace ess::ESS_LEVEL::lanes
