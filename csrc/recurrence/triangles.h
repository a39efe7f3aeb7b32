// Lower triangular roots of Gramians, moved by one token: rotations of columns only, which lose no digits.
//
// Matrices are [n, n], column-major, with zeros above the diagonal; n is a multiple of ROWS.

#pragma once

#include "dense/limits.h"
#include "dense/products.h"

namespace ess::ESS_LEVEL::recurrence {
using namespace dense;
namespace {

// A rotation that turns the pair (x, y) into (norm, 0); none where the pair is as good as zero.
struct Rotation {
    double norm;
    V cosine, sine;

    // whether there is anything to turn
    bool turns(double x, double y) {
        const double square = x * x + y * y;
        if (y == 0 || square < NO_COLUMN) return false;
        norm = std::sqrt(square);
        const double inverse = 1 / norm;
        cosine = all(x * inverse);
        sine = all(y * inverse);
        return true;
    }

    // of the columns f and g, from row `first` on, which is rounded down to a whole vector
    void apply(double *f, double *g, int64_t first, int64_t n) const {
        for (int64_t i = first / W * W; i < n; i += W) {
            V a = load(f + i), b = load(g + i);
            store(f + i, cosine * a + sine * b);
            store(g + i, cosine * b - sine * a);
        }
    }
};

// The lower triangular F with F F^T = F F^T + w w^T, by n Givens rotations; w is destroyed. 3 n^2 flops.
inline void add_column(double *F, int64_t n, double *w) {
    Rotation rotation;
    for (int64_t j = 0; j < n; j++) {
        double *f = F + j * n;
        if (!rotation.turns(f[j], w[j])) continue;
        rotation.apply(f, w, j, n);
        // entries above the diagonal are zero, whatever the vector's first lanes say
        f[j] = rotation.norm;
        for (int64_t i = j / W * W; i < j; i++) f[i] = 0;
    }
}

// F <- diag(a) F.
inline void scale_rows(double *F, int64_t n, const double *a) {
    for (int64_t j = 0; j < n; j++) {
        for (int64_t i = j / W * W; i < n; i += W) store(F + i + j * n, load(F + i + j * n) * load(a + i));
    }
}

// The lower triangular F with F F^T = M M^T for M = (diag(d) - p q^T) F = diag(d) F - p v^T, v = F^T q, which goes to
// `v`. Rotations from the last column on gather v in the first one, and diag(d) F gets one more diagonal above its own.
// Then all of p v^T is in the first column, and rotations from there on bring the triangle back. 8 n^2 flops.
inline void move_rank_one(double *F, int64_t n, const double *d, const double *p, const double *q, double *v) {
    double peak = 0;
    for (int64_t j = 0; j < n; j++) {
        V sum{};
        for (int64_t i = j / ROWS * ROWS; i < n; i += W) sum += load(F + i + j * n) * load(q + i);
        v[j] = horizontal_sum(sum);
        peak = max(peak, std::fabs(v[j]));
    }
    scale_rows(F, n, d);
    if (peak == 0) return;
    for (int64_t j = 0; j < n; j++) v[j] /= peak;
    Rotation rotation;
    for (int64_t j = n - 1; j > 0; j--) {
        if (!rotation.turns(v[j - 1], v[j])) continue;
        rotation.apply(F + (j - 1) * n, F + j * n, j - 1, n);
        v[j - 1] = rotation.norm;
    }
    const V gathered = all(v[0] * peak);
    for (int64_t i = 0; i < n; i += W) store(F + i, load(F + i) - gathered * load(p + i));
    for (int64_t j = 0; j + 1 < n; j++) {
        double *f = F + j * n, *g = f + n;
        if (rotation.turns(f[j], g[j])) rotation.apply(f, g, j, n);
        // what is left there is a rounding error, or too small to be turned
        g[j] = 0;
    }
}

} // namespace
} // namespace ess::ESS_LEVEL::recurrence
