// Room spectra/: singular values of many small matrices, side by side in vector lanes. It may include dense/, base/ and
// include/.
//
// Spectra of many small matrices: `width<T>` of them a vector, BUNDLE vectors a task.
//
// Matrices come into lanes scaled and higher than wide; those much higher, and the factors of a product whose rank is
// bounded by what they share, become triangles first. Then: bidiagonal form, and either qd sweeps (values) or Sturm
// counts.

#pragma once

#include "base/team_work.h"
#include "include/ess_spectra.h"
#include "spectra/band.h"
#include "spectra/bidiagonal.h"
#include "spectra/lanes.h"
#include "spectra/qd.h"
#include "spectra/sturm.h"

namespace ess::ESS_LEVEL::spectra {
namespace {

// vectors whose divisions hide each other
constexpr int BUNDLE = 2;
// From so many bytes a vector of square matrices is reduced in two stages: where it no longer shares the second cache
// with anything, one stage waits for memory. (Zen 4, AVX-512, n = 64 / 96 / 128 / 256: two stages take 1.08 / 1.00 /
// 0.83 / 0.75 of the time of one. A band of 8 costs more in the second stage than it saves in the first, but at n =
// 256.)
constexpr int64_t TWO_STAGES = 9 << 16;
// rows of a tall matrix, and shared columns of a product, at a time
constexpr int64_t CHUNK = 32;
// Sturm counts at a time
constexpr int COUNTS = 2;

constexpr int64_t whole_bands(int64_t n) { return (n + BAND - 1) / BAND * BAND; }
// distance of columns: never a power of two, which would put them all into the same sets of the cache
constexpr int64_t column_distance(int64_t rows) { return rows | 1; }

// What the sizes alone decide.
struct SpectraPlan {
    bool product;
    bool swapped;          // the factors (or rows and columns) trade places, to make matrices at least as high as wide
    int64_t rows, columns; // of a matrix
    int64_t shared;        // columns of the factors
    bool thin;             // product: of rank at most `shared` < columns; reduced to shared x shared
    bool tall;             // reduced to columns x columns before all else
    int64_t m, n;          // what is made bidiagonal
    int64_t values;        // columns; those from n on are zero
    bool two_stages;

    SpectraPlan(const ess_spectra_job &job, int64_t vector_bytes) {
        product = job.right.rows >= 0;
        rows = job.left.rows;
        columns = product ? job.right.rows : job.left.columns;
        shared = job.left.columns;
        swapped = rows < columns;
        if (swapped) {
            const int64_t r = rows;
            rows = columns;
            columns = r;
        }
        values = columns;
        thin = product && shared < columns;
        tall = !thin && rows > columns + columns / 2 + BAND;
        n = thin ? shared : columns;
        m = thin || tall ? n : rows;
        two_stages = n * n * vector_bytes >= TWO_STAGES;
    }
};

// Memory of one thread.
template <class T> struct SpectraWork {
    int64_t distance;
    Vec<T> *matrix, *chunk, *left, *right, *triangle, *scratch, *band, *d, *e, *q, *f, *out, *split_totals;

    SpectraWork(Arena &arena, const SpectraPlan &plan) {
        const int64_t m = whole_bands(plan.m), n = whole_bands(plan.n);
        distance = column_distance(m);
        matrix = arena.take<Vec<T>>(distance * n);
        const bool streams = plan.tall || plan.thin;
        chunk = arena.take<Vec<T>>(streams ? (CHUNK + 1) * n : 0);
        left = arena.take<Vec<T>>(plan.product && !plan.thin ? column_distance(streams ? CHUNK : m) * CHUNK : 0);
        right = arena.take<Vec<T>>(plan.product && !plan.thin ? column_distance(n) * CHUNK : 0);
        triangle = arena.take<Vec<T>>(plan.thin ? 2 * distance * n : 0);
        const int64_t one_stage = bidiagonalise_work(m, n), two_stages = band_work(m);
        scratch = arena.take<Vec<T>>(one_stage > two_stages ? one_stage : two_stages);
        band = arena.take<Vec<T>>(plan.two_stages ? Band<T, BUNDLE>::size(n) : 0);
        Vec<T> **const lines[] = {&d, &e, &q, &f, &out, &split_totals};
        for (Vec<T> **line : lines) *line = arena.take<Vec<T>>(BUNDLE * n);
    }
};

// The matrices of one vector, from memory to lanes.
template <class T> struct SpectraSource {
    static constexpr int N = width<T>;
    const SpectraPlan &plan;
    SpectraWork<T> &work;
    Operand<T> left, right;
    Vec<T> unit = all(T(1)); // multiplied onto products, so that squares of small ones do not vanish
    int exponent[N];
    bool finite[N];

    SpectraSource(const ess_spectra_job &job, const SpectraPlan &plan, SpectraWork<T> &work, int64_t first)
        : plan(plan), work(work) {
        open(job, plan.product && plan.swapped ? job.right : job.left, first, left);
        if (plan.product) open(job, plan.swapped ? job.left : job.right, first, right);
        else if (plan.swapped) left.transpose();
        measure(left);
        if (plan.product) measure(right);
        for (int l = 0; l < N; l++) {
            exponent[l] = left.exponent[l] + (plan.product ? right.exponent[l] : 0);
            finite[l] = left.finite[l] && (!plan.product || right.finite[l]);
        }
    }

    // Lanes beyond the batch repeat its last matrix.
    void open(const ess_spectra_job &job, const ess_matrices &x, int64_t first, Operand<T> &operand) {
        for (int l = 0; l < N; l++) {
            const int64_t b = first + l < job.batch ? first + l : job.batch - 1;
            operand.base[l] = static_cast<const T *>(x.data) + b * x.batch_stride;
        }
        operand.rows = x.rows;
        operand.columns = x.columns;
        operand.row_stride = x.row_stride;
        operand.column_stride = x.column_stride;
    }

    // Zeros around what a block of rows x columns leaves of height x whole.
    static void clear(Vec<T> *x, int64_t distance, int64_t rows, int64_t height, int64_t columns, int64_t whole) {
        for (int64_t j = 0; j < whole; j++) {
            for (int64_t i = j < columns ? rows : 0; i < height; i++) x[i + j * distance] = Vec<T>{};
        }
    }

    // Rows [i0, i1) of the matrices, with zeros up to whole bands.
    void rows(int64_t i0, int64_t i1, Vec<T> *out, int64_t distance) {
        const int64_t height = whole_bands(i1 - i0), n = whole_bands(plan.n);
        if (!plan.product) {
            clear(out, distance, i1 - i0, height, plan.columns, n);
            load_lanes(left, i0, i1, 0, plan.columns, out, 1, distance);
            return;
        }
        const int64_t left_distance = column_distance(height), right_distance = column_distance(n);
        for (int64_t k = 0; k < plan.shared; k += CHUNK) {
            const int64_t end = k + CHUNK < plan.shared ? k + CHUNK : plan.shared;
            clear(work.left, left_distance, i1 - i0, height, end - k, end - k);
            clear(work.right, right_distance, plan.columns, n, end - k, end - k);
            load_lanes(left, i0, i1, k, end, work.left, 1, left_distance);
            load_lanes(right, 0, plan.columns, k, end, work.right, 1, right_distance);
            multiply_lanes<T>(height, n, end - k, work.left, left_distance, work.right, right_distance, out, distance,
                              k > 0);
        }
    }

    // The triangle of `operand`'s rows (or of the matrices' own, null), n x n; returns the largest entry that went in.
    Vec<T> triangle(const Operand<T> *operand, int64_t count, Vec<T> *R) {
        const int64_t distance = CHUNK + 1;
        Vec<T> peak{};
        clear(R, work.distance, 0, whole_bands(plan.n), 0, whole_bands(plan.n));
        for (int64_t i = 0; i < count; i += CHUNK) {
            const int64_t end = i + CHUNK < count ? i + CHUNK : count;
            if (operand) load_lanes(*operand, i, end, 0, plan.n, work.chunk, 1, distance);
            else rows(i, end, work.chunk, distance);
            for (int64_t j = 0; j < plan.n; j++) {
                for (int64_t r = 0; r < end - i; r++) {
                    Vec<T> &x = work.chunk[r + j * distance];
                    x *= unit;
                    peak = max(abs(x), peak);
                }
            }
            const FlushDenormals flush;
            append_rows<T>(plan.n, R, work.distance, end - i, work.chunk, distance);
        }
        return peak;
    }

    // Exact powers of two that bring lanes whose largest entry is `peak` to the order of 1; only `where`.
    Vec<T> rescale(Vec<T> peak, bool only_small) {
        Vec<T> factor = all(T(1));
        for (int l = 0; l < N; l++) {
            if (peak[l] == 0 || (only_small && peak[l] >= T(0.01))) continue;
            const int shift = exponent_of<T>(peak[l]);
            factor[l] = static_cast<T>(__builtin_ldexp(1.0, -shift));
            exponent[l] += shift;
        }
        return factor;
    }

    // The m x n matrices of the plan in work.matrix, of the order of 1.
    void load() {
        Vec<T> *A = work.matrix;
        const int64_t distance = work.distance, m = whole_bands(plan.m), n = whole_bands(plan.n);
        if (plan.tall) {
            const Vec<T> peak = triangle(nullptr, plan.rows, A);
            // products of factors that miss each other are small: their squares must not vanish
            unit = rescale(peak, true);
            if (any(unit != all(T(1)))) triangle(nullptr, plan.rows, A);
            return;
        }
        if (plan.thin) {
            Vec<T> *other = work.triangle, *first = other + distance * n;
            triangle(&left, plan.rows, first);
            triangle(&right, plan.columns, other);
            multiply_lanes<T>(n, n, n, first, distance, other, distance, A, distance, false);
        } else {
            rows(0, plan.rows, A, distance);
        }
        if (!plan.product) return;
        Vec<T> peak{};
        for (int64_t j = 0; j < n; j++) {
            for (int64_t i = 0; i < m; i++) peak = max(abs(A[i + j * distance]), peak);
        }
        const Vec<T> factor = rescale(peak, false);
        for (int64_t j = 0; j < n; j++) {
            for (int64_t i = 0; i < m; i++) A[i + j * distance] *= factor;
        }
    }
};

// Writes values [S] of one matrix, descending, times 2^exponent; NaN throughout if the largest overflows.
template <class T>
void write_values(const SpectraPlan &plan, const T *lane, int64_t step, int exponent, bool finite, T *out) {
    T first, second;
    powers_of_two(exponent, first, second);
    for (int64_t k = 0; k < plan.n; k++) {
        // nearly sorted as they come
        const T x = lane[k * step];
        int64_t at = k;
        for (; at > 0 && out[at - 1] < x; at--) out[at] = out[at - 1];
        out[at] = x;
    }
    for (int64_t k = 0; k < plan.n; k++) out[k] = out[k] * first * second;
    for (int64_t k = plan.n; k < plan.values; k++) out[k] = 0;
    constexpr T most = sizeof(T) == 8 ? static_cast<T>(__DBL_MAX__) : static_cast<T>(__FLT_MAX__);
    if (finite && (plan.n == 0 || out[0] <= most)) return;
    for (int64_t k = 0; k < plan.values; k++) out[k] = static_cast<T>(__builtin_nan(""));
}

// A tolerance in units of 2^exponent, kept where its square is a normal number; a matrix there is of the order of 1.
template <class T> T scaled_tolerance(double tau, int exponent) {
    constexpr double least = sizeof(T) == 8 ? 1e-120 : 1e-12, most = sizeof(T) == 8 ? 1e120 : 1e12;
    const double x = __builtin_ldexp(static_cast<double>(static_cast<T>(tau)), -exponent);
    return static_cast<T>(x < least ? least : x > most ? most : x);
}

// Counts above tolerances of G vectors of matrices, from the squares of their bidiagonals in work.q and work.f.
template <class T, int G>
void write_counts(const ess_spectra_job &job, const SpectraPlan &plan, const SpectraWork<T> &work, int64_t first,
                  const int (&exponent)[G][width<T>], const bool (&finite)[G][width<T>]) {
    constexpr int N = width<T>;
    constexpr T most = sizeof(T) == 8 ? static_cast<T>(__DBL_MAX__) : static_cast<T>(__FLT_MAX__);
    const int64_t M = job.tolerances;
    for (int g = 0; g < G; g++) {
        // tolerance -1 stands for the largest number: nothing may be above it
        for (int64_t t = -1; t < M; t += COUNTS) {
            Vec<T> sigma[COUNTS] = {}, below[COUNTS];
            for (int k = 0; k < COUNTS; k++) {
                for (int l = 0; l < N; l++) {
                    const int64_t b = first + g * N + l;
                    const bool asked = t + k >= 0 && t + k < M && b < job.batch;
                    const T x = scaled_tolerance<T>(asked ? job.tau[b * M + t + k] : most, exponent[g][l]);
                    sigma[k][l] = x * x;
                }
            }
            {
                const FlushDenormals flush;
                count_below<T, COUNTS>(plan.n, work.q + g, work.f + g, G, sigma, below);
            }
            for (int k = 0; k < COUNTS && t + k < M; k++) {
                for (int l = 0; l < N && first + g * N + l < job.batch; l++) {
                    const int64_t b = first + g * N + l, above = plan.n - static_cast<int64_t>(below[k][l]);
                    int64_t *counts = job.counts + b * M;
                    if (t + k < 0) {
                        for (int64_t i = 0; i < M; i++) counts[i] = finite[g][l] && above == 0 ? 0 : -1;
                    } else if (counts[t + k] == 0) {
                        counts[t + k] = job.tau[b * M + t + k] < 0 ? plan.values : above;
                    }
                }
            }
        }
    }
}

// G vectors of matrices from `first` on.
template <class T, int G>
void spectra_task(const ess_spectra_job &job, const SpectraPlan &plan, SpectraWork<T> &work, int64_t first) {
    constexpr int N = width<T>;
    const int64_t n = plan.n, batch = job.batch, tolerances = job.tolerances;
    const int64_t padded_m = whole_bands(plan.m), padded_n = whole_bands(n);
    Vec<T> *d = work.d, *e = work.e, *q = work.q, *f = work.f;
    int exponent[G][N];
    bool finite[G][N];
    const Band<T, G> band{work.band};
    if (plan.two_stages) band.clear(padded_n);
    for (int g = 0; g < G; g++) {
        SpectraSource<T> source(job, plan, work, first + g * N);
        source.load();
        for (int l = 0; l < N; l++) exponent[g][l] = source.exponent[l], finite[g][l] = source.finite[l];
        const FlushDenormals flush;
        if (plan.two_stages) reduce_to_band(padded_m, padded_n, work.matrix, work.distance, band, g, work.scratch);
        else if (n > 0) bidiagonalise<T>(plan.m, n, work.matrix, work.distance, d + g, e + g, G, work.scratch);
    }
    Vec<T> failed[G];
    {
        const FlushDenormals flush;
        if (plan.two_stages) chase_bulges(n, band, d, e);
        for (int g = 0; g < G; g++) {
            if (n > 0) e[(n - 1) * G + g] = Vec<T>{};
            failed[g] = Vec<T>{};
        }
        for (int64_t i = 0; i < n * G; i++) {
            q[i] = d[i] * d[i];
            f[i] = e[i] * e[i];
        }
        if (job.values != nullptr && n > 0) {
            qd_values<T, G>(n, q, f, work.out, work.split_totals, failed);
            bool redo = false;
            for (int64_t i = 0; i < n * G; i++) work.out[i] = sqrt(work.out[i]);
            for (int g = 0; g < G; g++) redo |= any(failed[g] != Vec<T>{});
            for (int64_t i = 0; i < n * G; i++) {
                q[i] = d[i] * d[i];
                f[i] = e[i] * e[i];
            }
            for (int g = 0; redo && g < G; g++) {
                Vec<T> *slow = work.split_totals + g;
                bisect<T>(n, q + g, f + g, G, slow);
                for (int64_t k = 0; k < n; k++) {
                    work.out[k * G + g] = select(failed[g] != Vec<T>{}, slow[k * G], work.out[k * G + g]);
                }
            }
        }
    }
    for (int g = 0; g < G; g++) {
        for (int l = 0; l < N && first + g * N + l < batch; l++) {
            const int64_t b = first + g * N + l;
            if (job.values != nullptr) {
                write_values<T>(plan, reinterpret_cast<const T *>(work.out + g) + l, G * N, exponent[g][l],
                                finite[g][l], static_cast<T *>(job.values) + b * plan.values);
            }
        }
    }
    if (tolerances > 0) write_counts<T, G>(job, plan, work, first, exponent, finite);
}

template <class T> int64_t spectra_of(const ess_spectra_job &job, int32_t threads, void *workspace) {
    const SpectraPlan plan(job, sizeof(V));
    // threads take a bundle of vectors from each other or, where that would leave some of them idle, one vector
    const int64_t size = job.batch <= width<T> * threads ? width<T> : BUNDLE * width<T>;
    const int64_t count = (job.batch + size - 1) / size;
    Arena shared(workspace);
    TaskCounter counter(count);
    auto body = [&](SpectraWork<T> &work) {
        for (int64_t task; (task = counter.take()) >= 0;) {
            const int64_t first = task * size, left = size < job.batch - first ? size : job.batch - first;
            if (left <= width<T>) spectra_task<T, 1>(job, plan, work, first);
            else spectra_task<T, BUNDLE>(job, plan, work, first);
        }
    };
    return run_with<SpectraWork<T>>(shared, count < threads ? static_cast<int32_t>(count) : threads, body, plan);
}

inline int64_t spectra(const ess_spectra_job &job, int32_t threads, void *workspace) {
    return job.element_bytes == 8 ? spectra_of<double>(job, threads, workspace)
                                  : spectra_of<float>(job, threads, workspace);
}

} // namespace
} // namespace ess::ESS_LEVEL::spectra
