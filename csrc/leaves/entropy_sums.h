// Entropy-ESS from log-determinants that have been summed over the nodes of a quadrature.

#pragma once

#include "base/simd.h"
#include "include/ess_recurrence.h"

namespace ess::ESS_LEVEL::leaves {
namespace {

// squares are never taken to be more exact than this: a logarithm is taken of their error
constexpr double LEAST_ROUNDING = 1e-300;

// What the entropy of a position is made of: sums over nodes of weighted log-determinants.
struct EntropySums {
    V total, mixed;
};

// exp(log N - E / N) from N = total and E = mixed, at most `cap`, and a bound of its relative error: infinite where
// nothing is seen. `rounding`: how wrong squared singular values are by rounding, on an average over `cap` of them, in
// units of the scale: that moves the sums by at most as much times their slopes, and a root by at most its root.
ESS_INLINE void entropy_of(const EntropySums &sums, const ess_quadrature &q, V cap, V rounding, V &ess, V &bound) {
    Mask<double> seen = sums.total > V{};
    V total = select(seen, sums.total, all(1.0)), ratio = sums.mixed / total, steep = abs(ratio + 1.0);
    ess = min(max(exp(log(total) - ratio), all(1.0)), cap);
    V wrong = select(rounding < all(LEAST_ROUNDING), all(LEAST_ROUNDING), rounding); // NaN stays
    V slowly = wrong * (steep * q.total_slope + q.mixed_slope);
    V at_once = sqrt(wrong) * max(abs(ratio), 1.0 + ratio - log(wrong) * 0.5);
    V each = steep * q.total_error + q.mixed_error + min(slowly, at_once);
    bound = select(seen, cap * each / total, all(HUGE_VAL));
}

} // namespace
} // namespace ess::ESS_LEVEL::leaves
