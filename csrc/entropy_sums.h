// Entropy-ESS from log-determinants that have been summed over the nodes of a quadrature.

#pragma once

#include "simd.h"

namespace ess {
namespace ESS_LEVEL {
namespace {

// What the entropy of a position is made of: sums over nodes of weighted log-determinants, and the difference of two.
struct EntropySums {
    V total, mixed, visible;
};

// exp(log N - E / N) from N = total and E = mixed, at most `cap`, and a bound of its relative error: infinite where
// nothing is seen. `errors` are the quadrature's: whatever has its tail_unit, error and tail_error.
// `rounding`: how wrong squared singular values may be, in units of the scale.
template <class Errors>
ESS_INLINE void entropy_of(const EntropySums &sums, const Errors &errors, V cap, V rounding, V &ess, V &bound) {
    Mask<double> seen = sums.total > V{};
    V total = select(seen, sums.total, all(1.0)), ratio = sums.mixed / total;
    ess = min(max(exp(log(total) - ratio), all(1.0)), cap);
    V hidden = max(cap - sums.visible * errors.tail_unit, V{});
    V wrong = (sqrt(rounding) + errors.error) * cap + hidden * errors.tail_error;
    bound = select(seen, wrong / total * (abs(ratio + 1.0) + 1.0), all(HUGE_VAL));
}

} // namespace
} // namespace ESS_LEVEL
} // namespace ess
