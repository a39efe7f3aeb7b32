// Room matrix/: any lower triangular operator, by a tree of its positions; the weights of softmax attention are made
// here as well. It may include leaves/, dense/, base/ and include/.
//
// How the positions of a dense operator are cut into a tree, the same at every dispatch level.

#pragma once

#include <cstdint>

#include "include/ess_attention.h"

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

// a column longer than this by 8 keeps columns out of each other's cache sets
inline int64_t node_stride(int64_t rows) { return rows + 8; }

// The nodes along the two edges of the tree, level by level from the root's halves to a leaf: the first node `[0, m)`
// and the last one `[s, padded length)`. Each has a symmetric product of T with itself that every shift shares.
enum class Edge { None, First, Last };

inline int64_t edge_half(Edge edge, int64_t leaves) {
    return edge == Edge::First ? left_leaves(leaves) : right_leaves(leaves);
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
