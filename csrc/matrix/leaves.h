// The leaves of the tree, collected until there is one for every lane.

#pragma once

#include "leaves/counts.h"
#include "leaves/logdet.h"
#include "matrix/node.h"

namespace ess::ESS_LEVEL::matrix {
using namespace leaves;
namespace {

// numbers in one block of a leaf
constexpr int64_t LEAF_BLOCK = MATRIX_LEAF * MATRIX_LEAF;

class Leaves {
  public:
    Leaves() = default;
    Leaves(const ess_matrix_staircase_job &job, Arena &arena) : job_(&job) {
        nodes_ = arena.take<double>(W * 3 * LEAF_BLOCK);
        stride_ = job.definite ? leaf_stride(MATRIX_LEAF) : MATRIX_LEAF;
        R_ = arena.take<V>(MATRIX_LEAF * stride_);
        K_ = arena.take<V>(MATRIX_LEAF * stride_);
        C_ = arena.take<V>(MATRIX_LEAF * stride_);
        work_ = arena.take<V>(max(leaf_work(MATRIX_LEAF), logdet_work(MATRIX_LEAF)));
        values_ = arena.take<V>(MATRIX_LEAF);
        growths_ = arena.take<V>(MATRIX_LEAF);
        leasts_ = arena.take<V>(MATRIX_LEAF);
    }

    void add(const Node &node, int64_t item) {
        double *memory = nodes_ + count_ * 3 * LEAF_BLOCK;
        copy(node.R, 0, memory);
        copy(node.K, node.padding, memory + LEAF_BLOCK);
        copy(node.C, 0, memory + 2 * LEAF_BLOCK);
        lane_[count_++] = {item, node.start, node.value, node.growth, node.least};
        if (count_ == W) finish();
    }

    // computes what has been collected
    void finish() {
        if (count_ == 0) return;
        alignas(64) double value[W], growth[W], least[W];
        for (int l = 0; l < W; l++) {
            // lanes without a leaf of their own repeat the first
            const Lane &lane = lane_[l < count_ ? l : 0];
            value[l] = lane.value;
            growth[l] = lane.growth;
            least[l] = lane.least;
        }
        interleave(0, R_);
        interleave(1, K_);
        interleave(2, C_);
        constexpr int c = static_cast<int>(MATRIX_LEAF);
        if (job_->definite) leaf_logdet(c, R_, K_, C_, work_, load(value), values_);
        else {
            leaf_counts(c, R_, K_, C_, work_, load(growth), load(least), [this](V *target) { interleave(2, target); },
                        {values_, growths_, leasts_});
        }
        for (int l = 0; l < count_; l++) write(lane_[l], l);
        count_ = 0;
    }

  private:
    struct Lane {
        int64_t item, start;
        double value, growth, least;
    };

    // what a block was scaled by and what it lacks on its diagonal
    static void copy(const Block &block, int64_t padding, double *target) {
        for (int64_t j = 0; j < MATRIX_LEAF; j++, target += MATRIX_LEAF) {
            if (block.data == nullptr || j < padding) {
                for (int64_t i = 0; i < MATRIX_LEAF; i += W) store(target + i, V{});
            } else if (block.diagonal != 0.0 || block.stride >= 0) {
                for (int64_t i = 0; i < MATRIX_LEAF; i += W) {
                    store(target + i, load(block.data + j * block.stride + i) * all(block.scale));
                }
            } else {
                // rows of T, of which nothing on the diagonal or above it may be read
                for (int64_t i = 0; i < MATRIX_LEAF - 1 - j; i++) {
                    target[i] = block.data[j * block.stride + i] * block.scale;
                }
                for (int64_t i = MATRIX_LEAF - 1 - j; i < MATRIX_LEAF; i++) target[i] = 0.0;
            }
            target[j] += block.diagonal;
        }
    }

    void interleave(int64_t block, V *target) const {
        for (int64_t e = 0; e < LEAF_BLOCK; e += W) {
            V tile[W];
            ESS_UNROLL
            for (int l = 0; l < W; l++) {
                tile[l] = load(nodes_ + ((l < count_ ? l : 0) * 3 + block) * LEAF_BLOCK + e);
            }
            transpose_tile(tile);
            ESS_UNROLL
            for (int l = 0; l < W; l++) target[e / MATRIX_LEAF * stride_ + e % MATRIX_LEAF + l] = tile[l];
        }
    }

    void write(const Lane &lane, int l) const {
        const int64_t row = lane.item * job_->matrix->length, last = job_->matrix->length - lane.start;
        for (int64_t s = 0; s < min(MATRIX_LEAF, last); s++) {
            const int64_t at = row + lane.start + s;
            if (!job_->wanted[at]) continue;
            if (job_->definite) {
                job_->value[at] = values_[s][l];
                continue;
            }
            job_->value[at] = lane.value + values_[s][l];
            job_->growth[at] = growths_[s][l];
            // Whether a row that is not small was looked at depends on the other lanes, so it is reported as 1. NaN
            // stays NaN.
            job_->least[at] = leasts_[s][l] >= SMALL_PIVOT ? 1.0 : leasts_[s][l];
        }
    }

    const ess_matrix_staircase_job *job_ = nullptr;
    double *nodes_ = nullptr;
    int64_t stride_ = MATRIX_LEAF; // between columns of R, K and C
    V *R_ = nullptr, *K_ = nullptr, *C_ = nullptr, *work_ = nullptr;
    V *values_ = nullptr, *growths_ = nullptr, *leasts_ = nullptr;
    Lane lane_[W];
    int count_ = 0;
};

} // namespace
} // namespace ess::ESS_LEVEL::matrix
