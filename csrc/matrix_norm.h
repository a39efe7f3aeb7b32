// How large a dense operator is: its largest entry, and its norm. Both read the strictly lower part once a pass, in
// bands of rows that are added up in a fixed order.

#pragma once

#include "products.h"

namespace ess {
namespace ESS_LEVEL {
namespace {
namespace dense {

constexpr int64_t BAND_ROWS = 64;

inline int64_t matrix_largest(const MatrixLargestJob &job) {
    const MatrixOperand &operand = job.operand;
    const int64_t bands = (operand.length + BAND_ROWS - 1) / BAND_ROWS;
    Arena arena(job.workspace);
    double *most = arena.take<double>(operand.heads * bands);
    if (job.workspace == nullptr) return arena.used();
    TaskCounter counter(operand.heads * bands);
    team(job.threads, [&](int32_t) {
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

// target += (T v)^T T over one band of rows of strictly lower T, which is scaled, `v` and target of its columns. The
// rows are read from memory once, and four at a time.
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
            for (int r = 0; r < TOGETHER; r++) sum[r] += load(rows[r] + j) * all(scale) * x;
        }
        for (int r = 0; r < TOGETHER; r++) {
            y[r] = horizontal_sum(sum[r]);
            for (int64_t j = shared; j < columns[r]; j++) y[r] += rows[r][j] * scale * v[j];
        }
        for (int64_t j = 0; j < shared; j += W) {
            V x = load(target + j);
            ESS_UNROLL
            for (int r = 0; r < TOGETHER; r++) x += load(rows[r] + j) * all(scale) * all(y[r]);
            store(target + j, x);
        }
        for (int r = 0; r < TOGETHER; r++) {
            for (int64_t j = shared; j < columns[r]; j++) target[j] += rows[r][j] * scale * y[r];
        }
    }
}

inline int64_t matrix_norm(const MatrixNormJob &job) {
    const MatrixOperand &operand = job.operand;
    const int64_t L = operand.length, bands = (L + BAND_ROWS - 1) / BAND_ROWS, ld = padded_stride(L);
    Arena arena(job.workspace);
    double *parts = arena.take<double>(operand.heads * bands * ld);
    double *vectors = arena.take<double>(operand.heads * ld);
    if (job.workspace == nullptr) return arena.used();
    for (int64_t head = 0; head < operand.heads; head++) {
        std::memcpy(vectors + head * ld, job.start, static_cast<size_t>(L) * sizeof(double));
        job.norm[head] = 0.0;
    }
    for (int64_t step = 0; step < job.steps; step++) {
        TaskCounter counter(operand.heads * bands);
        team(job.threads, [&](int32_t) {
            FlushDenormals flush;
            for (int64_t t; (t = counter.take()) >= 0;) {
                const int64_t head = t / bands, band = bands - 1 - t % bands;
                const int64_t first = band * BAND_ROWS, end = min(first + BAND_ROWS, L);
                double *target = parts + (head * bands + band) * ld;
                for (int64_t j = 0; j < padded(end); j += ROWS) {
                    for (int64_t i = 0; i < ROWS; i += W) store(target + j + i, V{});
                }
                band_product(operand.T + head * operand.head_stride, operand.row_stride, operand.scale[head], first,
                             end, vectors + head * ld, target);
            }
        });
        TaskCounter heads(operand.heads);
        team(static_cast<int32_t>(min(operand.heads, static_cast<int64_t>(job.threads))), [&](int32_t) {
            FlushDenormals flush;
            for (int64_t head; (head = heads.take()) >= 0;) {
                double *v = vectors + head * ld, *sum = parts + (head * bands + bands - 1) * ld, squares = 0.0;
                for (int64_t band = 0; band < bands - 1; band++) {
                    const double *part = parts + (head * bands + band) * ld;
                    for (int64_t j = 0; j < (band + 1) * BAND_ROWS; j += W) {
                        store(sum + j, load(sum + j) + load(part + j));
                    }
                }
                for (int64_t j = 0; j < L; j++) squares += sum[j] * sum[j];
                const double size = sqrt(all(squares))[0], inverse = size > 0 ? 1 / size : 0.0;
                for (int64_t j = 0; j < L; j++) v[j] = sum[j] * inverse;
                job.norm[head] = size;
            }
        });
    }
    return arena.used();
}

} // namespace dense
} // namespace
} // namespace ESS_LEVEL
} // namespace ess
