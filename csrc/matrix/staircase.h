// The staircase of a dense operator: by bisection from the products of the root to every wanted position.
//
// About L^3 / 4 flops an item besides the products. An item's two halves are independent, and so are all nodes of a
// level: where there are fewer of them than threads, all threads work on the largest nodes together, strip by strip,
// until there are enough; then each node is a task, finished depth first by one thread. Either way the same functions
// compute every strip, so that no result depends on the number of threads.

#pragma once

#include "matrix/leaves.h"

namespace ess::ESS_LEVEL::matrix {
namespace {

// A node of an edge: a view of T and of the edge's product.
inline Node edge_node(const ess_matrix_staircase_job &job, int64_t item, Edge edge, int64_t level) {
    const ess_matrix &operand = *job.matrix;
    const int64_t head = job.head[item], ld = operand.row_stride;
    const int64_t whole = leaves_of(operand.length) * MATRIX_LEAF;
    const double inverse = 1.0 / job.shift[item], sign = job.definite ? 1.0 : -1.0;
    Node node{};
    node.edge = edge;
    node.level = level;
    node.size = edge == Edge::None ? whole : MATRIX_LEAF * edge_leaves(edge, leaves_of(operand.length), level);
    node.start = edge == Edge::Last ? whole - node.size : 0;
    node.padding = edge == Edge::First ? 0 : whole - operand.length;
    node.R = node.C = {nullptr, 0, 1.0, sign};
    node.K = {entry(operand, head, node.start + node.size - 1, node.start), -ld, operand.scale[head] * inverse, 0.0};
    node.least = 1.0;
    if (edge == Edge::None) return node;
    const double *product =
        job.products + head * products_size(operand.length) + product_offset(operand.length, edge, level);
    const Block block{product, node_stride(node.size), inverse * inverse, sign};
    (edge == Edge::First ? node.C : node.R) = block;
    // the first row or column is the first to be eliminated, if it ever is (growth_of_first): sums of squares do not
    // cancel
    for (int64_t i = 1; i < node.size; i++) {
        const double update = product[i + i * block.stride] * block.scale;
        if (!(update <= node.growth) && node.growth == node.growth) node.growth = update;
    }
    if (!(product[0] * block.scale <= 1e300)) node.growth = HUGE_VAL;
    return node;
}

inline bool is_wanted(const ess_matrix_staircase_job &job, int64_t item, int64_t start, int64_t size) {
    const int64_t end = min(start + size, job.matrix->length);
    const uint8_t *wanted = job.wanted + item * job.matrix->length;
    for (int64_t i = start; i < end; i++) {
        if (wanted[i]) return true;
    }
    return false;
}

// Memory for halves of nodes of `size` positions and less.
struct PanelMemory {
    double *U = nullptr, *L = nullptr, *d = nullptr, *growth = nullptr;

    PanelMemory() = default;
    PanelMemory(int64_t size, Arena &arena) {
        const int64_t pivots = MATRIX_LEAF * left_leaves(size / MATRIX_LEAF), rows = size + pivots;
        U = arena.take<double>(rows * pivots);
        L = arena.take<double>(rows * pivots);
        d = arena.take<double>(pivots);
        growth = arena.take<double>(rows);
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
    half.panel = {pivots, rows, {memory.U, rows, pivots}, {memory.L, rows, pivots}, memory.d, memory.growth};
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
    Descent(const ess_matrix_staircase_job &job, int64_t size, Arena &arena) : job_(&job), leaves_(job, arena) {
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

    const ess_matrix_staircase_job *job_ = nullptr;
    Leaves leaves_;
    PanelMemory panel_;
    double *nodes_[MAX_DEPTH] = {};
};

// Some halves at once by all threads together.
template <bool COUNTS> void eliminate_together(Half *halves, Corners *corners, int64_t count, int32_t threads) {
    int64_t strips = 0, blocks = 0, bundles = 0;
    for (int64_t i = 0; i < count; i++) {
        strips = max(strips, halves[i].panel.strips());
        blocks = max(blocks, halves[i].panel.blocks());
        bundles = max(bundles, trailing_bundles(halves[i]));
    }
    // body(half's number, piece) for all halves and `pieces` pieces of each
    auto share = [&](int64_t pieces, auto body) {
        TaskCounter counter(count * pieces);
        team(threads, [&](int32_t) {
            FlushDenormals flush;
            for (int64_t t; (t = counter.take()) >= 0;) body(t / pieces, t % pieces);
        });
    };
    share(strips, [&](int64_t i, int64_t strip) {
        if (strip < halves[i].panel.strips()) fill_strip(halves[i], strip);
    });
    for (int64_t block = 0; block < blocks; block++) {
        share(1, [&](int64_t i, int64_t) {
            if (block < halves[i].panel.blocks()) factor_block<COUNTS>(halves[i].panel, block, corners[i]);
        });
        int64_t groups = 0;
        for (int64_t i = 0; i < count; i++) {
            if (block < halves[i].panel.blocks()) groups = max(groups, groups_below(halves[i].panel, block));
        }
        share(groups, [&](int64_t i, int64_t group) {
            const Panel &panel = halves[i].panel;
            if (block < panel.blocks() && group < groups_below(panel, block)) {
                solve_group<COUNTS>(panel, block, group, corners[i]);
            }
        });
    }
    share(bundles, [&](int64_t i, int64_t bundle) {
        if (bundle < trailing_bundles(halves[i])) update_bundle(halves[i], bundle);
    });
    for (int64_t i = 0; i < count; i++) finish_half(halves[i]);
}

struct Task {
    Node node;
    int64_t item;
};

// How far the tree is grown by all threads together.
struct Plan {
    int64_t edges, tasks, size; // nodes at the edges, most nodes, and how large the largest one is
    int levels;                 // bisections below the root's halves

    // The root's halves that the part of the operator has; a root of one leaf.
    static Plan root(const ess_matrix_staircase_job &job) {
        const int64_t leaves = leaves_of(job.matrix->length);
        if (leaves == 1) return {job.items, job.items, MATRIX_LEAF, 0};
        const int64_t nodes = (job.matrix->part == ESS_MATRIX_WHOLE ? 2 : 1) * job.items;
        const bool last = job.matrix->part == ESS_MATRIX_LAST;
        return {nodes, nodes, MATRIX_LEAF * (last ? right_leaves(leaves) : left_leaves(leaves)), 0};
    }

    static Plan of(const ess_matrix_staircase_job &job, int32_t threads) {
        Plan plan = root(job);
        // nodes smaller than this are not worth the threads' meeting
        while (plan.tasks < threads && plan.size > 8 * MATRIX_LEAF) plan = plan.next();
        return plan;
    }

    Plan next() const { return {edges, 2 * tasks, MATRIX_LEAF * left_leaves(size / MATRIX_LEAF), levels + 1}; }

    // all nodes but those of the edges have two halves with pivots, these have one
    int64_t eliminations() const { return 2 * tasks - edges; }
};

// The nodes of one level, and the next level from them by all threads together.
class Growth {
  public:
    Growth(const ess_matrix_staircase_job &job, int32_t threads, Arena &arena)
        : job_(job), threads_(threads), plan_(Plan::of(job, threads)), first_(Plan::root(job)) {
        tasks_ = arena.take<Task>(plan_.tasks);
        if (plan_.levels == 0) return;
        next_ = arena.take<Task>(plan_.tasks);
        halves_ = arena.take<Half>(plan_.tasks);
        corners_ = arena.take<Corners>(plan_.tasks);
        panels_ = arena.take<PanelMemory>(plan_.tasks);
        // nodes of all levels are kept, panels are used again
        for (Plan level = first_; level.levels < plan_.levels; level = level.next()) {
            nodes_[level.levels] = arena.take<double>(level.eliminations() * NodeMemory::size(level.next().size));
            panel_bytes_ = max(panel_bytes_, lay_out(level, nullptr));
        }
    }

    const Plan &plan() const { return plan_; }
    // what panels take while the tree grows
    int64_t panel_bytes() const { return panel_bytes_; }
    int64_t count() const { return count_; }
    const Task &task(int64_t t) const { return tasks_[t]; }

    void run(char *panels) {
        const bool one = leaves_of(job_.matrix->length) == 1;
        for (int64_t item = 0; item < job_.items; item++) {
            for (int e = 0; e < (one ? 1 : 2); e++) {
                if (job_.matrix->part == (e == 0 ? ESS_MATRIX_LAST : ESS_MATRIX_FIRST)) continue;
                const Node node = edge_node(job_, item, one ? Edge::None : e == 0 ? Edge::First : Edge::Last, 0);
                if (is_wanted(job_, item, node.start, node.size)) tasks_[count_++] = {node, item};
            }
        }
        for (Plan level = first_; level.levels < plan_.levels; level = level.next()) grow(level, panels);
    }

  private:
    // Deals out the panels of a level; returns the bytes.
    int64_t lay_out(const Plan &level, void *memory) {
        Arena arena(memory);
        for (int64_t i = 0; i < level.eliminations(); i++) {
            PanelMemory panel(level.size, arena);
            if (memory) panels_[i] = panel;
        }
        return arena.used();
    }

    void grow(const Plan &level, char *panels) {
        lay_out(level, panels);
        const int64_t child_size = NodeMemory::size(level.next().size);
        int64_t made = 0, eliminated = 0;
        for (int64_t t = 0; t < count_; t++) {
            const Node &node = tasks_[t].node;
            const int64_t item = tasks_[t].item, middle = MATRIX_LEAF * left_leaves(node.size / MATRIX_LEAF);
            for (int side = 0; side < 2; side++) {
                const bool left = side == 0;
                const int64_t start = left ? node.start : node.start + middle;
                if (!is_wanted(job_, item, start, left ? middle : node.size - middle)) continue;
                Task &task = next_[made++];
                task.item = item;
                if (on_edge(node, left)) {
                    task.node = edge_node(job_, item, node.edge, node.level + 1);
                    continue;
                }
                halves_[eliminated] = half_of(node, left, job_.definite, panels_[eliminated],
                                              nodes_[level.levels] + eliminated * child_size);
                // until the child is known, its place holds the half's number
                task.node.size = 0;
                task.node.start = eliminated++;
            }
        }
        if (job_.definite) eliminate_together<false>(halves_, corners_, eliminated, threads_);
        else eliminate_together<true>(halves_, corners_, eliminated, threads_);
        for (int64_t t = 0; t < made; t++) {
            if (next_[t].node.size == 0) next_[t].node = halves_[next_[t].node.start].child;
        }
        Task *done = tasks_;
        tasks_ = next_;
        next_ = done;
        count_ = made;
    }

    const ess_matrix_staircase_job &job_;
    const int32_t threads_;
    const Plan plan_, first_;
    Task *tasks_ = nullptr, *next_ = nullptr;
    Half *halves_ = nullptr;
    Corners *corners_ = nullptr;
    PanelMemory *panels_ = nullptr;
    int64_t panel_bytes_ = 0;
    double *nodes_[MAX_DEPTH] = {};
    int64_t count_ = 0;
};

inline int64_t staircase(const ess_matrix_staircase_job &job, int32_t threads, void *workspace) {
    Arena arena(workspace);
    Growth growth(job, threads, arena);
    const int32_t descending = static_cast<int32_t>(min(static_cast<int64_t>(threads), growth.plan().tasks));
    Descent *descents = arena.take<Descent>(descending);
    auto lay_out = [&](Arena &memory) {
        for (int32_t t = 0; t < descending; t++) {
            Descent descent(job, growth.plan().size, memory);
            if (!memory.measures_only()) descents[t] = descent;
        }
        return memory.used();
    };
    // the panels of the growing tree go before threads descend
    Arena measured;
    char *shared = arena.take<char>(max(growth.panel_bytes(), lay_out(measured)));
    if (workspace == nullptr) return arena.used();
    growth.run(shared);
    Arena memory(shared);
    lay_out(memory);
    TaskCounter counter(growth.count());
    team(descending, [&](int32_t thread) {
        FlushDenormals flush;
        for (int64_t t; (t = counter.take()) >= 0;) descents[thread].run(growth.task(t).node, growth.task(t).item);
        descents[thread].finish();
    });
    return arena.used();
}

} // namespace
} // namespace ess::ESS_LEVEL::matrix
