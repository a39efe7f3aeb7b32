// Matrices on their way into lanes: `width<T>` matrices side by side, element (i, j) of all of them in one vector.

#pragma once

#include "base/simd.h"

namespace ess::ESS_LEVEL::spectra {
namespace {

// The same factor of `width<T>` matrices as it lies in memory, and the exact powers of two that bring its entries to at
// most 1.
template <class T> struct Operand {
    const T *base[width<T>];
    int64_t rows, columns, row_stride, column_stride;
    // two factors: one alone could overflow
    Vec<T> scale, scale_again;
    bool scaled_again; // whether the second one is not 1 throughout
    Mask<T> finite;
    int exponent[width<T>]; // entries are those in lanes times 2^exponent

    // `rows` and `columns` trade places
    void transpose() {
        int64_t r = rows, s = row_stride;
        rows = columns, row_stride = column_stride;
        columns = r, column_stride = s;
    }
};

// The exponent that brings x to [1/2, 1); 0 for 0.
template <class T> ESS_INLINE int exponent_of(T x) {
    int exponent = 0;
    __builtin_frexp(static_cast<double>(x), &exponent);
    return exponent;
}

// 2^exponent as a product of two normal numbers
template <class T> ESS_INLINE void powers_of_two(int exponent, T &first, T &second) {
    int half = exponent / 2;
    first = static_cast<T>(__builtin_ldexp(1.0, half));
    second = static_cast<T>(__builtin_ldexp(1.0, exponent - half));
}

// The largest |entry| of a matrix; `finite` becomes false where one is NaN or infinite.
template <class T>
T largest_entry(const T *p, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride, bool &finite) {
    constexpr int N = width<T>, K = 4; // vectors at a time
    if (row_stride == 1) {
        int64_t r = rows;
        rows = columns, columns = r;
        row_stride = column_stride, column_stride = 1;
    }
    if (column_stride == 1 && row_stride == columns) {
        columns *= rows;
        rows = 1;
    }
    // 0 times x is NaN exactly where x is NaN or infinite
    Vec<T> largest[K] = {}, nothing[K] = {};
    T rest = 0, nothing_rest = 0;
    for (int64_t i = 0; i < rows; i++) {
        const T *row = p + i * row_stride;
        int64_t j = 0;
        if (column_stride == 1) {
            for (; j + K * N <= columns; j += K * N) {
                ESS_UNROLL
                for (int k = 0; k < K; k++) {
                    const Vec<T> x = load(row + j + k * N);
                    nothing[k] += x * T(0);
                    largest[k] = max(abs(x), largest[k]);
                }
            }
            for (; j + N <= columns; j += N) {
                const Vec<T> x = load(row + j);
                nothing[0] += x * T(0);
                largest[0] = max(abs(x), largest[0]);
            }
        }
        for (; j < columns; j++) {
            const T x = row[j * column_stride];
            nothing_rest += x * T(0);
            rest = x > rest ? x : -x > rest ? -x : rest;
        }
    }
    for (int k = 1; k < K; k++) {
        nothing[0] += nothing[k];
        largest[0] = max(largest[k], largest[0]);
    }
    finite = nothing_rest == 0 && !any(nothing[0] != Vec<T>{});
    const T widest = horizontal_max(largest[0]);
    return widest > rest ? widest : rest;
}

// Looks at all entries of all lanes: sets finite, exponent and scale. Denormal numbers must be on.
template <class T> void measure(Operand<T> &x) {
    for (int l = 0; l < width<T>; l++) {
        bool finite = true;
        T largest = largest_entry(x.base[l], x.rows, x.columns, x.row_stride, x.column_stride, finite);
        x.finite[l] = finite ? -1 : 0;
        x.exponent[l] = finite ? exponent_of(largest) : 0;
        // one power is enough, but for entries near the ends of the range
        const int most = sizeof(T) == 8 ? 1000 : 120, shift = -x.exponent[l];
        const int first = shift > most ? most : shift < -most ? -most : shift;
        x.scale[l] = static_cast<T>(__builtin_ldexp(1.0, first));
        x.scale_again[l] = static_cast<T>(__builtin_ldexp(1.0, shift - first));
    }
    x.scaled_again = any(x.scale_again != all(T(1))) || any(~x.finite);
}

// Elements [i0, i1) x [j0, j1), scaled, into lanes: (i, j) to out[(i - i0) * row_step + (j - j0) * column_step].
// Matrices that are not finite become zero. Denormal numbers must be on: they may be all that there is.
template <class T>
void load_lanes(const Operand<T> &x, int64_t i0, int64_t i1, int64_t j0, int64_t j1, Vec<T> *out, int64_t row_step,
                int64_t column_step) {
    constexpr int N = width<T>;
    int64_t row_stride = x.row_stride, column_stride = x.column_stride;
    if (row_stride == 1 && column_stride != 1) {
        int64_t t = i0;
        i0 = j0, j0 = t;
        t = i1, i1 = j1, j1 = t;
        t = row_step, row_step = column_step, column_step = t;
        row_stride = column_stride, column_stride = 1;
    }
    for (int64_t i = i0; i < i1; i++) {
        Vec<T> *target = out + (i - i0) * row_step;
        for (int64_t j = j0; j < j1; j += N) {
            const int count = static_cast<int>(j1 - j < N ? j1 - j : N);
            const int64_t offset = i * row_stride + j * column_stride;
            Vec<T> tile[N];
            if (column_stride == 1 && count == N) {
                ESS_UNROLL
                for (int l = 0; l < N; l++) tile[l] = load(x.base[l] + offset);
                transpose_tile(tile);
            } else {
                for (int t = 0; t < count; t++) {
                    for (int l = 0; l < N; l++) tile[t][l] = x.base[l][offset + t * column_stride];
                }
            }
            Vec<T> *to = target + (j - j0) * column_step;
            if (count == N && !x.scaled_again) {
                ESS_UNROLL
                for (int t = 0; t < N; t++) to[t * column_step] = tile[t] * x.scale;
            } else {
                for (int t = 0; t < count; t++) {
                    to[t * column_step] = select(x.finite, tile[t] * x.scale * x.scale_again, Vec<T>{});
                }
            }
        }
    }
}

// C (+)= L R^T in lanes: (i, j) of C at C[i + j ldc], of L and R at [i + k ld]; `rows` and `columns` are multiples of
// 4. 2 rows columns depth flops a matrix.
template <class T>
ESS_ONE_COPY void multiply_lanes(int64_t rows, int64_t columns, int64_t depth, const Vec<T> *L, int64_t ldl,
                                 const Vec<T> *R, int64_t ldr, Vec<T> *C, int64_t ldc, bool add) {
    for (int64_t j = 0; j < columns; j += 4) {
        for (int64_t i = 0; i < rows; i += 4) {
            Vec<T> sum[4][4];
            ESS_UNROLL
            for (int t = 0; t < 16; t++) sum[t / 4][t % 4] = Vec<T>{};
            for (int64_t k = 0; k < depth; k++) {
                Vec<T> l[4];
                ESS_UNROLL
                for (int a = 0; a < 4; a++) l[a] = L[i + a + k * ldl];
                ESS_UNROLL
                for (int b = 0; b < 4; b++) {
                    ESS_UNROLL
                    for (int a = 0; a < 4; a++) sum[b][a] += l[a] * R[j + b + k * ldr];
                }
            }
            ESS_UNROLL
            for (int b = 0; b < 4; b++) {
                ESS_UNROLL
                for (int a = 0; a < 4; a++) {
                    Vec<T> &c = C[i + a + (j + b) * ldc];
                    c = add ? c + sum[b][a] : sum[b][a];
                }
            }
        }
    }
}

} // namespace
} // namespace ess::ESS_LEVEL::spectra
