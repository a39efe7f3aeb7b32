// The elimination of some rows of a symmetric matrix, in strips: a panel holds the columns of the pivots, all rows.

#pragma once

#include "dense/factor.h"
#include "dense/strips.h"

namespace ess::ESS_LEVEL::matrix {
using namespace dense;
namespace {

// columns that are factorised together
constexpr int64_t PANEL_BLOCK = 64;

// `pivots` columns of `rows` rows, both multiples of MATRIX_LEAF. U = L D takes the place of the matrix, L is its unit
// lower factor (above the diagonal of a pivot's own 8 x 8 corner zero, above that undefined).
struct Panel {
    int64_t pivots, rows;
    Strips U, L;
    double *d;      // [pivots]
    double *growth; // [rows], sum of |u l| over the row: what its diagonal entry was changed by. Counts only

    int64_t blocks() const { return (pivots + PANEL_BLOCK - 1) / PANEL_BLOCK; }
    int64_t strips() const { return rows / STRIP; }
    int64_t first(int64_t block) const { return block * PANEL_BLOCK; }
    int64_t end(int64_t block) const { return (block + 1) * PANEL_BLOCK < pivots ? (block + 1) * PANEL_BLOCK : pivots; }
};

ESS_INLINE double magnitude_of(double x) { return x < 0 ? -x : x; }

// Eight columns from `k` on of a strip, rows from vector `v` on, by the pivots of the corner: L and growth.
template <bool COUNTS>
ESS_INLINE void solve_eight(const Panel &panel, int64_t strip, int64_t k, int v, const double (&l)[TILE][TILE],
                            const double (&inverse)[TILE]) {
    constexpr int P = static_cast<int>(TILE);
    double *u = panel.U.at(strip * STRIP, k), *unit = panel.L.at(strip * STRIP, k);
    for (; v < STRIP / W; v++) {
        V a[P], sum = COUNTS ? load(panel.growth + strip * STRIP + v * W) : V{};
        ESS_UNROLL
        for (int j = 0; j < P; j++) a[j] = load(u + j * STRIP + v * W);
        ESS_UNROLL
        for (int i = 0; i < P; i++) {
            ESS_UNROLL
            for (int j = i + 1; j < P; j++) a[j] -= a[i] * all(l[i][j]);
        }
        ESS_UNROLL
        for (int j = 0; j < P; j++) {
            V scaled = a[j] * all(inverse[j]);
            store(u + j * STRIP + v * W, a[j]);
            store(unit + j * STRIP + v * W, scaled);
            if (COUNTS) sum += abs(a[j] * scaled);
        }
        if (COUNTS) store(panel.growth + strip * STRIP + v * W, sum);
    }
}

// LDL^T of the 8 x 8 corner at pivot `k`, and what the rows below it need.
template <bool COUNTS>
void factor_corner(const Panel &panel, int64_t k, double (&l)[TILE][TILE], double (&inverse)[TILE]) {
    constexpr int P = static_cast<int>(TILE);
    double *u = panel.U.at(k, k), *unit = panel.L.at(k, k);
    double corner[P][P];
    for (int j = 0; j < P; j++) {
        for (int i = j; i < P; i++) corner[j][i] = u[j * STRIP + i];
    }
    for (int p = 0; p < P; p++) {
        double pivot = corner[p][p];
        if (pivot == 0) pivot = ZERO_PIVOT;
        panel.d[k + p] = pivot;
        inverse[p] = 1 / pivot;
        for (int i = p + 1; i < P; i++) {
            l[p][i] = corner[p][i] * inverse[p];
            if (COUNTS) panel.growth[k + i] += magnitude_of(corner[p][i] * l[p][i]);
        }
        for (int j = p + 1; j < P; j++) {
            for (int i = j; i < P; i++) corner[j][i] -= corner[p][i] * l[p][j];
        }
        for (int i = 0; i < P; i++) {
            u[p * STRIP + i] = i < p ? 0.0 : i == p ? pivot : corner[p][i];
            unit[p * STRIP + i] = i < p ? 0.0 : i == p ? 1.0 : l[p][i];
        }
    }
}

// Eight columns of a strip, less a product.
ESS_INLINE void subtract_tile(int64_t depth, const double *a, const double *b, double *strip) {
    strip_tile<false>(depth, a, b, strip, STRIP, First::Continue, nullptr, 0, 1.0);
}

// What earlier blocks change in a block's columns of `count` strips. All of them read the same part of L, which stays
// in cache for them.
ESS_INLINE void update_strips(const Panel &panel, int64_t block, int64_t first, int64_t count) {
    const int64_t begin = panel.first(block);
    for (int64_t k0 = 0; k0 < begin; k0 += PASS) {
        const int64_t depth = min(PASS, begin - k0);
        for (int64_t strip = first; strip < first + count; strip++) {
            const int64_t end = min(panel.end(block), strip * STRIP + STRIP);
            const double *a = panel.U.at(strip * STRIP, k0);
            for (int64_t j = begin; j < end; j += TILE) {
                subtract_tile(depth, a, panel.L.at(j, k0), panel.U.at(strip * STRIP, j));
            }
        }
    }
}

// The part of that which the block's own columns from `begin` to `k` change in the eight from `k` on.
ESS_INLINE void update_eight(const Panel &panel, int64_t begin, int64_t k, int64_t strip) {
    if (k > begin) {
        subtract_tile(k - begin, panel.U.at(strip * STRIP, begin), panel.L.at(k, begin), panel.U.at(strip * STRIP, k));
    }
}

// The corners of a block that strips below it solve by.
struct Corners {
    double l[PANEL_BLOCK / TILE][TILE][TILE], inverse[PANEL_BLOCK / TILE][TILE];
};

// The pivots' own strips of a block, all earlier blocks being done.
template <bool COUNTS> void factor_block(const Panel &panel, int64_t block, Corners &corners) {
    const int64_t begin = panel.first(block), end = panel.end(block);
    update_strips(panel, block, begin / STRIP, (end - begin) / STRIP);
    for (int64_t k = begin; k < end; k += TILE) {
        auto &l = corners.l[(k - begin) / TILE];
        auto &inverse = corners.inverse[(k - begin) / TILE];
        for (int64_t strip = k / STRIP; strip < end / STRIP; strip++) {
            update_eight(panel, begin, k, strip);
            if (strip == k / STRIP) factor_corner<COUNTS>(panel, k, l, inverse);
            const int64_t skipped = strip == k / STRIP ? k % STRIP + TILE : 0;
            solve_eight<COUNTS>(panel, strip, k, static_cast<int>(skipped / W), l, inverse);
        }
    }
}

// strips below a block that one task solves
constexpr int64_t SOLVED_TOGETHER = 4;

// The strips below a block in groups, and one of these groups.
ESS_INLINE int64_t groups_below(const Panel &panel, int64_t block) {
    return (panel.strips() - panel.end(block) / STRIP + SOLVED_TOGETHER - 1) / SOLVED_TOGETHER;
}

template <bool COUNTS> void solve_group(const Panel &panel, int64_t block, int64_t group, const Corners &corners) {
    const int64_t begin = panel.first(block), end = panel.end(block);
    const int64_t first = end / STRIP + group * SOLVED_TOGETHER, last = min(first + SOLVED_TOGETHER, panel.strips());
    update_strips(panel, block, first, last - first);
    for (int64_t strip = first; strip < last; strip++) {
        for (int64_t k = begin; k < end; k += TILE) {
            update_eight(panel, begin, k, strip);
            solve_eight<COUNTS>(panel, strip, k, 0, corners.l[(k - begin) / TILE], corners.inverse[(k - begin) / TILE]);
        }
    }
}

// The largest entry of column k of U, the pivot included: of what its row was when it was eliminated.
inline double largest_of_column(const Panel &panel, int64_t k) {
    const int64_t next = (k / STRIP + 1) * STRIP;
    double own = 0.0;
    for (int64_t i = k; i < next; i++) own = max(own, magnitude_of(*panel.U.at(i, k)));
    V largest{};
    for (int64_t row = next; row < panel.rows; row += STRIP) {
        for (int64_t i = 0; i < STRIP; i += W) largest = max(largest, abs(load(panel.U.at(row + i, k))));
    }
    return max(own, horizontal_max(largest));
}

// log |pivots|, summed: mantissas are multiplied and exponents added, so that nothing overflows. NaN unless all are
// positive and finite.
inline double log_determinant(const double *d, int64_t count) {
    double product = 1.0, exponent = 0.0;
    for (int64_t k = 0; k < count; k++) {
        if (!(d[k] > 0.0 && d[k] <= 1.7976931348623157e308)) return d[k] * 0.0 / 0.0;
        product *= d[k] < 1e-290 ? 1e-290 : d[k];
        int64_t bits;
        std::memcpy(&bits, &product, sizeof bits);
        exponent += static_cast<double>((bits >> 52) - 1023);
        bits = (bits & 0xfffffffffffff) | (int64_t{1023} << 52);
        std::memcpy(&product, &bits, sizeof bits);
    }
    return exponent * 0.69314718055994530942 + log(all(product))[0];
}

} // namespace
} // namespace ess::ESS_LEVEL::matrix
