// Sizes that a recurrence's arrays have at every dispatch level.

#pragma once

#include "include/ess_recurrence.h"

namespace ess {
namespace {

inline int64_t blocks_of(const ess_recurrence &parts) { return parts.heads * parts.blocks; }

// Whether the product of a block's transitions is a matrix, and whether the transitions are.
inline bool full_phi(const ess_recurrence &parts) { return parts.transitions != ESS_DIAGONAL; }
inline bool has_matrices(const ess_recurrence &parts) {
    return parts.transitions == ESS_ROW_MAJOR || parts.transitions == ESS_COLUMN_MAJOR;
}

inline int64_t phi_size(const ess_recurrence &parts) { return full_phi(parts) ? parts.n * parts.n : parts.n; }

// Factors of a block's outside (OutsideFactors in recurrence/unsquared.h); n + 8 and c + 8 keep columns out of each
// other's cache sets.
constexpr int64_t outside_size(int64_t n, int64_t c) { return (n + 8) * (n + c) + (c + 8) * n + 8; }

} // namespace
} // namespace ess
