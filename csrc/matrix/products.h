// The products of T with itself along both edges of the tree: all that the elimination of pivots -I or +I needs.
//
// The first node [0, m) sees the later rows, G = T[m:, :m]^T T[m:, :m]; the last node [s, L) the earlier columns,
// G = T[s:, :s] T[s:, :s]^T with its rows in reverse order. Going down an edge adds to the leading part of the product
// above, so that a level of half the size costs an eighth: 2/7 L^3 flops in all, lower triangles only.

#pragma once

#include "dense/strips.h"
#include "include/ess_matrix.h"
#include "matrix/tree.h"

namespace ess::ESS_LEVEL::matrix {
using namespace dense;
namespace {

// One node of an edge and its product.
struct EdgeProduct {
    Edge edge;
    int64_t size, begin, end; // positions; inner index: rows of T for the first node, columns for the last one
    double *product;
    Block above; // the leading part of the product above

    int64_t depth() const { return end - begin; }
};

inline EdgeProduct edge_product(Edge edge, int64_t level, int64_t length, double *products) {
    const int64_t leaves = leaves_of(length), whole = leaves * MATRIX_LEAF;
    const int64_t size = MATRIX_LEAF * edge_leaves(edge, leaves, level);
    const int64_t above = level > 0 ? MATRIX_LEAF * edge_leaves(edge, leaves, level - 1) : whole;
    EdgeProduct p{};
    p.edge = edge;
    p.size = size;
    // zero tokens behind the last one add nothing to the first node's sum over rows
    p.begin = edge == Edge::First ? size : whole - above;
    p.end = edge == Edge::First ? (level > 0 ? above : length) : whole - size;
    if (products && size) {
        p.product = products + product_offset(length, edge, level);
        if (level > 0) {
            p.above = {products + product_offset(length, edge, level - 1), node_stride(above), 1.0, 0.0};
        }
    }
    return p;
}

// The largest factor of an edge's products that the part of the operator has.
inline int64_t factor_size(Edge edge, const ess_matrix &operand) {
    int64_t largest = 0;
    for (int64_t level = 0;; level++) {
        const EdgeProduct p = edge_product(edge, level, operand.length, nullptr);
        if (p.size == 0) return largest;
        if (in_part(operand.part, edge, level)) largest = max(largest, p.size * p.depth());
    }
}

// One strip of a product's factor, scaled.
inline void pack_product(const ess_matrix &operand, int64_t head, const EdgeProduct &p, int64_t strip, Strips factor) {
    const double scale = operand.scale[head];
    const int64_t ld = operand.row_stride, last = leaves_of(operand.length) * MATRIX_LEAF - 1 - strip * STRIP;
    for (int64_t k0 = 0; k0 < p.depth(); k0 += PASS) {
        const int64_t columns = min(PASS, p.depth() - k0);
        double *packed = factor.at(strip * STRIP, k0);
        if (p.edge == Edge::First) {
            copy_strip({entry(operand, head, p.begin + k0, strip * STRIP), ld, scale, 0.0}, columns, packed);
            continue;
        }
        // its columns are rows of T from the last one on; behind it come zero tokens
        const Block rows{entry(operand, head, last, p.begin + k0), -ld, scale, 0.0};
        transpose_strip(rows, columns, packed, max(int64_t{0}, last - operand.length + 1));
    }
}

// Some strips of rows of a product, from packed factors.
inline void multiply_product(const EdgeProduct &p, Strips factor, int64_t strip, int64_t strips) {
    multiply_strips<true>(strip * STRIP, strips * STRIP, (strip + strips) * STRIP, factor, 0, factor, 0, p.above,
                          p.product, node_stride(p.size), {p.size, true});
}

// All products of all heads: heads side by side where there are as many as threads, else the strips of each.
inline int64_t products(const ess_matrix_products_job &job, int32_t threads, void *workspace) {
    const ess_matrix &operand = *job.matrix;
    const int64_t size = products_size(operand.length);
    const int64_t first_size = factor_size(Edge::First, operand);
    const int64_t last_size = factor_size(Edge::Last, operand);
    const bool apart = operand.heads >= threads;
    const int64_t buffers = apart ? min(operand.heads, static_cast<int64_t>(threads)) : 1;
    Arena arena(workspace);
    // both edges' factors, for each thread or for all together
    double *packed = arena.take<double>(buffers * (first_size + last_size));
    if (workspace == nullptr || size == 0) return arena.used();

    const int64_t first_level = operand.part == ESS_MATRIX_FIRST || operand.part == ESS_MATRIX_LAST ? 1 : 0;

    struct Task {
        EdgeProduct product;
        Strips factor;
    };
    // the tasks of one level: the strips of both edges, or of one
    auto level_of = [&](int64_t head, int64_t level, double *memory, Task(&tasks)[2]) {
        double *products = job.products + head * size;
        tasks[0] = tasks[1] = {};
        if (in_part(operand.part, Edge::First, level)) {
            tasks[0].product = edge_product(Edge::First, level, operand.length, products);
        }
        if (in_part(operand.part, Edge::Last, level)) {
            tasks[1].product = edge_product(Edge::Last, level, operand.length, products);
        }
        tasks[0].factor = {memory, tasks[0].product.size, tasks[0].product.depth()};
        tasks[1].factor = {memory + first_size, tasks[1].product.size, tasks[1].product.depth()};
        return tasks[0].product.size > 0 || tasks[1].product.size > 0;
    };
    auto pack = [&](int64_t head, const Task &task, int64_t strip) {
        pack_product(operand, head, task.product, strip, task.factor);
    };
    auto multiply = [&](const Task &task, int64_t bundle) {
        // the longest rows of the triangle first
        const int64_t strips = task.product.size / STRIP, bundles = (strips + STRIP_BUNDLE - 1) / STRIP_BUNDLE;
        const int64_t strip = (bundles - 1 - bundle) * STRIP_BUNDLE;
        multiply_product(task.product, task.factor, strip, min(STRIP_BUNDLE, strips - strip));
    };
    auto strips_of = [](const Task &task) { return task.product.size / STRIP; };
    auto bundles_of = [](const Task &task) { return (task.product.size / STRIP + STRIP_BUNDLE - 1) / STRIP_BUNDLE; };

    if (apart) {
        TaskCounter counter(operand.heads);
        team(static_cast<int32_t>(buffers), [&](int32_t thread) {
            FlushDenormals flush;
            Task tasks[2];
            for (int64_t head; (head = counter.take()) >= 0;) {
                double *memory = packed + thread * (first_size + last_size);
                for (int64_t level = first_level; level_of(head, level, memory, tasks); level++) {
                    for (const Task &task : tasks) {
                        for (int64_t strip = 0; strip < strips_of(task); strip++) pack(head, task, strip);
                        for (int64_t bundle = 0; bundle < bundles_of(task); bundle++) multiply(task, bundle);
                    }
                }
            }
        });
        return arena.used();
    }
    for (int64_t head = 0; head < operand.heads; head++) {
        Task tasks[2];
        for (int64_t level = first_level; level_of(head, level, packed, tasks); level++) {
            TaskCounter strips(strips_of(tasks[0]) + strips_of(tasks[1]));
            team(threads, [&](int32_t) {
                FlushDenormals flush;
                for (int64_t t; (t = strips.take()) >= 0;) {
                    const bool second = t >= strips_of(tasks[0]);
                    pack(head, tasks[second], second ? t - strips_of(tasks[0]) : t);
                }
            });
            // bundles of both edges in turn, so that the longest come first
            const int64_t most = max(bundles_of(tasks[0]), bundles_of(tasks[1]));
            TaskCounter bundles(2 * most);
            team(threads, [&](int32_t) {
                FlushDenormals flush;
                for (int64_t t; (t = bundles.take()) >= 0;) {
                    if (t / 2 < bundles_of(tasks[t % 2])) multiply(tasks[t % 2], t / 2);
                }
            });
        }
    }
    return arena.used();
}

} // namespace
} // namespace ess::ESS_LEVEL::matrix
