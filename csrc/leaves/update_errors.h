// How far LDL^T factors can be trusted to which rank-one terms were added, instead of being made anew.
//
// A term alpha w w^T takes column j from pivot d and entries l to d' and l', w to w' = w - p l with p = w_j, t = alpha
// p, and alpha to alpha' = alpha d / d'. Put every rounding of this back into the matrix, so that the factors are exact
// for it: its entry (i, k) is then wrong, in roundings, by a few times
//
//     |d l_i l_k|,  |d' l'_i l'_k|,  |alpha w_i w_k|,  |alpha' w'_i w'_k|,  |t l_i w_k|  and  |t l'_i w'_k|
//
// (the rounding of w' counts alpha w w', since t l' + alpha' w' = alpha w). None of them can be told from the pivots:
// tiny ones make these parts huge, of opposite signs, and what they add up to may be small again where a column's turn
// comes. So the largest entries of l and of w are kept for every column and term.

#pragma once

#include "base/simd.h"

namespace ess::ESS_LEVEL::leaves {
namespace {

// errors of this many roundings are as good as none: widths of 3e-8
constexpr double HARMLESS = 0x1p27;

// The errors of factors that take TERMS terms in one pass over their columns, in roundings.
template <int TERMS> class UpdateErrors {
  public:
    // Errors that are below `harmless` are not worth new factors.
    ESS_INLINE explicit UpdateErrors(V harmless) : harmless_(harmless) {}

    // Factors were made from a matrix, in some lanes, and no diagonal entry's updates were larger than `growth`.
    ESS_INLINE void restart(Mask<double> lanes, V growth) { error_ = select(lanes, growth, error_); }

    // The next pass begins.
    ESS_INLINE void begin() {
        ESS_UNROLL
        for (int u = 0; u < TERMS; u++) own_[u] = V{};
    }

    // Something that term u rounds is so large.
    ESS_INLINE void include(int u, V size) { own_[u] = max(own_[u], size); }

    // What the factors are wrong by after the next term, once the pass is over.
    ESS_INLINE V after(int u) { return error_ = max(error_, own_[u]); }

    // In which lanes that is more than factors need be wrong by.
    ESS_INLINE Mask<double> harmful() const { return error_ > harmless_; }
    ESS_INLINE V harmless() const { return harmless_; }

  private:
    const V harmless_;
    V error_{}, own_[TERMS];
};

} // namespace
} // namespace ess::ESS_LEVEL::leaves
