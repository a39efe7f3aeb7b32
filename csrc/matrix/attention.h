// The weights of causal softmax attention, one band of rows at a time: scores by products of strips, written where the
// weights will be, then the softmax of each row while it is still in the cache. L^2 E flops and L^2 / 2 exponentials a
// head.

#pragma once

#include "dense/strips.h"
#include "include/ess_attention.h"
#include "matrix/tree.h"

namespace ess::ESS_LEVEL::matrix {
using namespace dense;
namespace {

static_assert(ESS_ATTENTION_TILE == STRIP, "a strip of keys is as wide as the weights are padded");

// Some rows of q or k as one strip, times `scale`; rows at and after `rows` are zero.
inline void pack_tokens(const double *source, int64_t rows, int64_t size, double scale, int64_t strip, Strips target) {
    for (int64_t i = strip * STRIP; i < (strip + 1) * STRIP; i++) {
        for (int64_t e = 0; e < size; e++) *target.at(i, e) = i < rows ? source[i * size + e] * scale : 0.0;
    }
}

// softcap tanh(x / softcap)
ESS_INLINE V capped(V x, V softcap) {
    V t = exp(min(2.0 * abs(x / softcap), all(80.0)));
    V y = softcap * ((t - 1.0) / (t + 1.0));
    return select(x < V{}, -y, y);
}

// Scores in x[first, end) to weights, given that the sink's score is `sink` (-infinity: no sink).
inline void softmax_row(double *x, int64_t first, int64_t end, double softcap, double sink) {
    const int64_t vectors = first + (end - first) / W * W;
    alignas(64) double rest[W];
    // what does not fill a vector is filled up with what has no weight
    for (int64_t l = 0; l < W; l++) rest[l] = vectors + l < end ? x[vectors + l] : -HUGE_VAL;
    if (softcap != 0.0) {
        for (int64_t j = first; j < vectors; j += W) store(x + j, capped(load(x + j), all(softcap)));
        V last = capped(load(rest), all(softcap));
        for (int64_t l = 0; l < W; l++) rest[l] = vectors + l < end ? last[l] : -HUGE_VAL;
    }
    V most = larger(load(rest), all(sink)); // a NaN shows in its own exponential
    for (int64_t j = first; j < vectors; j += W) most = larger(most, load(x + j));
    const double top = horizontal_max(most);
    V total = exp(load(rest) - top);
    store(rest, total);
    for (int64_t j = first; j < vectors; j += W) {
        V weight = exp(load(x + j) - top);
        store(x + j, weight);
        total += weight;
    }
    const double inverse = 1.0 / (horizontal_sum(total) + exp(all(sink) - top)[0]);
    for (int64_t j = first; j < vectors; j += W) store(x + j, load(x + j) * all(inverse));
    for (int64_t j = vectors; j < end; j++) x[j] = rest[j - vectors] * inverse;
}

inline int64_t attention_rows(const ess_attention_rows_job &job, int32_t threads, void *workspace) {
    // rows before the last one see no more keys than there are tokens before it
    const int64_t rounded = padded_rows(job.end), strips = rounded / STRIP, tokens = job.length * job.size;
    const int64_t first_band = job.begin / STRIP, made = strips - first_band;
    Arena arena(workspace);
    double *keys = arena.take<double>(job.heads * rounded * job.size);
    double *queries = arena.take<double>(threads * STRIP * job.size);
    if (workspace == nullptr) return arena.used();
    TaskCounter packs(job.heads * strips);
    team(threads, [&](int32_t) {
        for (int64_t t; (t = packs.take()) >= 0;) {
            const int64_t head = t / strips;
            pack_tokens(job.k + head * tokens, job.length, job.size, 1.0, t % strips,
                        {keys + head * rounded * job.size, rounded, job.size});
        }
    });
    TaskCounter bands(job.heads * made);
    team(threads, [&](int32_t thread) {
        FlushDenormals flush;
        const Strips Q{queries + thread * STRIP * job.size, STRIP, job.size};
        for (int64_t t; (t = bands.take()) >= 0;) {
            // the longest rows first
            const int64_t head = t / made, band = strips - 1 - t % made, row = band * STRIP;
            const int64_t begin = job.window ? max(int64_t{0}, row - job.window + 1) / STRIP * STRIP : 0;
            const Strips K{keys + head * rounded * job.size, rounded, job.size};
            double *weights = job.weights + (head * made * STRIP + row - job.begin) * job.row_stride;
            pack_tokens(job.q + head * tokens + row * job.size, job.length - row, job.size, job.scale, 0, Q);
            // keys are the rows of a tile, so that a row of weights is a column of it
            for (int64_t j = begin; j < row + STRIP; j += STRIP) {
                for (int64_t k = 0; k < job.size; k += PASS) {
                    for (int64_t i = 0; i < STRIP; i += TILE) {
                        strip_tile<true>(min(PASS, job.size - k), K.at(j, k), Q.at(i, k),
                                         weights + i * job.row_stride + j, job.row_stride,
                                         k ? First::Continue : First::Replace, nullptr, 0, 1.0);
                    }
                }
            }
            for (int64_t i = row; i < min(row + STRIP, job.end); i++) {
                double *x = weights + (i - row) * job.row_stride;
                const int64_t first = job.window ? max(int64_t{0}, i - job.window + 1) : 0;
                std::memset(x, 0, static_cast<size_t>(first) * sizeof(double));
                softmax_row(x, first, i + 1, job.softcap, job.sinks ? job.sinks[head] : -HUGE_VAL);
            }
        }
    });
    return arena.used();
}

} // namespace
} // namespace ess::ESS_LEVEL::matrix
