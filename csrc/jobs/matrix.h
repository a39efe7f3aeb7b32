// What the kernels for dense lower triangular operators are asked to do, and how their positions are cut into a tree.
// Nothing here depends on the dispatch level.

#pragma once

#include <cstdint>

namespace ess {

// positions of a leaf; every node of the tree is a whole number of leaves
constexpr int64_t MATRIX_LEAF = 32;

// `heads` operators T, row-major; the strictly lower part of `length` x `length` is read, and counts as T scale[head].
struct MatrixOperand {
    int64_t heads, length;
    const double *T;
    int64_t row_stride, head_stride;
    const double *scale;
};

// The symmetric products along both edges of the tree, which every shift shares.
struct MatrixProductsJob {
    MatrixOperand operand;
    double *products; // [heads, matrix_products_size(length)]
    int32_t threads;
    void *workspace;
};

// Counts or log-determinants at every wanted position of every item.
struct MatrixStaircaseJob {
    MatrixOperand operand;
    const double *products;
    int64_t items;
    const int64_t *head;            // [items]
    const double *shift;            // [items]
    bool definite;                  // log-determinants, or else counts
    const uint8_t *wanted;          // [items, length]
    double *value, *growth, *least; // [items, length]; the last two for counts only
    int32_t threads;
    void *workspace;
};

// The largest magnitude of each operator, unscaled; infinity where a number is not finite.
struct MatrixLargestJob {
    MatrixOperand operand; // its scale is not read
    double *largest;       // [heads]
    int32_t threads;
    void *workspace;
};

// An upper bound of the squared norm of T, and the sums of squares of all H_i.
struct MatrixNormJob {
    MatrixOperand operand;
    int64_t steps;
    double *norm;    // [heads]
    double *squares; // [heads, length]
    int32_t threads;
    void *workspace;
};

// Each takes the measure of its workspace, in bytes, by the same lines as it deals it out: null means only that.
struct MatrixKernels {
    int64_t (*products)(const MatrixProductsJob &);
    int64_t (*staircase)(const MatrixStaircaseJob &);
    int64_t (*largest)(const MatrixLargestJob &);
    int64_t (*norm)(const MatrixNormJob &);
};

namespace {

inline int64_t matrix_leaves(int64_t length) { return (length + MATRIX_LEAF - 1) / MATRIX_LEAF; }

// The two halves of a node of `leaves` leaves: the left one is the larger.
inline int64_t left_leaves(int64_t leaves) { return (leaves + 1) / 2; }
inline int64_t right_leaves(int64_t leaves) { return leaves / 2; }

// a column longer than this by 8 keeps columns out of each other's cache sets
inline int64_t matrix_stride(int64_t rows) { return rows + 8; }

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
inline int64_t matrix_product_offset(int64_t length, Edge edge, int64_t level) {
    int64_t offset = 0;
    const Edge edges[] = {Edge::First, Edge::Last};
    for (Edge e : edges) {
        for (int64_t l = 0;; l++) {
            int64_t m = MATRIX_LEAF * edge_leaves(e, matrix_leaves(length), l);
            if ((e == edge && l == level) || m == 0) break;
            offset += m * matrix_stride(m);
        }
        if (e == edge) break;
    }
    return offset;
}

inline int64_t matrix_products_size(int64_t length) { return matrix_product_offset(length, Edge::None, 0); }

} // namespace

} // namespace ess
