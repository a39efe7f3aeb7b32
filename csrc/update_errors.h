// How far factors can be trusted that were updated from those of another position instead of being made anew.

#pragma once

#include "simd.h"

namespace ess {
namespace ESS_LEVEL {
namespace {

// An elimination that starts from the matrix is exact for a matrix that is wrong by its growth in roundings. An update
// starts from factors: where a pivot of the position before was tiny, they are large by as much, and what the update brings
// back to ordinary size keeps their rounding errors. A tiny pivot that then comes out of such numbers is wrong in
// proportion to the growth of both, and so are all positions after it.
struct UpdateErrors {
    V history, error; // the largest growth of a position so far, at least 1; the error so far, in roundings

    ESS_INLINE explicit UpdateErrors(V growth) : history(max(growth, all(1.0))), error(growth) {}

    // After a position whose own numbers grew to `own`.
    ESS_INLINE void include(V own) {
        error = max(error, own * history);
        history = max(history, own);
    }
};

} // namespace
} // namespace ESS_LEVEL
} // namespace ess
