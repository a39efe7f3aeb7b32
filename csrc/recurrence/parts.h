// Room recurrence/: recurrences with a finite state, block by block: what a block does (parts), what lies left and
// right of it (scans), and what is asked of it (counts, unsquared, entropy, roots). It may include leaves/, dense/,
// base/ and include/.
//
// A recurrence cut into blocks of c tokens: what each block [a, e) shows to the outside.
//
//   X row r     read_r A_r ... A_a             observability seen from a
//   Z column j  A_{e-1} ... A_{j+1} write_j    reachability carried to e
//   Phi         A_{e-1} ... A_a
//   Y           the block's own strictly lower T
//
// Where reads come before the transition, X and Y lose the factor A_r. Everything is a running product of factors:
// never a difference of cumulative logarithms, which overflows, and turns a gate of exactly zero into NaN.

#pragma once

#include "recurrence/diagonal.h"
#include "recurrence/matrices.h"
#include "recurrence/rank_one.h"
#include "recurrence/sizes.h"

namespace ess::ESS_LEVEL::recurrence {
namespace {

// What a thread needs to make the parts of one block, for the kind `transitions`.
struct PartsWork {
    BlockTokens tokens;
    LocalWork local;
    DenseStates dense;
    RankOneWork rank_one;

    PartsWork(Arena &arena, int64_t n, int64_t c, int32_t transitions)
        : PartsWork(arena, n, c, transitions == ESS_ROW_MAJOR || transitions == ESS_COLUMN_MAJOR,
                    transitions == ESS_RANK_ONE) {}

  private:
    PartsWork(Arena &arena, int64_t n, int64_t c, bool matrices, bool rank_one)
        : tokens(arena, n, c, rank_one), local(arena, n, c), dense(arena, matrices ? n : 0, matrices ? c : 0),
          rank_one(arena, rank_one ? n : 0, rank_one ? c : 0) {}
};

// X, Y, Z, Phi of one block.
inline void block_parts(const ess_recurrence_parts_job &job, int64_t head, int64_t block, PartsWork &work) {
    const ess_recurrence &parts = *job.parts;
    const ess_tokens &tokens = *job.tokens;
    const int64_t n = parts.n, c = parts.c, number = head * parts.blocks + block;
    const BlockParts out{parts.X + number * n * c, parts.Y + number * c * c, parts.Z + number * n * c,
                         parts.Phi + number * phi_size(parts)};
    read_tokens(tokens, head, block, !has_matrices(parts), work.tokens);
    fill(out.Y, 0, c * c);
    if (parts.transitions == ESS_RANK_ONE) {
        rank_one_parts(work.tokens, tokens.reads_before, tokens.update == nullptr, work.local, work.rank_one, out);
        if (parts.norms) token_sizes(work.tokens, tokens.states, parts.norms + number * c * 4);
    } else if (has_matrices(parts)) {
        const int64_t states = tokens.states, start = block * c, present = tokens.length - start;
        const double norm =
            dense_parts(work.tokens, tokens.reads_before, job.transition[head] + start * job.transition_stride,
                        job.transition_stride, parts.transitions == ESS_COLUMN_MAJOR, states, present, work.dense,
                        out.X, out.Y, out.Z, out.Phi);
        if (parts.norms) parts.norms[number] = norm;
    } else {
        local_operator(work.tokens, tokens.reads_before, 0, c, out.Y, work.local);
        diagonal_parts(work.tokens, tokens.reads_before, out.X, out.Z, out.Phi);
    }
}

} // namespace
} // namespace ess::ESS_LEVEL::recurrence
