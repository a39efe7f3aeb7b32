// How large a dense operator is: its largest entry, bounds of its norm, and the sums of squares of all H_i. All read
// the strictly lower part once a pass, in bands of rows that are added up in a fixed order.

#pragma once

#include "base/threads.h"
#include "dense/products.h"
#include "include/ess_matrix.h"

namespace ess::ESS_LEVEL::matrix {
using namespace dense;
namespace {

constexpr int64_t BAND_ROWS = 64;

inline int64_t largest(const ess_matrix_largest_job &job, int32_t threads, void *workspace) {
    const ess_matrix &operand = *job.matrix;
    const int64_t bands = (operand.length + BAND_ROWS - 1) / BAND_ROWS;
    Arena arena(workspace);
    double *most = arena.take<double>(operand.heads * bands);
    if (workspace == nullptr) return arena.used();
    TaskCounter counter(operand.heads * bands);
    team(threads, [&](int32_t) {
        for (int64_t t; (t = counter.take()) >= 0;) {
            // the longest rows first
            const int64_t head = t / bands, band = bands - 1 - t % bands;
            V largest{}, finite{};
            double rest = 0.0, rest_finite = 0.0;
            for (int64_t i = band * BAND_ROWS; i < min((band + 1) * BAND_ROWS, operand.length); i++) {
                const double *row = operand.T + head * operand.head_stride + i * operand.row_stride;
                int64_t j = 0;
                for (; j + W <= i; j += W) {
                    V x = load(row + j);
                    largest = larger(largest, abs(x));
                    finite += x * 0.0; // NaN for what is not finite
                }
                for (; j < i; j++) {
                    rest = max(rest, row[j] < 0 ? -row[j] : row[j]);
                    rest_finite += row[j] * 0.0;
                }
            }
            const double sum = horizontal_sum(finite) + rest_finite;
            most[head * bands + band] = sum == 0.0 ? max(rest, horizontal_max(largest)) : HUGE_VAL;
        }
    });
    for (int64_t head = 0; head < operand.heads; head++) {
        job.largest[head] = 0.0;
        for (int64_t b = 0; b < bands; b++) job.largest[head] = max(job.largest[head], most[head * bands + b]);
    }
    return arena.used();
}

// target += (A v)^T A over one band of rows of A, the magnitudes of strictly lower scaled T; `v` and target are of its
// columns. The rows are read from memory once, and four at a time.
inline void band_product(const double *T, int64_t row_stride, double scale, int64_t first, int64_t end, const double *v,
                         double *target) {
    constexpr int TOGETHER = 4;
    for (int64_t i = first; i < end; i += TOGETHER) {
        const double *rows[TOGETHER];
        int64_t columns[TOGETHER];
        double y[TOGETHER];
        ESS_UNROLL
        for (int r = 0; r < TOGETHER; r++) {
            // rows past the end are empty
            columns[r] = i + r < end ? i + r : 0;
            rows[r] = T + (i + r < end ? i + r : first) * row_stride;
        }
        const int64_t common = i / W * W, shared = i + TOGETHER <= end ? common : 0;
        V sum[TOGETHER] = {};
        for (int64_t j = 0; j < shared; j += W) {
            V x = load(v + j);
            ESS_UNROLL
            for (int r = 0; r < TOGETHER; r++) sum[r] += abs(load(rows[r] + j)) * all(scale) * x;
        }
        for (int r = 0; r < TOGETHER; r++) {
            y[r] = horizontal_sum(sum[r]);
            for (int64_t j = shared; j < columns[r]; j++) y[r] += std::fabs(rows[r][j]) * scale * v[j];
        }
        for (int64_t j = 0; j < shared; j += W) {
            V x = load(target + j);
            ESS_UNROLL
            for (int r = 0; r < TOGETHER; r++) x += abs(load(rows[r] + j)) * all(scale) * all(y[r]);
            store(target + j, x);
        }
        for (int r = 0; r < TOGETHER; r++) {
            for (int64_t j = shared; j < columns[r]; j++) target[j] += std::fabs(rows[r][j]) * scale * y[r];
        }
    }
}

// Every weight is at least about this share of the largest: columns that matter little would otherwise get tiny
// weights, hence large ratios, which would keep the bound high.
constexpr double LEAST_WEIGHT = 1e-3;

// One step of Schur's test: the bound that the weights v and what A^T A made of them give, the better of it and
// `bound`; v becomes the next weights.
inline double schur_bound(int64_t length, const double *product, double bound, double *v) {
    double most = 0.0, largest = 0.0;
    for (int64_t j = 0; j < length; j++) {
        const double ratio = product[j] / v[j];
        most = max(most, ratio); // NaN if any ratio is: then this step gives no bound
        if (product[j] > largest) largest = product[j];
    }
    const double inverse = largest > 0 ? 1 / largest : 0.0;
    for (int64_t j = 0; j < length; j++) v[j] = product[j] * inverse + LEAST_WEIGHT;
    return most < bound ? most : bound;
}

// Sums of squares of H_i = T[i:, :i] at every position of a head, of positive terms only: row by row from the last one,
// `below` [padded length] holds the sums down the columns, and H_i has those of the columns before i.
inline void squares_at_positions(const ess_matrix &operand, int64_t head, double *below, double *squares) {
    const double scale = operand.scale[head];
    for (int64_t j = 0; j < padded(operand.length); j += W) store(below + j, V{});
    for (int64_t i = operand.length - 1; i >= 0; i--) {
        const double *row = operand.T + head * operand.head_stride + i * operand.row_stride;
        V sum{};
        int64_t j = 0;
        for (; j + W <= i; j += W) {
            V x = load(row + j) * all(scale), column = load(below + j) + x * x;
            store(below + j, column);
            sum += column;
        }
        double rest = horizontal_sum(sum);
        for (; j < i; j++) {
            const double x = row[j] * scale;
            rest += below[j] += x * x;
        }
        squares[i] = rest;
    }
}

// Schur's test: for any positive weights v of the columns, the squared norm of T is at most the largest ratio of
// A^T A v to v, A the magnitudes of T. Weights from power iteration bring it near the norm of A.
inline int64_t norm(const ess_matrix_norm_job &job, int32_t threads, void *workspace) {
    const ess_matrix &operand = *job.matrix;
    const int64_t L = operand.length, bands = (L + BAND_ROWS - 1) / BAND_ROWS, ld = padded_stride(L);
    Arena arena(workspace);
    double *pieces = arena.take<double>(operand.heads * bands * ld);
    double *vectors = arena.take<double>(operand.heads * ld);
    if (workspace == nullptr) return arena.used();
    for (int64_t head = 0; head < operand.heads; head++) {
        for (int64_t j = 0; j < L; j++) vectors[head * ld + j] = 1.0;
        job.norm[head] = HUGE_VAL;
    }
    for (int64_t step = 0; step < job.steps; step++) {
        TaskCounter counter(operand.heads * bands);
        team(threads, [&](int32_t) {
            FlushDenormals flush;
            for (int64_t t; (t = counter.take()) >= 0;) {
                const int64_t head = t / bands, band = bands - 1 - t % bands;
                const int64_t first = band * BAND_ROWS, end = min(first + BAND_ROWS, L);
                double *target = pieces + (head * bands + band) * ld;
                for (int64_t j = 0; j < padded(end); j += ROWS) {
                    for (int64_t i = 0; i < ROWS; i += W) store(target + j + i, V{});
                }
                band_product(operand.T + head * operand.head_stride, operand.row_stride, operand.scale[head], first,
                             end, vectors + head * ld, target);
            }
        });
        TaskCounter heads(operand.heads);
        team(static_cast<int32_t>(min(operand.heads, static_cast<int64_t>(threads))), [&](int32_t) {
            FlushDenormals flush;
            for (int64_t head; (head = heads.take()) >= 0;) {
                double *sum = pieces + (head * bands + bands - 1) * ld;
                for (int64_t band = 0; band < bands - 1; band++) {
                    const double *piece = pieces + (head * bands + band) * ld;
                    for (int64_t j = 0; j < (band + 1) * BAND_ROWS; j += W) {
                        store(sum + j, load(sum + j) + load(piece + j));
                    }
                }
                job.norm[head] = schur_bound(L, sum, job.norm[head], vectors + head * ld);
            }
        });
    }
    TaskCounter heads(operand.heads);
    team(static_cast<int32_t>(min(operand.heads, static_cast<int64_t>(threads))), [&](int32_t) {
        FlushDenormals flush;
        for (int64_t head; (head = heads.take()) >= 0;) {
            squares_at_positions(operand, head, vectors + head * ld, job.squares + head * L);
        }
    });
    return arena.used();
}

} // namespace
} // namespace ess::ESS_LEVEL::matrix
