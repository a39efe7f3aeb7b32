// Room matrix/: any lower triangular operator, by a tree of its positions; the weights of softmax attention are made
// here as well. It may include leaves/, dense/, base/ and include/.
//
// How the positions of a dense operator are cut into a tree, the same at every dispatch level.

#pragma once

#include <cstdint>

#include "include/ess_attention.h"
#include "include/ess_matrix.h"

namespace ess {

// positions of a leaf; every node of the tree is a whole number of leaves
constexpr int64_t MATRIX_LEAF = 32;

namespace {

// Rows and columns of the weights of attention in memory.
inline int64_t padded_rows(int64_t length) {
    return (length + ESS_ATTENTION_TILE - 1) / ESS_ATTENTION_TILE * ESS_ATTENTION_TILE;
}

inline int64_t leaves_of(int64_t length) { return (length + MATRIX_LEAF - 1) / MATRIX_LEAF; }

// The two halves of a node of `leaves` leaves: the left one is the larger.
inline int64_t left_leaves(int64_t leaves) { return (leaves + 1) / 2; }
inline int64_t right_leaves(int64_t leaves) { return leaves / 2; }

// The position at which the two halves of the positions meet, 0 where there is one leaf only.
inline int64_t middle_of(int64_t length) {
    return leaves_of(length) > 1 ? MATRIX_LEAF * left_leaves(leaves_of(length)) : 0;
}

// Row and column `row`, `column` of a head's operator, of which the part that is there must have it.
inline const double *entry(const ess_matrix &operand, int64_t head, int64_t row, int64_t column) {
    const int64_t middle = middle_of(operand.length);
    if (operand.part == ESS_MATRIX_CORNER || operand.part == ESS_MATRIX_LAST) row -= middle;
    if (operand.part == ESS_MATRIX_LAST) column -= middle;
    return operand.T + head * operand.head_stride + row * operand.row_stride + column;
}

// a column longer than this by 8 keeps columns out of each other's cache sets
inline int64_t node_stride(int64_t rows) { return rows + 8; }

// The nodes along the two edges of the tree, level by level from the root's halves to a leaf: the first node `[0, m)`
// and the last one `[s, padded length)`. Each has a symmetric product of T with itself that every shift shares.
enum class Edge { None, First, Last };

inline int64_t edge_half(Edge edge, int64_t leaves) {
    return edge == Edge::First ? left_leaves(leaves) : right_leaves(leaves);
}

// Whether the node of an edge at a level needs nothing but the part of the operator that is there.
inline bool in_part(int32_t part, Edge edge, int64_t level) {
    switch (part) {
    case ESS_MATRIX_CORNER: return level == 0;
    case ESS_MATRIX_FIRST: return level > 0 && edge == Edge::First;
    case ESS_MATRIX_LAST: return level > 0 && edge == Edge::Last;
    default: return true;
    }
}

// Leaves of the edge's node at a level, 0 where it has no such level.
inline int64_t edge_leaves(Edge edge, int64_t leaves, int64_t level) {
    for (int64_t l = 0; l <= level; l++) leaves = leaves > 1 ? edge_half(edge, leaves) : 0;
    return leaves;
}

// Where the product of an edge's node begins among those of a head, which lie level by level, the first node's before
// the last one's; with Edge::None, how many numbers there are in all.
inline int64_t product_offset(int64_t length, Edge edge, int64_t level) {
    int64_t offset = 0;
    const Edge edges[] = {Edge::First, Edge::Last};
    for (Edge e : edges) {
        for (int64_t l = 0;; l++) {
            int64_t m = MATRIX_LEAF * edge_leaves(e, leaves_of(length), l);
            if ((e == edge && l == level) || m == 0) break;
            offset += m * node_stride(m);
        }
        if (e == edge) break;
    }
    return offset;
}

inline int64_t products_size(int64_t length) { return product_offset(length, Edge::None, 0); }

} // namespace
} // namespace ess
