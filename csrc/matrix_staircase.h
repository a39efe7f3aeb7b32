// The staircase of a dense operator: by bisection from the products of the root to every wanted position.
//
// About L^3 / 4 flops an item besides the products. An item's two halves are independent, and so are all nodes of a level:
// where there are fewer of them than threads, all threads work on the largest nodes together, strip by strip, until there
// are enough; then each node is a task, finished depth first by one thread. Either way the same functions compute every
// strip, so that no result depends on the number of threads.

#pragma once

#include "matrix_leaves.h"

namespace ess {
namespace ESS_LEVEL {
namespace {
namespace dense {

// A node of an edge: a view of T and of the edge's product.
inline Node edge_node(const MatrixStaircaseJob &job, int64_t item, Edge edge, int64_t level) {
    const MatrixOperand &operand = job.operand;
    const int64_t head = job.head[item], ld = operand.row_stride;
    const int64_t whole = matrix_leaves(operand.length) * MATRIX_LEAF;
    const double inverse = 1.0 / job.shift[item], sign = job.definite ? 1.0 : -1.0;
    Node node{};
    node.edge = edge;
    node.level = level;
    node.size = edge == Edge::None ? whole : MATRIX_LEAF * edge_leaves(edge, matrix_leaves(operand.length), level);
    node.start = edge == Edge::Last ? whole - node.size : 0;
    node.missing = edge == Edge::First ? 0 : whole - operand.length;
    node.R = node.C = {nullptr, 0, 1.0, sign};
    node.K = {operand.T + head * operand.head_stride + (node.start + node.size - 1) * ld + node.start, -ld,
              operand.scale[head] * inverse, 0.0};
    node.least = 1.0;
    if (edge == Edge::None) return node;
    const double *product =
        job.products + head * matrix_products_size(operand.length) + matrix_product_offset(operand.length, edge, level);
    const Block block{product, matrix_stride(node.size), inverse * inverse, sign};
    (edge == Edge::First ? node.C : node.R) = block;
    for (int64_t i = 0; i < node.size; i++) {
        const double update = product[i + i * block.stride] * block.scale;
        if (!(update <= node.growth) && node.growth == node.growth) node.growth = update;
    }
    return node;
}

inline bool is_wanted(const MatrixStaircaseJob &job, int64_t item, int64_t start, int64_t size) {
    const int64_t end = min(start + size, job.operand.length);
    const uint8_t *wanted = job.wanted + item * job.operand.length;
    for (int64_t i = start; i < end; i++) {
        if (wanted[i]) return true;
    }
    return false;
}

// Memory for halves of nodes of `size` positions and less.
struct PanelMemory {
    double *U = nullptr, *L = nullptr, *d = nullptr, *growth = nullptr, *magnitude = nullptr;

    PanelMemory() = default;
    PanelMemory(int64_t size, Arena &arena) {
        const int64_t pivots = MATRIX_LEAF * left_leaves(size / MATRIX_LEAF), rows = size + pivots;
        U = arena.take<double>(rows * pivots);
        L = arena.take<double>(rows * pivots);
        d = arena.take<double>(pivots);
        growth = arena.take<double>(rows);
        magnitude = arena.take<double>(pivots * W);
    }
};

// The half of a node, ready to be eliminated.
inline Half half_of(const Node &node, bool left, bool definite, const PanelMemory &memory, double *child) {
    const int64_t leaves = node.size / MATRIX_LEAF;
    Half half{};
    half.parent = node;
    half.left = left;
    half.definite = definite;
    half.size = MATRIX_LEAF * (left ? left_leaves(leaves) : right_leaves(leaves));
    half.memory = NodeMemory::in(child, half.size);
    const int64_t pivots = node.size - half.size;
    const int64_t rows = pivots + 2 * half.size;
    half.panel = {pivots, rows, {memory.U, rows, pivots}, {memory.L, rows, pivots}, memory.d, memory.growth,
                  memory.magnitude};
    return half;
}

// Whether a half has no pivots but the trivial ones, which the products know.
ESS_INLINE bool on_edge(const Node &node, bool left) { return node.edge == (left ? Edge::First : Edge::Last); }

// deep enough for any length
constexpr int MAX_DEPTH = 48;

// What one thread needs to finish nodes of `size` positions and less.
class Descent {
  public:
    Descent() = default;
    Descent(const MatrixStaircaseJob &job, int64_t size, Arena &arena) : job_(&job), leaves_(job, arena) {
        if (size <= MATRIX_LEAF) return;
        panel_ = PanelMemory(size, arena);
        int64_t leaves = size / MATRIX_LEAF;
        for (int depth = 0; leaves > 1; depth++) {
            leaves = left_leaves(leaves);
            nodes_[depth] = arena.take<double>(NodeMemory::size(leaves * MATRIX_LEAF));
        }
    }

    void run(const Node &node, int64_t item, int depth = 0) {
        if (node.size == MATRIX_LEAF) {
            leaves_.add(node, item);
            return;
        }
        const int64_t middle = MATRIX_LEAF * left_leaves(node.size / MATRIX_LEAF);
        if (is_wanted(*job_, item, node.start, middle)) run_half(node, true, item, depth);
        if (is_wanted(*job_, item, node.start + middle, node.size - middle)) run_half(node, false, item, depth);
    }

    void finish() { leaves_.finish(); }

  private:
    void run_half(const Node &node, bool left, int64_t item, int depth) {
        if (on_edge(node, left)) {
            run(edge_node(*job_, item, node.edge, node.level + 1), item, depth + 1);
            return;
        }
        Half half = half_of(node, left, job_->definite, panel_, nodes_[depth]);
        if (job_->definite) eliminate_half<false>(half);
        else eliminate_half<true>(half);
        run(half.child, item, depth + 1);
    }

    const MatrixStaircaseJob *job_ = nullptr;
    Leaves leaves_;
    PanelMemory panel_;
    double *nodes_[MAX_DEPTH] = {};
};

// Some halves at once by all threads together.
template <bool COUNTS> void eliminate_together(Half *halves, Corners *corners, int64_t count, int32_t threads) {
    int64_t strips = 0, blocks = 0, groups = 0;
    for (int64_t i = 0; i < count; i++) {
        strips = max(strips, halves[i].panel.strips());
        blocks = max(blocks, halves[i].panel.blocks());
        groups = max(groups, trailing_groups(halves[i]));
    }
    // body(half's number, part) for all halves and `parts` parts of each
    auto share = [&](int64_t parts, auto body) {
        TaskCounter counter(count * parts);
        team(threads, [&](int32_t) {
            FlushDenormals flush;
            for (int64_t t; (t = counter.take()) >= 0;) body(t / parts, t % parts);
        });
    };
    share(strips, [&](int64_t i, int64_t strip) {
        if (strip < halves[i].panel.strips()) fill_strip(halves[i], strip);
    });
    for (int64_t block = 0; block < blocks; block++) {
        share(1, [&](int64_t i, int64_t) {
            if (block < halves[i].panel.blocks()) factor_block<COUNTS>(halves[i].panel, block, corners[i]);
        });
        share(strips, [&](int64_t i, int64_t strip) {
            const Panel &panel = halves[i].panel;
            if (block < panel.blocks() && strip >= panel.end(block) / STRIP && strip < panel.strips()) {
                solve_strip<COUNTS>(panel, block, strip, corners[i]);
            }
        });
    }
    share(groups, [&](int64_t i, int64_t group) {
        if (group < trailing_groups(halves[i])) update_group(halves[i], group);
    });
    for (int64_t i = 0; i < count; i++) finish_half(halves[i]);
}

struct Task {
    Node node;
    int64_t item;
};

// How far the tree is grown by all threads together.
struct Plan {
    int64_t tasks, size; // most nodes, and how large the largest one is
    int levels;          // bisections below the root's halves

    static Plan of(const MatrixStaircaseJob &job) {
        const int64_t leaves = matrix_leaves(job.operand.length);
        if (leaves == 1) return {job.items, MATRIX_LEAF, 0};
        Plan plan{2 * job.items, MATRIX_LEAF * left_leaves(leaves), 0};
        // nodes smaller than this are not worth the threads' meeting
        while (plan.tasks < job.threads && plan.size > 8 * MATRIX_LEAF) {
            plan.tasks *= 2;
            plan.size = MATRIX_LEAF * left_leaves(plan.size / MATRIX_LEAF);
            plan.levels++;
        }
        return plan;
    }
};

inline int64_t matrix_staircase(const MatrixStaircaseJob &job) {
    Arena arena(job.workspace);
    const Plan plan = Plan::of(job);
    const int64_t length = job.operand.length, leaves = matrix_leaves(length);
    const int32_t threads = static_cast<int32_t>(min(static_cast<int64_t>(job.threads), plan.tasks));
    Task *tasks = arena.take<Task>(plan.tasks), *next = arena.take<Task>(plan.tasks);
    Half *halves = arena.take<Half>(plan.levels ? plan.tasks : 0);
    Corners *corners = arena.take<Corners>(plan.levels ? plan.tasks : 0);
    Descent *descents = arena.take<Descent>(threads);

    int64_t count = 0;
    if (job.workspace) {
        for (int64_t item = 0; item < job.items; item++) {
            for (int e = 0; e < (leaves == 1 ? 1 : 2); e++) {
                const Edge edge = leaves == 1 ? Edge::None : e == 0 ? Edge::First : Edge::Last;
                const Node node = edge_node(job, item, edge, 0);
                if (is_wanted(job, item, node.start, node.size)) tasks[count++] = {node, item};
            }
        }
    }
    int64_t most = 2 * job.items, size = MATRIX_LEAF * left_leaves(leaves);
    for (int level = 0; level < plan.levels; level++) {
        // all nodes but those of the edges have two halves with pivots, these one
        const int64_t eliminations = 2 * most - 2 * job.items;
        const int64_t half = MATRIX_LEAF * left_leaves(size / MATRIX_LEAF);
        int64_t made = 0, eliminated = 0;
        for (int64_t i = 0; i < eliminations; i++) {
            double *memory = arena.take<double>(NodeMemory::size(half));
            PanelMemory panel(size, arena);
            if (job.workspace) {
                halves[i].memory.R = memory;
                halves[i].panel = {0, 0, {panel.U, 0, 0}, {panel.L, 0, 0}, panel.d, panel.growth, panel.magnitude};
            }
        }
        if (job.workspace) {
            for (int64_t t = 0; t < count; t++) {
                const Node &node = tasks[t].node;
                for (int side = 0; side < 2; side++) {
                    const bool left = side == 0;
                    const int64_t own = MATRIX_LEAF * left_leaves(node.size / MATRIX_LEAF);
                    const int64_t start = left ? node.start : node.start + own;
                    if (!is_wanted(job, tasks[t].item, start, left ? own : node.size - own)) continue;
                    next[made].item = tasks[t].item;
                    if (on_edge(node, left)) {
                        next[made].node = edge_node(job, tasks[t].item, node.edge, node.level + 1);
                    } else {
                        const Panel &p = halves[eliminated].panel;
                        PanelMemory panel;
                        panel.U = p.U.data, panel.L = p.L.data, panel.d = p.d, panel.growth = p.growth;
                        panel.magnitude = p.magnitude;
                        halves[eliminated] = half_of(node, left, job.definite, panel, halves[eliminated].memory.R);
                        // until it is known, the child's place says whose it is
                        next[made].node.size = 0;
                        next[made].node.start = eliminated++;
                    }
                    made++;
                }
            }
            if (job.definite) eliminate_together<false>(halves, corners, eliminated, job.threads);
            else eliminate_together<true>(halves, corners, eliminated, job.threads);
            for (int64_t t = 0; t < made; t++) {
                if (next[t].node.size == 0) next[t].node = halves[next[t].node.start].child;
            }
            Task *swap = tasks;
            tasks = next;
            next = swap;
            count = made;
        }
        most *= 2;
        size = half;
    }
    for (int32_t t = 0; t < threads; t++) {
        Descent descent(job, plan.size, arena);
        if (job.workspace) descents[t] = descent;
    }
    if (job.workspace == nullptr) return arena.used();
    TaskCounter counter(count);
    team(threads, [&](int32_t thread) {
        FlushDenormals flush;
        for (int64_t t; (t = counter.take()) >= 0;) descents[thread].run(tasks[t].node, tasks[t].item);
        descents[thread].finish();
    });
    return arena.used();
}

} // namespace dense
} // namespace
} // namespace ESS_LEVEL
} // namespace ess
