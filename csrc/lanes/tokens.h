// Room lanes/: recurrences with small states, heads side by side in vector lanes: what a lane answers depends on no
// other. It may include leaves/, dense/, base/ and include/.
//
// Tokens of W heads side by side: lane l of every vector belongs to the l-th of them.

#pragma once

#include "base/simd.h"
#include "include/ess_lanes.h"

namespace ess::ESS_LEVEL::lanes {
namespace {

// The C tokens of one block, coordinate by coordinate: token t's number k at [k * C + t].
template <int N, int C> struct BlockTokens {
    V read[N * C], write[N * C];
};

// The heads that share the lanes, at most W; lanes without one repeat the last.
struct LaneHeads {
    const int64_t *number;
    int count;
    int64_t of_lane(int l) const { return number[l < count ? l : count - 1]; }
};

// Reads tokens of up to W heads.
class LaneTokens {
  public:
    LaneTokens(const ess_tokens &tokens, const LaneHeads &heads) : tokens_(tokens) {
        for (int l = 0; l < W; l++) {
            const int64_t head = heads.of_lane(l);
            read_[l] = tokens.read[head];
            write_[l] = tokens.write[head];
            gate_[l] = tokens.gate[head];
            rate_[l] = tokens.rate ? tokens.rate[head] : nullptr;
            read_scale_[l] = tokens.read_scale ? tokens.read_scale[head] : nullptr;
            write_scale_[l] = tokens.write_scale ? tokens.write_scale[head] : nullptr;
            read_unit_[l] = tokens.read_unit[head];
            write_unit_[l] = tokens.write_unit[head];
        }
        one_read_ = same(read_);
        one_write_ = same(write_);
    }

    // How row t reads before its own transition, which `transitions` of the block may still have to be multiplied onto,
    // and what it writes. Beyond the end: nothing.
    template <int N, int C> void read_block(int64_t start, BlockTokens<N, C> &block) const {
        int padding = fill<N, C>(start, read_, one_read_, tokens_.read_stride, read_scale_, tokens_.read_scale_stride,
                                 read_unit_, block.read);
        fill<N, C>(start, write_, one_write_, tokens_.write_stride, write_scale_, tokens_.write_scale_stride,
                   write_unit_, block.write);
        for (int t = C - padding; t < C; t++) {
            for (int k = 0; k < N; k++) block.read[k * C + t] = block.write[k * C + t] = V{};
        }
    }

    // The transitions a_t of a block, [k * C + t]; one beyond the end.
    template <int N, int C> void read_transitions(int64_t start, V *transitions) const {
        const int states = static_cast<int>(tokens_.states), count = tokens_in<C>(start);
        V rate[N];
        for (int k = 0; k < N; k++) rate[k] = all(1.0);
        if (tokens_.rate) coordinates(rate_, false, 0, states, rate);
        for (int t = 0; t < count; t++) {
            V gate[N];
            const int64_t offset = (start + t) * tokens_.gate_stride;
            if (tokens_.gate_shared) {
                V shared = numbers(gate_, offset);
                for (int k = 0; k < N; k++) gate[k] = shared;
            } else {
                coordinates(gate_, false, offset, states, gate);
            }
            for (int k = 0; k < states; k++) transitions[k * C + t] = gate[k] * rate[k];
        }
        if (tokens_.gate_is_log) {
            for (int k = 0; k < states; k++) {
                for (int t = 0; t < count; t++) transitions[k * C + t] = exp(transitions[k * C + t]);
            }
        }
        for (int k = 0; k < N; k++) {
            for (int t = k < states ? count : 0; t < C; t++) transitions[k * C + t] = all(1.0);
        }
    }

    bool reads_before() const { return tokens_.reads_before != 0; }

  private:
    typedef const double *Pointers[W];

    static bool same(const Pointers &pointers) {
        for (int l = 1; l < W; l++) {
            if (pointers[l] != pointers[0]) return false;
        }
        return true;
    }

    template <int C> int tokens_in(int64_t start) const {
        int64_t left = tokens_.length - start;
        return left < C ? static_cast<int>(left) : C;
    }

    // one number of every head
    static V numbers(const Pointers &pointers, int64_t offset) {
        V x = {};
        for (int l = 0; l < W; l++) x[l] = pointers[l][offset];
        return x;
    }

    // numbers in a row of every head
    static void coordinates(const Pointers &pointers, bool one, int64_t offset, int states, V *x) {
        int k = 0;
        if (one) {
            for (; k < states; k++) x[k] = all(pointers[0][offset + k]);
            return;
        }
        for (; k + W <= states; k += W) {
            for (int l = 0; l < W; l++) x[k + l] = load(pointers[l] + offset + k);
            transpose_tile(x + k);
        }
        for (; k < states; k++) x[k] = numbers(pointers, offset + k);
    }

    // Scaled reads or writes of a block; returns how many of its tokens lie beyond the end.
    template <int N, int C>
    int fill(int64_t start, const Pointers &source, bool one, int64_t stride, const Pointers &scale,
             int64_t scale_stride, V unit, V *target) const {
        const int states = static_cast<int>(tokens_.states), count = tokens_in<C>(start);
        for (int t = 0; t < count; t++) {
            V factor = scale[0] ? unit * numbers(scale, (start + t) * scale_stride) : unit;
            V x[N];
            coordinates(source, one, (start + t) * stride, states, x);
            for (int k = 0; k < states; k++) target[k * C + t] = x[k] * factor;
        }
        for (int k = states; k < N; k++) {
            for (int t = 0; t < count; t++) target[k * C + t] = V{};
        }
        return C - count;
    }

    const ess_tokens &tokens_;
    Pointers read_, write_, gate_, rate_, read_scale_, write_scale_;
    V read_unit_ = {}, write_unit_ = {};
    bool one_read_, one_write_;
};

} // namespace
} // namespace ess::ESS_LEVEL::lanes
