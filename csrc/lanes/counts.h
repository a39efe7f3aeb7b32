// How many singular values exceed a tolerance, at every position of a block, for W heads at once.
//
// #{s > tau} of H is the number of positive pivots of [[-tau I, H], [H^T, -tau I]]. Here in units of tau: the outside
// is eliminated through its N states, then the block's rows from the last one up, whose sets for the positions of the
// block are nested prefixes, and then for every position the block's columns left of it.

#pragma once

#include "lanes/scans.h"
#include "leaves/counts.h"

namespace ess::ESS_LEVEL::lanes {
using namespace leaves;
namespace {

// positions of a block
constexpr int C = static_cast<int>(ESS_LANES_BLOCK);
constexpr int B = BLOCK_STRIPS<C>;

ESS_INLINE bool any_small(V pivot) { return any(abs(pivot) < all(SMALL_PIVOT)); }

static_assert(sizeof(LeafVerdict) == 3 * sizeof(V), "read as rows of three vectors");

// Scratch of an elimination.
template <int N> struct Elimination {
    static constexpr int S = STRIPS<N>, PIVOTS = N + C, ROWS = N + 2 * C;
    // U = L D: strips of depth PIVOTS
    V upper[ROWS * PIVOTS];
    V inverse[PIVOTS], pivot[PIVOTS];
    // L of one strip
    V left[TILE * PIVOTS];
    // what is left of columns x columns, element (i, j), i >= j, at [j * C + i]
    V corner[C * C];
    // the diagonal of |L| |D| |L|^T
    V growth[ROWS];
    // the largest magnitude in the pivot's row; large if the pivot is
    V row_magnitude[N];

    V *tile(int I, int J) { return upper + (I * PIVOTS + J * TILE) * TILE; }
    // U(i, k)
    V at(int i, int k) const { return upper[(i / TILE * PIVOTS + k) * TILE + i % TILE]; }
};

// The strip's L up to column `depth`.
template <int N> ESS_INLINE void left_factor(Elimination<N> &e, int I, int depth) {
    const V *strip = e.tile(I, 0);
    for (int k = 0; k < depth; k++) {
        ESS_UNROLL
        for (int i = 0; i < TILE; i++) e.left[k * TILE + i] = strip[k * TILE + i] * e.inverse[k];
    }
}

ESS_INLINE void load_scaled(Tile &tile, const V *source, V scale) {
    ESS_UNROLL
    for (int j = 0; j < TILE; j++) {
        ESS_UNROLL
        for (int i = 0; i < TILE; i++) tile.at[j][i] = source[j * TILE + i] * scale;
    }
}

// Eliminates TILE pivots, those of strip `P`, in the strips that are still needed: left-looking, one pass in registers.
template <int N> void eliminate_panel(Elimination<N> &e, const Outside<N, C> &outside, int P, V inverse_tau, V square) {
    constexpr int S = Elimination<N>::S;
    const int depth = P * TILE;
    left_factor(e, P, depth);
    Tile tile;
    // the panel's own corner
    if (P < S) {
        load_scaled(tile, outside.tile(P, P), square);
    } else {
        tile = Tile{};
    }
    for (int i = 0; i < TILE; i++) tile.at[i][i] -= all(1.0);
    accumulate<Sum::Subtract>(tile, e.tile(P, 0), e.left, depth);
    V factor[TILE][TILE], size[TILE], inverse[TILE];
    ESS_UNROLL
    for (int k = 0; k < TILE; k++) {
        V pivot = not_zero(tile.at[k][k]);
        tile.at[k][k] = pivot;
        V inv = 1.0 / pivot;
        e.pivot[depth + k] = pivot;
        e.inverse[depth + k] = inverse[k] = inv;
        size[k] = abs(inv);
        ESS_UNROLL
        for (int j = k + 1; j < TILE; j++) {
            factor[k][j] = tile.at[k][j] * inv;
            e.growth[depth + j] += abs(tile.at[k][j] * factor[k][j]);
            ESS_UNROLL
            for (int i = j; i < TILE; i++) tile.at[j][i] -= tile.at[k][i] * factor[k][j];
        }
    }
    store_tile(e.tile(P, P), 0, tile);
    // the strips below; a row of the block does not meet the columns at or right of it
    const int last = P < S ? S + 2 * B : S + 2 * B - (P - S);
    for (int I = P + 1; I < last; I++) {
        const bool row = I >= S && I < S + B;
        if (P >= S && row) tile = Tile{}; // rows x rows
        else load_scaled(tile, outside.tile(I, P), P >= S || row ? inverse_tau : square);
        accumulate<Sum::Subtract>(tile, e.tile(I, 0), e.left, depth);
        ESS_UNROLL
        for (int k = 0; k < TILE; k++) {
            ESS_UNROLL
            for (int j = k + 1; j < TILE; j++) {
                ESS_UNROLL
                for (int i = 0; i < TILE; i++) tile.at[j][i] -= tile.at[k][i] * factor[k][j];
            }
        }
        store_tile(e.tile(I, P), 0, tile);
        // columns meet the block's rows position by position: the leaf adds that up
        if (P >= S && I >= S + B) continue;
        ESS_UNROLL
        for (int i = 0; i < TILE; i++) {
            V sum = e.growth[I * TILE + i];
            ESS_UNROLL
            for (int k = 0; k < TILE; k++) sum += tile.at[k][i] * tile.at[k][i] * size[k];
            e.growth[I * TILE + i] = sum;
        }
    }
}

// The largest magnitude of the row of a pivot of the outside.
template <int N> V outside_row(const Elimination<N> &e, int k) {
    V largest = {};
    for (int i = k; i < Elimination<N>::ROWS; i++) {
        // rows of a strip above the diagonal of its own tile hold nothing
        largest = max(largest, abs(e.at(i, k)));
    }
    return largest;
}

// The block's rows, as its columns need them.
template <int N> class BlockRows {
  public:
    // The corner is what is left of columns x columns without these rows.
    explicit BlockRows(Elimination<N> &e) : e_(e) {
        for (int row = 0; row < C; row++) {
            for (int j = 0; j < C - 1 - row; j++) entries_[row * C + j] = e.at(N + C + j, N + row);
        }
        for (V &x : least_) x = all(1.0);
        for (int row = 0; row < C; row++) {
            if (any_small(e.pivot[N + row])) small_row(row);
        }
        for (int i = 0; i < C * C; i++) corner_[i] = e.corner[i];
    }

    ESS_INLINE V pivot(int row) const { return e_.pivot[N + row]; }
    ESS_INLINE const V *entries(int row) const { return entries_ + row * C; }
    ESS_INLINE V growth(int row) const { return e_.growth[N + row]; }
    ESS_INLINE V least(int s) const { return least_[s]; }
    void columns(V *target) const {
        for (int i = 0; i < C * C; i++) target[i] = corner_[i];
    }

  private:
    // A row whose pivot is small: what else is in it, for each of the positions that have it.
    void small_row(int row) {
        const int k = N + row;
        V below[C], beside = {};
        V largest = abs(e_.pivot[k]);
        for (int i = row; i < C; i++) {
            if (i > row) largest = max(largest, abs(e_.at(N + i, k)));
            below[i] = largest;
        }
        for (int s = 0; s < C - row; s++) {
            // position s has the rows up to C - 1 - s and the columns below s
            least_[s] = min(least_[s], max(below[C - 1 - s], beside));
            beside = max(beside, abs(e_.at(N + C + s, k)));
        }
    }

    Elimination<N> &e_;
    V entries_[C * C], corner_[C * C], least_[C];
};

// Counts at the C positions of a block for one tolerance per lane: about N^3 / 3 + 4 N^2 C + 6 N C^2 flops.
template <int N> void count_block(const Outside<N, C> &outside, V tau, Elimination<N> &e, LeafVerdict *positions) {
    constexpr int S = STRIPS<N>;
    const V inverse_tau = 1.0 / tau, square = inverse_tau * inverse_tau;
    for (V &g : e.growth) g = V{};
    for (int P = 0; P < S; P++) eliminate_panel(e, outside, P, inverse_tau, square);
    LeafVerdict verdict = {V{}, outside.magnitude * square, all(1.0)};
    for (int k = 0; k < N; k++) {
        verdict.positive += select(e.pivot[k] > V{}, all(1.0), V{});
        if (any_small(e.pivot[k])) verdict.least = min(verdict.least, outside_row(e, k));
    }
    for (V g : e.growth) verdict.growth = max(verdict.growth, g);
    // columns x columns, without the block's rows
    for (int I = 0; I < B; I++) {
        for (int J = 0; J <= I; J++) {
            Tile tile;
            load_scaled(tile, outside.corner + (I * C + J * TILE) * TILE, square);
            if (I == J) {
                for (int i = 0; i < TILE; i++) tile.at[i][i] -= all(1.0);
            }
            left_factor(e, S + B + J, N);
            accumulate<Sum::Subtract>(tile, e.tile(S + B + I, 0), e.left, N);
            for (int j = 0; j < TILE; j++) {
                for (int i = 0; i < TILE; i++) e.corner[(J * TILE + j) * C + I * TILE + i] = tile.at[j][i];
            }
        }
    }
    for (int P = S; P < S + B; P++) eliminate_panel(e, outside, P, inverse_tau, square);
    V work[columns_work(C)];
    const BlockRows<N> rows(e);
    const auto put = [=](int s, const LeafVerdict &found) { positions[s] = found; };
    LeafColumns<C, BlockRows<N>, decltype(put)>(C, e.corner, work, verdict, rows, put).run();
}

// --- W heads side by side --------------------------------------------------------------------------------------------

template <int N> struct CountsScratch {
    LanesScratch<N, C> common;
    Elimination<N> elimination;
    LeafVerdict positions[C];
};

template <int N>
void count_heads(const ess_lanes_counts_job &job, const LaneHeads &heads, const WantedBlocks &range,
                 CountsScratch<N> &scratch, V *transitions, V *gramians) {
    const int64_t length = job.tokens->length, blocks = (length + C - 1) / C, S = job.tolerances;
    LanesScratch<N, C> &c = scratch.common;
    const LaneTokens tokens(*job.tokens, heads);
    observe_all<N, C>(tokens, range.first, blocks, c.tokens, transitions, gramians);
    for (V &x : c.F) x = V{};
    for (V &x : c.carried) x = V{};
    for (int64_t b = 0; b <= range.last; b++) {
        const V *a = transitions + b * N * C;
        tokens.read_block<N, C>(b * C, c.tokens);
        block_parts<N, C>(c.tokens, a, tokens.reads_before(), c.parts);
        carry_root<N>(c.F, c.parts.Phi, c.carried);
        bool ready = false;
        for (int64_t s = 0; s < S; s++) {
            bool wanted[W] = {}, some = false;
            V tau = all(1.0);
            for (int l = 0; l < heads.count; l++) {
                const int64_t at = (heads.number[l] * S + s) * blocks + b;
                wanted[l] = job.wanted[at] != 0;
                some |= wanted[l];
                if (wanted[l]) tau[l] = job.tau[at];
            }
            if (!some) continue;
            if (!ready) {
                unpack<N>(gramians + b * GRAMIAN<N>, c.Q);
                outside<N, C>(c.parts, c.Q, c.F, c.carried, c.seen, c.outside);
                ready = true;
            }
            count_block<N>(c.outside, tau, scratch.elimination, scratch.positions);
            const int64_t offset = s * length + b * C, left = length - b * C;
            const V *first = &scratch.positions->positive;
            double *const targets[] = {job.value, job.growth, job.least};
            for (int field = 0; field < 3; field++) {
                store_positions<C>(first + field, 3, targets[field] + offset, S * length, left, heads, wanted);
            }
        }
        reach<N, C>(c.carried, c.parts.Z, c.F);
    }
}

inline int64_t counts(const ess_lanes_counts_job &job, int32_t threads, void *workspace) {
    const int64_t S = job.tolerances;
    return job.tokens->states <= 8 ? by_lanes<8, C, CountsScratch<8>>(job, S, threads, workspace, count_heads<8>)
                                   : by_lanes<16, C, CountsScratch<16>>(job, S, threads, workspace, count_heads<16>);
}

} // namespace
} // namespace ess::ESS_LEVEL::lanes
