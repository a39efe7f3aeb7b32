// Many shifts of one tridiagonal matrix T at once, a shift a lane: L D L^T of s + T, and for rows b of a matrix B the
// sums over k of b~_k b~_k^T with b~ = B L^-T D^(-1/2), which is B (s + T)^-1 B^T.

#pragma once

#include "dense/products.h"

namespace ess::ESS_LEVEL::dense {
namespace {

// A product of numbers between 1 and 2^100 a lane, as many of them as there are; NaN once one of them is not finite.
class LaneProduct {
  public:
    LaneProduct() : mantissa_(all(1.0)), exponent_(V{}) {} // spelled out, to be compiled for this level
    void multiply(V x) {
        mantissa_ *= x;
        if (++pending_ == 8) settle();
    }
    V logarithm() const {
        V m = mantissa_, nothing = m * 0.0, e = take_exponent(m);
        return log_near_one(m) + (exponent_ + e) * 0.69314718055994530942 + nothing;
    }

  private:
    void settle() {
        // what has no exponent would get one
        const V nothing = mantissa_ * 0.0;
        exponent_ += take_exponent(mantissa_) + nothing;
        pending_ = 0;
    }
    V mantissa_, exponent_;
    int pending_ = 0;
};

// The pivots of s + T for the shifts s of `VECTORS` vectors side by side, which hides the latency of their divisions.
//
// root[k] = d_k^(-1/2) and link[k] = off_{k-1} (d_{k-1} d_k)^(-1/2), vector v's at v * n; logdet[v] = log prod d_k / s.
template <int VECTORS>
void factor_shifts(int64_t n, const double *diagonal, const double *off, const V *shift, V *root, V *link, V *logdet) {
    V previous[VECTORS], inverse_shift[VECTORS];
    LaneProduct product[VECTORS];
    ESS_UNROLL
    for (int v = 0; v < VECTORS; v++) {
        inverse_shift[v] = 1.0 / shift[v];
        previous[v] = V{};
    }
    for (int64_t k = 0; k < n; k++) {
        V entry = all(diagonal[k]), beside = all(k > 0 ? off[k - 1] : 0.0), square = beside * beside;
        ESS_UNROLL
        for (int v = 0; v < VECTORS; v++) {
            // rounding may put an eigenvalue below zero, but no pivot below the shift
            V pivot = max(shift[v] + (entry - square * previous[v]), shift[v]);
            previous[v] = 1.0 / pivot;
            root[k + v * n] = sqrt(previous[v]);
            product[v].multiply(pivot * inverse_shift[v]);
        }
        if (k > 0) {
            ESS_UNROLL
            for (int v = 0; v < VECTORS; v++) link[k + v * n] = beside * root[k + v * n] * root[k - 1 + v * n];
        }
    }
    ESS_UNROLL
    for (int v = 0; v < VECTORS; v++) {
        link[v * n] = V{};
        logdet[v] = product[v].logarithm();
    }
}

// Rows are taken PANEL at a time, and states STATES at a time: [panel][state][PANEL] is what a tile streams through.
constexpr int PANEL = 4;
constexpr int64_t STATES = 64;
constexpr int SIDE_BY_SIDE = 2;
// columns of a register tile
constexpr int SHIFT_TILE = ESS_VECTOR_BYTES == 64 ? 4 : 2;

// b~_k = B_k root_k - b~_{k-1} link_k for PANELS panels of B's rows (column-major, `b` the first) and the states begin
// .. end; `last` holds b~ of the state before `begin` and receives that of the last. Panel p goes to packed + p * size.
// Each step waits for the one before, so several panels go side by side. 3 flops a number and lane.
template <int PANELS>
ESS_INLINE void substitute(const double *b, int64_t ldb, int64_t begin, int64_t end, const V *root, const V *link,
                           V *last, V *packed, int64_t size) {
    constexpr int N = PANELS * PANEL;
    V x[N];
    ESS_UNROLL
    for (int i = 0; i < N; i++) x[i] = last[i];
    for (int64_t k = begin; k < end; k++) {
        const double *row = b + k * ldb;
        V r = root[k], l = link[k];
        ESS_UNROLL
        for (int i = 0; i < N; i++) {
            x[i] = all(row[i]) * r - x[i] * l;
            packed[i / PANEL * size + i % PANEL] = x[i];
        }
        packed += PANEL;
    }
    ESS_UNROLL
    for (int i = 0; i < N; i++) last[i] = x[i];
}

// Which entries (i, j) of a tile of PANEL x PANEL are wanted.
enum class Part { All, Lower, Corner };
ESS_INLINE constexpr bool in_part(Part part, int i, int j) {
    return part == Part::All ? true : part == Part::Lower ? i >= j : i + j < PANEL - 1;
}

// What becomes of a sum over all states: result = (sum - base) * unit, `base` the first term, `unit` applied at the
// end.
struct Sums {
    const double *base; // (i, j) at base[i + j base_ld]
    int64_t base_ld;
    V *result; // (i, j) at result[i + j ld]
    int64_t ld;
    V unit;
};

// One tile: adds the sums over `depth` states of x_i y_j to -base (`first`) or to what an earlier call left, and puts
// in the unit (`last`). Column tiles of SHIFT_TILE. 2 flops an entry, state and lane.
template <Part PART, int COLUMNS, int J0>
ESS_INLINE void accumulate(int64_t depth, const V *x, const V *y, const Sums &sums, bool first, bool last) {
    V sum[COLUMNS][PANEL];
    const V unit = sums.unit;
    const int64_t base_ld = sums.base_ld;
    const double *base = sums.base + J0 * base_ld;
    V *result = sums.result + J0 * sums.ld;
    const int64_t ld = sums.ld;
    ESS_UNROLL
    for (int j = 0; j < COLUMNS; j++) {
        ESS_UNROLL
        for (int i = 0; i < PANEL; i++) {
            if (in_part(PART, i, J0 + j)) sum[j][i] = first ? all(-base[i + j * base_ld]) : result[i + j * ld];
        }
    }
    for (int64_t k = 0; k < depth; k++) {
        V xs[PANEL];
        ESS_UNROLL
        for (int i = 0; i < PANEL; i++) {
            xs[i] = x[i];
            keep_in_register(xs[i]); // one load for all its products: loads are as scarce as products
        }
        ESS_UNROLL
        for (int j = 0; j < COLUMNS; j++) {
            V yj = y[J0 + j];
            keep_in_register(yj);
            ESS_UNROLL
            for (int i = 0; i < PANEL; i++) {
                if (in_part(PART, i, J0 + j)) sum[j][i] += xs[i] * yj;
            }
        }
        x += PANEL;
        y += PANEL;
    }
    ESS_UNROLL
    for (int j = 0; j < COLUMNS; j++) {
        ESS_UNROLL
        for (int i = 0; i < PANEL; i++) {
            if (in_part(PART, i, J0 + j)) result[i + j * ld] = last ? sum[j][i] * unit : sum[j][i];
        }
    }
}

template <Part PART>
void accumulate_tile(int64_t depth, const V *x, const V *y, const Sums &sums, bool first, bool last) {
    accumulate<PART, SHIFT_TILE, 0>(depth, x, y, sums, first, last);
    if constexpr (SHIFT_TILE < PANEL) accumulate<PART, PANEL - SHIFT_TILE, SHIFT_TILE>(depth, x, y, sums, first, last);
}

// The boundary's products for one vector of shifts. B holds c rows (reversed) and then c columns as rows, `unit`s say
// what (sum - base) is multiplied by:
//   rows.result[i + j ld], i >= j; columns.result[i + j ld], i >= j; mixed.result[j + r ld], j + r < c - 1.
// `packed`: 2 c (STATES + 1) vectors, `lasts`: 2 c. Flops a lane: 3 c^2 n and what tiles waste.
void shift_products(int64_t n, int64_t c, const double *B, int64_t ldb, const V *root, const V *link, const Sums &rows,
                    const Sums &mixed, const Sums &columns, V *packed, V *lasts) {
    const int64_t panels = c / PANEL;
    for (int64_t i = 0; i < 2 * c; i++) lasts[i] = V{};
    for (int64_t begin = 0; begin < n; begin += STATES) {
        const int64_t end = begin + STATES < n ? begin + STATES : n, depth = end - begin;
        const bool first = begin == 0, last = end == n;
        const int64_t size = depth * PANEL + PANEL;
        for (int64_t p = 0; p < 2 * panels; p += SIDE_BY_SIDE) {
            substitute<SIDE_BY_SIDE>(B + p * PANEL, ldb, begin, end, root, link, lasts + p * PANEL, packed + p * size,
                                     size);
        }
        const V *row_panels = packed, *column_panels = packed + panels * size;
        auto at = [=](const Sums &sums, int64_t i, int64_t j) {
            return Sums{sums.base + PANEL * (i + j * sums.base_ld), sums.base_ld,
                        sums.result + PANEL * (i + j * sums.ld), sums.ld, sums.unit};
        };
        for (int64_t j = 0; j < panels; j++) {
            const V *r = row_panels + j * size, *q = column_panels + j * size;
            accumulate_tile<Part::Lower>(depth, r, r, at(rows, j, j), first, last);
            for (int64_t i = j + 1; i < panels; i++) {
                accumulate_tile<Part::All>(depth, row_panels + i * size, r, at(rows, i, j), first, last);
            }
            for (int64_t i = 0; i + j < panels - 1; i++) {
                accumulate_tile<Part::All>(depth, column_panels + i * size, r, at(mixed, i, j), first, last);
            }
            const int64_t edge = panels - 1 - j;
            accumulate_tile<Part::Corner>(depth, column_panels + edge * size, r, at(mixed, edge, j), first, last);
            accumulate_tile<Part::Lower>(depth, q, q, at(columns, j, j), first, last);
            for (int64_t i = j + 1; i < panels; i++) {
                accumulate_tile<Part::All>(depth, column_panels + i * size, q, at(columns, i, j), first, last);
            }
        }
    }
}

} // namespace
} // namespace ess::ESS_LEVEL::dense
