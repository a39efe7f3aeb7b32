// How far LDL^T factors can be trusted to which rank-one terms were added, instead of being made anew.
//
// A term alpha w w^T takes column j from pivot d and entries l to d' and l', w to w' = w - p l with p = w_j, t = alpha p, and
// alpha to alpha' = alpha d / d'. Put every rounding of this back into the matrix, so that the factors are exact for it: its
// entry (k, k) is then wrong, in roundings, by a few times
//
//     |d| l_k^2,  |d'| l'_k^2,  |alpha| w_k^2,  |alpha'| w'_k^2,  |t l_k w_k|  and  |t w'_k l'_k|
//
// (the rounding of w' counts 2 alpha w w', since t l' + alpha' w' = alpha w). The first four are parts of a diagonal entry,
// before or after: no larger than growth, which is watched at the pivots. The last two are sqrt(|d' / d - 1|) times the
// geometric mean of two of these. They matter where a pivot that was tiny has become large, in one step: a tolerance on
// singular values of two sub-blocks at once. There they are measured.

#pragma once

#include "simd.h"

namespace ess {
namespace ESS_LEVEL {
namespace {

// errors of this many roundings are as good as none: widths of 3e-8
constexpr double HARMLESS = 0x1p27;

// The errors of factors that take TERMS terms in one pass over their columns, in roundings.
template <int TERMS> class UpdateErrors {
  public:
    // Errors that are below `harmless` need no measuring.
    ESS_INLINE explicit UpdateErrors(V harmless) : harmless_(harmless), square_(harmless * harmless) {}

    // Factors were made from a matrix, in some lanes, and no diagonal entry's updates were larger than `growth`.
    ESS_INLINE void restart(Mask<double> lanes, V growth) {
        size_ = select(lanes, growth, size_);
        error_ = select(lanes, growth, error_);
    }

    // The next pass begins.
    ESS_INLINE void begin() {
        ESS_UNROLL
        for (int u = 0; u < TERMS; u++) own_[u] = cross_[u] = steepest_[u] = V{};
    }

    // Term u changes a pivot by `update` to `after`.
    ESS_INLINE void pivot(int u, V update, V after) { own_[u] = max(own_[u], max(abs(update), abs(after))); }

    // The same for the first column, whose growth the caller knows.
    ESS_INLINE void first_pivot(int u, V growth) { own_[u] = max(own_[u], growth); }

    // In which lanes a column must be measured whose pivots change by these parts of what they were; in the others it is
    // done with. What is said of a lane depends on no other.
    ESS_INLINE Mask<double> must_measure(const V (&change)[TERMS]) {
        V size = size_, largest = V{};
        ESS_UNROLL
        for (int u = 0; u < TERMS; u++) {
            size = max(size, own_[u]);
            largest = max(largest, size * change[u]);
        }
        const Mask<double> suspicious = size * largest > square_;
        ESS_UNROLL
        for (int u = 0; u < TERMS; u++) steepest_[u] = max(steepest_[u], select(suspicious, V{}, change[u]));
        return suspicious;
    }

    // The largest |t l w| or |t w' l'| of a column and term, in the lanes that asked for it.
    ESS_INLINE void measured(int u, Mask<double> lanes, V cross) { cross_[u] = max(cross_[u], select(lanes, cross, V{})); }

    // What the factors are wrong by after the next term, once the pass is over.
    ESS_INLINE V after(int u) {
        size_ = max(size_, own_[u]);
        error_ = max(error_, max(cross_[u], size_ * sqrt(1.0 + steepest_[u])));
        return error_;
    }

    // In which lanes that is more than factors need be wrong by.
    ESS_INLINE Mask<double> harmful() const { return error_ > harmless_; }
    ESS_INLINE V harmless() const { return harmless_; }

  private:
    const V harmless_, square_;
    V size_{}, error_{}; // the largest part of a diagonal entry, and the largest error, so far
    V own_[TERMS], cross_[TERMS], steepest_[TERMS];
};

} // namespace
} // namespace ESS_LEVEL
} // namespace ess
