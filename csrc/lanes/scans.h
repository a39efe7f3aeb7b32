// What counts and entropies of W heads side by side have in common: scans over their blocks, and where results go.

#pragma once

#include "base/team_work.h"
#include "lanes/blocks.h"

namespace ess::ESS_LEVEL::lanes {
namespace {

template <int N, int C> struct LanesScratch {
    BlockTokens<N, C> tokens;
    BlockParts<N, C> parts;
    Outside<N, C> outside;
    V Q[N * N], F[N * N], carried[N * N], seen[N * N];
};

// The transitions of all blocks, and the Gramian at the right edge of each from `first` on.
template <int N, int C>
void observe_all(const LaneTokens &tokens, int64_t first, int64_t blocks, BlockTokens<N, C> &scratch, V *transitions,
                 V *gramians) {
    for (int i = 0; i < GRAMIAN<N>; i++) gramians[(blocks - 1) * GRAMIAN<N> + i] = V{};
    for (int64_t b = blocks - 1; b > first; b--) {
        tokens.read_transitions<N, C>(b * C, transitions + b * N * C);
        tokens.read_block<N, C>(b * C, scratch);
        observe<N, C>(scratch, transitions + b * N * C, tokens.reads_before(), gramians + b * GRAMIAN<N>,
                      gramians + (b - 1) * GRAMIAN<N>);
    }
    for (int64_t b = first; b >= 0; b--) tokens.read_transitions<N, C>(b * C, transitions + b * N * C);
}

// F^T Phi, upper triangular
template <int N> void carry_root(const V *F, const V *Phi, V *carried) {
    for (int I = 0; I < STRIPS<N>; I++) {
        for (int k = I * TILE; k < N; k++) {
            ESS_UNROLL
            for (int i = 0; i < TILE; i++) {
                carried[(I * N + k) * TILE + i] = F[(I * N + k) * TILE + i] * Phi[k];
            }
        }
    }
}

// Writes what is known of the C positions of a block to `target`, `[heads][length]` with `head_stride` between heads.
template <int C>
void store_positions(const V *rows, int row_stride, double *target, int64_t head_stride, int64_t left,
                     const LaneHeads &heads, const bool *wanted) {
    alignas(64) double numbers[W][C];
    for (int s = 0; s < C; s++) {
        V x = rows[s * row_stride];
        for (int l = 0; l < W; l++) numbers[l][s] = x[l];
    }
    const int64_t count = left < C ? left : C;
    for (int l = 0; l < W; l++) {
        if (!wanted[l]) continue; // no lane without a head is
        double *mine = target + heads.number[l] * head_stride;
        for (int64_t s = 0; s < count; s++) mine[s] = numbers[l][s];
    }
}

// Which of `blocks` blocks are wanted in any of `rows` rows of `wanted`: from the first to the last of them.
struct WantedBlocks {
    int64_t first, last = -1;

    explicit WantedBlocks(int64_t blocks) : first(blocks) {}
    bool none() const { return last < 0; }
    void look(const uint8_t *wanted, int64_t rows, int64_t blocks) {
        for (int64_t row = 0; row < rows; row++) {
            for (int64_t b = 0; b < blocks; b++) {
                if (!wanted[row * blocks + b]) continue;
                if (b < first) first = b;
                if (b > last) last = b;
            }
        }
    }
};

// What a thread works with: scratch, the transitions and the Gramians of all blocks.
template <int N, int C, class Scratch> struct LanesWorkspace {
    Scratch *scratch;
    V *transitions, *gramians;

    LanesWorkspace(Arena &arena, int64_t blocks)
        : scratch(arena.take<Scratch>(1)), transitions(arena.take<V>(blocks * N * C)),
          gramians(arena.take<V>(blocks * GRAMIAN<N>)) {}
};

// The heads of which anything is wanted, W at a time, which threads take in turn. A head has `rows` rows of `wanted`.
template <int N, int C, class Scratch, class Job>
int64_t by_lanes(const Job &job, int64_t rows, int32_t threads, void *workspace,
                 void (*answer)(const Job &, const LaneHeads &, const WantedBlocks &, Scratch &, V *, V *)) {
    const int64_t heads = job.tokens->heads, blocks = (job.tokens->length + C - 1) / C, most = (heads + W - 1) / W;
    Arena shared(workspace);
    int64_t *chosen = shared.take<int64_t>(heads), count = 0;
    for (int64_t h = 0; chosen && h < heads; h++) {
        WantedBlocks any(blocks);
        any.look(job.wanted + h * rows * blocks, rows, blocks);
        if (!any.none()) chosen[count++] = h;
    }
    TaskCounter tasks((count + W - 1) / W);
    auto body = [&](LanesWorkspace<N, C, Scratch> &own) {
        FlushDenormals flush;
        for (int64_t task = tasks.take(); task >= 0; task = tasks.take()) {
            const int64_t left = count - task * W;
            const LaneHeads lanes = {chosen + task * W, left < W ? static_cast<int>(left) : W};
            WantedBlocks range(blocks);
            for (int l = 0; l < lanes.count; l++) {
                range.look(job.wanted + lanes.number[l] * rows * blocks, rows, blocks);
            }
            answer(job, lanes, range, *own.scratch, own.transitions, own.gramians);
        }
    };
    if (threads > most) threads = static_cast<int32_t>(most);
    return run_with<LanesWorkspace<N, C, Scratch>>(shared, threads, body, blocks);
}

} // namespace
} // namespace ess::ESS_LEVEL::lanes
