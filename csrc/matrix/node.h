// A node of the tree, and how one of its halves comes out of it.
//
// A node holds the symmetric matrix [[R, K^T], [K, C]] of its own rows, in reverse order, and columns, in units of the
// shift, after everything that all its positions share (later rows, earlier columns) has been eliminated. Its left half
// shares the later rows, the right half the earlier columns: a half eliminates these pivots and keeps its own rows and
// columns. For log-determinants C is kept with its sign turned, so that R and C are both positive definite.

#pragma once

#include "leaves/leaf.h"
#include "matrix/panel.h"
#include "matrix/tree.h"

namespace ess::ESS_LEVEL::matrix {
using namespace leaves;
namespace {

struct Node {
    Block R, K, C;       // lower triangle; K(column, reversed row) where column + row < size - 1; lower triangle
    int64_t padding;     // so many of the first reversed rows are zero tokens: K is not there to be read
    int64_t size, start; // positions start..start + size - 1
    double value, growth, least;
    Edge edge;     // whether R or C is still trivial, and the node a view of T and its products
    int64_t level; // of the edge
};

// The memory of a node: R, K and C, column-major.
struct NodeMemory {
    double *R, *K, *C;

    static int64_t size(int64_t m) { return 3 * m * node_stride(m); }
    static NodeMemory in(double *memory, int64_t m) {
        const int64_t part = m * node_stride(m);
        return {memory, memory + part, memory + 2 * part};
    }
};

// One half of a node that has pivots to eliminate.
struct Half {
    Node parent;
    bool left, definite;
    int64_t size; // of the half
    Panel panel;  // rows: the pivots, the half's reversed rows, its columns
    NodeMemory memory;
    Node child;

    int64_t strips_per_block() const { return size / STRIP; }
};

// a multiple of STRIP_BUNDLE strips covers any block of the trailing part
ESS_INLINE int64_t trailing_bundles(const Half &half) {
    return 3 * ((half.strips_per_block() + STRIP_BUNDLE - 1) / STRIP_BUNDLE);
}

// Lays out one strip of a half's panel.
inline void fill_strip(const Half &half, int64_t strip) {
    const Node &node = half.parent;
    const Panel &panel = half.panel;
    const Block &own = half.left ? node.R : node.C;
    const int64_t pivots = panel.pivots, row = strip * STRIP;
    for (int64_t k = 0; k < pivots; k += PASS) {
        int64_t columns = min(PASS, pivots - k);
        double *target = panel.U.at(row, k);
        if (row < pivots) {
            // up to the diagonal; what lies above is never read
            columns = min(columns, row + STRIP - k);
            if (columns > 0) copy_strip(own.from(row, k), columns, target);
        } else if (row < pivots + half.size) {
            if (half.left) copy_strip(own.from(row, k), columns, target);
            else transpose_strip(node.K.from(k, row - pivots), columns, target);
        } else if (half.left) {
            const int64_t padding = k == 0 ? node.padding : 0;
            for (int64_t i = 0; i < padding * STRIP; i += W) store(target + i, V{});
            copy_strip(node.K.from(row - pivots - half.size, k + padding), columns - padding, target + padding * STRIP);
        } else {
            copy_strip(own.from(row - half.size, k), columns, target);
        }
    }
    if (row < pivots) {
        for (int64_t i = row; i < row + STRIP; i++) *panel.U.at(i, i) += own.diagonal;
    }
    if (!half.definite) {
        for (int64_t i = 0; i < STRIP; i += W) store(panel.growth + row + i, V{});
    }
}

// One bundle of strips of what the half keeps: R, K and C of the child, less what the pivots take away.
inline void update_bundle(const Half &half, int64_t bundle) {
    const Node &node = half.parent;
    const int64_t h = half.size, p = half.panel.pivots, ld = node_stride(h);
    const int64_t per_block = trailing_bundles(half) / 3, part = bundle / per_block;
    const int64_t row = bundle % per_block * STRIP_BUNDLE * STRIP, rows = min(STRIP_BUNDLE * STRIP, h - row);
    // positions of the half's own rows and columns among the parent's
    const int64_t r = half.left ? p : 0, c = half.left ? 0 : p;
    const Strips U = half.panel.U, L = half.panel.L;
    if (part == 1) {
        // a row or column of K that the half keeps is never beyond the part of the parent's that is there
        multiply_strips<false>(row, rows, h, U, p + h, L, p, node.K.from(c, r), half.memory.K, ld, {h, false});
        return;
    }
    const bool own = (part == 0) == half.left;
    const int64_t first = part == 0 ? p : p + h; // in the panel
    const Block block = part == 0 ? node.R.from(r, r) : node.C.from(c, c);
    double *target = part == 0 ? half.memory.R : half.memory.C;
    // pivots of the other sign add, where signs are turned
    const auto multiply = half.definite && !own ? multiply_strips<true> : multiply_strips<false>;
    multiply(row, rows, row + rows, U, first, L, first, block, target, ld, {h, true});
}

// The child, when its panel is done: value, growth and least row.
inline void finish_half(Half &half) {
    const Node &node = half.parent;
    const Panel &panel = half.panel;
    const int64_t ld = node_stride(half.size);
    Node &child = half.child;
    child = node;
    child.R = {half.memory.R, ld, 1.0, 0.0};
    child.K = {half.memory.K, ld, 1.0, 0.0};
    child.C = {half.memory.C, ld, 1.0, 0.0};
    child.padding = 0;
    child.edge = Edge::None;
    child.size = half.size;
    child.start = half.left ? node.start : node.start + panel.pivots;
    if (half.definite) {
        child.value += log_determinant(panel.d, panel.pivots);
        return;
    }
    int64_t positive = 0;
    V growth{};
    for (int64_t k = 0; k < panel.pivots; k++) {
        positive += panel.d[k] > 0;
        // Only a small pivot can belong to a negligible row, for the pivot is one of the row's entries.
        if (magnitude_of(panel.d[k]) < SMALL_PIVOT) child.least = min(largest_of_column(panel, k), child.least);
    }
    for (int64_t i = 0; i < panel.rows; i += W) growth = max(growth, load(panel.growth + i));
    child.value += static_cast<double>(positive);
    child.growth += horizontal_max(growth);
}

template <bool COUNTS> void eliminate_half(Half &half) {
    Panel &panel = half.panel;
    Corners corners;
    for (int64_t strip = 0; strip < panel.strips(); strip++) fill_strip(half, strip);
    for (int64_t block = 0; block < panel.blocks(); block++) {
        factor_block<COUNTS>(panel, block, corners);
        for (int64_t group = 0; group < groups_below(panel, block); group++) {
            solve_group<COUNTS>(panel, block, group, corners);
        }
    }
    for (int64_t bundle = 0; bundle < trailing_bundles(half); bundle++) update_bundle(half, bundle);
    finish_half(half);
}

} // namespace
} // namespace ess::ESS_LEVEL::matrix
