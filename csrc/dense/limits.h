// Magnitudes at which eliminations and reflections treat a number in a special way, the same in every kernel.

#pragma once

#include "base/simd.h"

namespace ess::ESS_LEVEL::dense {
namespace {

// squared lengths below this are zero: a reflector of such a column would be noise
constexpr double NO_COLUMN = 1e-280;
// what stands for a pivot of exactly zero: the growth that it causes is beyond every limit
constexpr double ZERO_PIVOT = 1e-300;
// a pivot below this, in units of the shift, makes it worth looking at its whole row
constexpr double SMALL_PIVOT = 1e-2;

ESS_INLINE V not_zero(V pivot) { return select(pivot == V{}, all(ZERO_PIVOT), pivot); }

} // namespace
} // namespace ess::ESS_LEVEL::dense
