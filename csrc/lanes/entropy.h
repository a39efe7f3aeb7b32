// Entropy-ESS at every position, for W heads at once, from log-determinants at the nodes of a quadrature.
//
// det(I + H H^T / t) of a position is the product of three factors: that of the outside, det(I + S / t); that of the
// block's rows from the position on, I + X F (t + S)^-1 (X F)^T; and that of the columns left of it, once outside and
// rows are eliminated. All pivots are at least one. S is tridiagonalised once a block, and the block's rows and
// columns are turned with it: then a node costs the outside O(N), and each product of two rows N more.

#pragma once

#include "lanes/scans.h"
#include "leaves/entropy_sums.h"

namespace ess::ESS_LEVEL::lanes {
using namespace leaves;
namespace {

// tokens of a block; small, since products grow with its square
constexpr int E = static_cast<int>(ESS_LANES_ENTROPY_BLOCK);
static_assert(E == TILE, "the block's rows and its columns are one strip each");
// the last column is left of no position of the block
constexpr int COLUMNS = E - 1, TURNED = E + COLUMNS;
// nodes whose pivots are found together, to hide the latency of a division
constexpr int NODES_AT_ONCE = 4;

// The outside of a block in another basis of its states: T = V^T S V, tridiagonal, and the rows [X F; Z Q Phi F] V, the
// block's rows backwards.
template <int N> struct Tridiagonal {
    V diagonal[N], off[N]; // off[k] couples k and k + 1
    V rows[N][TURNED];     // coordinate by coordinate
};

// Scratch of the reduction.
template <int N> struct Reduction {
    V matrix[N * N]; // lower tiles, strips of depth N
    V v[N], w[N];
};

// y = M v for the strips from `first` on.
template <int N> void multiply_symmetric(const V *matrix, const V *v, int first, V *y) {
    for (int k = first * TILE; k < N; k++) y[k] = V{};
    for (int I = first; I < STRIPS<N>; I++) {
        V sum[TILE] = {};
        for (int J = first; J <= I; J++) {
            const V *tile = matrix + (I * N + J * TILE) * TILE;
            ESS_UNROLL
            for (int j = 0; j < TILE; j++) {
                V dot = {};
                ESS_UNROLL
                for (int i = 0; i < TILE; i++) {
                    V x = tile[j * TILE + i];
                    sum[i] += x * v[J * TILE + j];
                    dot += x * v[I * TILE + i];
                }
                if (J < I) y[J * TILE + j] += dot;
            }
        }
        for (int i = 0; i < TILE; i++) y[I * TILE + i] += sum[i];
    }
}

// M -= v w^T + w v^T for the strips from `first` on.
template <int N> void subtract_twice(V *matrix, const V *v, const V *w, int first) {
    for (int I = first; I < STRIPS<N>; I++) {
        V vi[TILE], wi[TILE];
        ESS_UNROLL
        for (int i = 0; i < TILE; i++) {
            vi[i] = v[I * TILE + i];
            wi[i] = w[I * TILE + i];
        }
        for (int j = first * TILE; j < (I + 1) * TILE; j++) {
            V *column = matrix + (I * N + j) * TILE, vj = v[j], wj = w[j];
            ESS_UNROLL
            for (int i = 0; i < TILE; i++) column[i] -= vi[i] * wj + wi[i] * vj;
        }
    }
}

// Householder; 4 N^3 / 3 + 4 N^2 (E + 1) flops. Diagonal tiles are kept whole.
template <int N> void tridiagonalise(Reduction<N> &r, Tridiagonal<N> &t) {
    for (int k = 0; k < N; k++) r.v[k] = r.w[k] = V{};
    for (int k = 0; k < N; k++) {
        const int strip = k / TILE, first = (k + 1) / TILE;
        t.diagonal[k] = r.matrix[(strip * N + k) * TILE + k % TILE];
        if (k + 1 == N) break;
        auto below = [&](int i) -> V { return r.matrix[(i / TILE * N + k) * TILE + i % TILE]; };
        V top = below(k + 1), squares = {};
        for (int i = k + 2; i < N; i++) squares += below(i) * below(i);
        Mask<double> done = squares <= all(NO_COLUMN);
        V length = sqrt(top * top + squares);
        V turned = select(top > V{}, -length, length);
        V head = select(done, V{}, top - turned);
        V factor = select(done, V{}, 1.0 / select(done, all(1.0), -turned * head));
        t.off[k] = select(done, top, turned);
        if (k + 2 == N) {
            // one number is left: nothing to reflect
            t.off[k] = top;
            continue;
        }
        for (int i = 0; i <= k; i++) r.v[i] = V{};
        r.v[k + 1] = head;
        for (int i = k + 2; i < N; i++) r.v[i] = select(done, V{}, below(i));
        multiply_symmetric<N>(r.matrix, r.v, first, r.w);
        V along = {};
        for (int i = k + 1; i < N; i++) along += r.v[i] * r.w[i];
        V half = along * factor * factor * 0.5;
        for (int i = first * TILE; i < N; i++) r.w[i] = i > k ? r.w[i] * factor - r.v[i] * half : V{};
        subtract_twice<N>(r.matrix, r.v, r.w, first);
        V dot[TURNED] = {};
        for (int i = k + 1; i < N; i++) {
            ESS_UNROLL
            for (int row = 0; row < TURNED; row++) dot[row] += t.rows[i][row] * r.v[i];
        }
        ESS_UNROLL
        for (int row = 0; row < TURNED; row++) dot[row] *= factor;
        for (int i = k + 1; i < N; i++) {
            ESS_UNROLL
            for (int row = 0; row < TURNED; row++) t.rows[i][row] -= dot[row] * r.v[i];
        }
    }
    t.off[N - 1] = V{};
}

// The rest of a block for one node, as sums over the outside: rows times rows, columns times columns, columns times
// rows.
struct NodeProducts {
    V rows[E][E], columns[COLUMNS][COLUMNS], mixed[COLUMNS][E];
};

// b = L^-1 [rows] of the tridiagonal t + T = L D L^T, and the products b D^-1 b^T that positions need: row r and
// column j meet where r > j.
template <int N>
ESS_INLINE void node_products(const Tridiagonal<N> &t, const V *inverse, const V *step, NodeProducts &out) {
    V b[TURNED] = {}, rr[10] = {}, cc[6] = {}, cr[6] = {};
    for (int k = 0; k < N; k++) {
        V m = step[k * NODES_AT_ONCE], scale = inverse[k * NODES_AT_ONCE];
        ESS_UNROLL
        for (int i = 0; i < TURNED; i++) b[i] = t.rows[k][i] - m * b[i];
        int next = 0;
        ESS_UNROLL
        for (int i = 0; i < E; i++) {
            V scaled = b[i] * scale;
            ESS_UNROLL
            for (int j = 0; j <= i; j++) rr[next++] += scaled * b[j];
        }
        next = 0;
        int crossing = 0;
        ESS_UNROLL
        for (int i = 0; i < COLUMNS; i++) {
            V scaled = b[E + i] * scale;
            ESS_UNROLL
            for (int j = 0; j <= i; j++) cc[next++] += scaled * b[E + j];
            ESS_UNROLL
            for (int r = 0; r < COLUMNS - i; r++) cr[crossing++] += scaled * b[r];
        }
    }
    int next = 0, crossing = 0;
    for (int i = 0; i < E; i++) {
        for (int j = 0; j <= i; j++) out.rows[i][j] = rr[next++];
    }
    next = 0;
    for (int i = 0; i < COLUMNS; i++) {
        for (int j = 0; j <= i; j++) out.columns[i][j] = cc[next++];
        for (int r = 0; r < COLUMNS - i; r++) out.mixed[i][r] = cr[crossing++];
    }
}

// What no node changes of a block, in units of its scale.
template <int N> struct EntropyBlock {
    Tridiagonal<N> outside;
    V inner[COLUMNS][E];        // Y^T, the rows backwards
    V corner[COLUMNS][COLUMNS]; // Z Q Z^T
    V rounding;                 // error of squared singular values
    V unit;                     // the root of the scale
};

// The determinants of the E positions of a block at node t, without that of the outside.
template <int N> ESS_INLINE void inside(const EntropyBlock<N> &block, NodeProducts &p, double t, V *determinant) {
    // rows: L D L^T of I + products, nested prefixes; columns meet them
    V inverse[E], prefix[E], product = all(1.0);
    for (int i = 0; i < COLUMNS; i++) {
        for (int r = 0; r < COLUMNS - i; r++) p.mixed[i][r] = block.inner[i][r] - p.mixed[i][r];
    }
    ESS_UNROLL
    for (int k = 0; k < E; k++) {
        V pivot = p.rows[k][k] + 1.0;
        product *= pivot;
        prefix[k] = product;
        inverse[k] = 1.0 / pivot;
        ESS_UNROLL
        for (int i = k + 1; i < E; i++) {
            V l = p.rows[i][k] * inverse[k];
            ESS_UNROLL
            for (int j = k + 1; j <= i; j++) p.rows[i][j] -= l * p.rows[j][k];
            ESS_UNROLL
            for (int c = 0; c < COLUMNS - i; c++) p.mixed[c][i] -= l * p.mixed[c][k];
        }
    }
    // columns left of position s, with the rows from it on
    const double one = 1 / t;
    determinant[0] = prefix[E - 1];
    ESS_UNROLL
    for (int s = 1; s < E; s++) {
        V c[COLUMNS][COLUMNS], result = prefix[E - 1 - s];
        ESS_UNROLL
        for (int i = 0; i < s; i++) {
            ESS_UNROLL
            for (int j = 0; j <= i; j++) {
                V sum = block.corner[i][j] - p.columns[i][j];
                ESS_UNROLL
                for (int r = 0; r < E - s; r++) sum += p.mixed[i][r] * p.mixed[j][r] * inverse[r];
                c[i][j] = sum * one + (i == j ? 1.0 : 0.0);
            }
        }
        ESS_UNROLL
        for (int k = 0; k < s; k++) {
            result *= c[k][k];
            V inv = 1.0 / c[k][k];
            ESS_UNROLL
            for (int i = k + 1; i < s; i++) {
                V l = c[i][k] * inv;
                ESS_UNROLL
                for (int j = k + 1; j <= i; j++) c[i][j] -= l * c[j][k];
            }
        }
        determinant[s] = result;
    }
}

// The sums of the E positions of a block.
template <int N> void entropy_sums(const EntropyBlock<N> &block, const ess_quadrature &q, EntropySums *sums) {
    constexpr int U = NODES_AT_ONCE;
    V inverse[N * U], step[N * U], squares[N];
    const Tridiagonal<N> &T = block.outside;
    for (int k = 0; k < N; k++) squares[k] = T.off[k] * T.off[k];
    for (int s = 0; s < E; s++) sums[s] = EntropySums{};
    for (int64_t node = 0; node < q.nodes; node += U) {
        V d[U], product[U];
        double t[U], one[U];
        // where nodes are left over, the last one is computed again, and that result is not used
        for (int u = 0; u < U; u++) {
            t[u] = q.t[node + u < q.nodes ? node + u : q.nodes - 1];
            one[u] = 1 / t[u];
        }
        ESS_UNROLL
        for (int u = 0; u < U; u++) {
            product[u] = all(1.0);
            step[u] = V{};
        }
        for (int k = 0; k < N; k++) {
            ESS_UNROLL
            for (int u = 0; u < U; u++) {
                d[u] = k == 0 ? T.diagonal[k] + t[u] : T.diagonal[k] + t[u] - squares[k - 1] * inverse[(k - 1) * U + u];
                product[u] *= d[u] * one[u];
                V inv = 1.0 / d[u];
                inverse[k * U + u] = inv;
                if (k + 1 < N) step[(k + 1) * U + u] = T.off[k] * inv;
            }
        }
        const int64_t left = q.nodes - node;
        for (int u = 0; u < (left < U ? static_cast<int>(left) : U); u++) {
            NodeProducts products;
            node_products<N>(T, inverse + u, step + u, products);
            V determinant[E];
            inside<N>(block, products, t[u], determinant);
            const int64_t number = node + u;
            const double total = q.total_weight[number], mixed = q.mixed_weight[number];
            for (int s = 0; s < E; s++) {
                // where rounding errors have left nothing positive, there is no answer
                V whole = determinant[s] * product[u];
                V logdet = select(whole > V{}, log(whole), all(__builtin_nan("")));
                sums[s].total += logdet * total;
                sums[s].mixed += logdet * mixed;
            }
        }
    }
}

// Takes a block apart for the nodes, in units of its scale, a bound of the squared largest singular value at all
// positions: the sum of bounds of its parts.
template <int N>
void prepare(const Outside<N, E> &out, const BlockParts<N, E> &parts, Reduction<N> &reduction, EntropyBlock<N> &block) {
    constexpr int S = STRIPS<N>;
    Tridiagonal<N> &T = block.outside;
    // first by the trace: the reduction multiplies six entries of T with each other
    V trace = {}, rest = {};
    for (int k = 0; k < N; k++) {
        trace += out.tile(k / TILE, k / TILE)[(k % TILE) * (TILE + 1)];
        for (int r = 0; r < E; r++) {
            V x = out.tile(S, 0)[k * TILE + r];
            rest += x * x;
            T.rows[k][r] = x;
        }
        for (int j = 0; j < COLUMNS; j++) T.rows[k][E + j] = out.tile(S + 1, 0)[k * TILE + j];
    }
    for (int j = 0; j < COLUMNS; j++) {
        for (int r = 0; r < E; r++) {
            const int row = E - 1 - r;
            V x = row > j ? parts.Y[row * E + j] : V{};
            rest += x * x;
            block.inner[j][r] = x;
        }
        for (int i = j; i < COLUMNS; i++) block.corner[i][j] = out.corner[j * TILE + i];
        rest += block.corner[j][j];
    }
    // a block of nothing has sums of zero, whatever its scale
    V scale = trace + rest;
    scale = select(scale > V{}, scale, all(1.0));
    const V square = 1.0 / scale, unit = sqrt(square);
    for (int I = 0; I < S; I++) {
        for (int i = 0; i < (I + 1) * TILE * TILE; i++) reduction.matrix[I * TILE * N + i] = out.tile(I, 0)[i] * square;
    }
    for (int k = 0; k < N; k++) {
        for (int r = 0; r < E; r++) T.rows[k][r] *= unit;
        for (int j = E; j < TURNED; j++) T.rows[k][j] *= square;
    }
    tridiagonalise<N>(reduction, T);
    // then by what the outside really needs
    V largest = {};
    for (int k = 0; k < N; k++) {
        largest = max(largest, T.diagonal[k] + abs(T.off[k]) + (k > 0 ? abs(T.off[k - 1]) : V{}));
    }
    V bound = largest + rest * square;
    bound = select(bound > V{}, bound, all(1.0));
    const V again = 1.0 / bound, root = sqrt(again);
    block.rounding = out.magnitude * square * again * __DBL_EPSILON__;
    block.unit = sqrt(scale) * sqrt(bound);
    for (int k = 0; k < N; k++) {
        T.diagonal[k] *= again;
        T.off[k] *= again;
        for (int r = 0; r < E; r++) T.rows[k][r] *= root;
        for (int j = E; j < TURNED; j++) T.rows[k][j] *= again;
    }
    for (int j = 0; j < COLUMNS; j++) {
        for (int r = 0; r < E; r++) block.inner[j][r] *= unit * root;
        for (int i = j; i < COLUMNS; i++) block.corner[i][j] *= square * again;
    }
}

template <int N> struct EntropyScratch {
    LanesScratch<N, E> common;
    Reduction<N> reduction;
    EntropyBlock<N> block;
    EntropySums sums[E];
    V ess[E], bound[E], total[E];
};

template <int N>
void entropy_of_heads(const ess_lanes_entropy_job &job, const LaneHeads &heads, const WantedBlocks &range,
                      EntropyScratch<N> &scratch, V *transitions, V *gramians) {
    const int64_t length = job.tokens->length, blocks = (length + E - 1) / E;
    LanesScratch<N, E> &c = scratch.common;
    const LaneTokens tokens(*job.tokens, heads);
    observe_all<N, E>(tokens, range.first, blocks, c.tokens, transitions, gramians);
    for (V &x : c.F) x = V{};
    for (V &x : c.carried) x = V{};
    for (int64_t b = 0; b <= range.last; b++) {
        const V *a = transitions + b * N * E;
        tokens.read_block<N, E>(b * E, c.tokens);
        block_parts<N, E>(c.tokens, a, tokens.reads_before(), c.parts);
        carry_root<N>(c.F, c.parts.Phi, c.carried);
        bool wanted[W] = {}, some = false;
        for (int l = 0; l < heads.count; l++) some |= wanted[l] = job.wanted[heads.number[l] * blocks + b] != 0;
        if (some) {
            unpack<N>(gramians + b * GRAMIAN<N>, c.Q);
            outside<N, E>(c.parts, c.Q, c.F, c.carried, c.seen, c.outside);
            prepare<N>(c.outside, c.parts, scratch.reduction, scratch.block);
            entropy_sums<N>(scratch.block, *job.quadrature, scratch.sums);
            for (int s = 0; s < E; s++) {
                const int64_t position = b * E + s;
                entropy_of(scratch.sums[s], *job.quadrature, all(position < length ? job.cap[position] : 1.0),
                           scratch.block.rounding, scratch.ess[s], scratch.bound[s]);
                scratch.total[s] = scratch.sums[s].total * scratch.block.unit;
            }
            const int64_t start = b * E, left = length - start;
            store_positions<E>(scratch.ess, 1, job.ess + start, length, left, heads, wanted);
            store_positions<E>(scratch.bound, 1, job.bound + start, length, left, heads, wanted);
            store_positions<E>(scratch.total, 1, job.total + start, length, left, heads, wanted);
        }
        reach<N, E>(c.carried, c.parts.Z, c.F);
    }
}

inline int64_t entropy(const ess_lanes_entropy_job &job, int32_t threads, void *workspace) {
    return job.tokens->states <= 8
               ? by_lanes<8, E, EntropyScratch<8>>(job, 1, threads, workspace, entropy_of_heads<8>)
               : by_lanes<16, E, EntropyScratch<16>>(job, 1, threads, workspace, entropy_of_heads<16>);
}

} // namespace
} // namespace ess::ESS_LEVEL::lanes
