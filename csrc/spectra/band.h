// Bidiagonal form in two stages, for matrices too large for the first cache: blocks of BAND reflectors make an upper
// band, whose bulges are then chased off. The large first stage touches the matrix twice per BAND columns and rows, not
// per one.

#pragma once

#include "spectra/bidiagonal.h"

namespace ess::ESS_LEVEL::spectra {
namespace {

constexpr int BAND = 4;

// BAND lines of a matrix (columns, or rows: where the lines of one are the elements of the other) and the block
// reflector I - V T V^T that reduces them to their first BAND x BAND triangle.
template <class T> struct Panel {
    Vec<T> *V;                   // element i of line c at i * BAND + c
    Vec<T> t[BAND][BAND];        // upper triangular
    Vec<T> triangle[BAND][BAND]; // what is left of line c: elements 0..c in triangle[c]
};

// Reduces the lines in panel.V. 2 BAND^2 length flops twice.
template <class T> ESS_ONE_COPY void factor_panel(int64_t length, Panel<T> &panel) {
    Vec<T> *V = panel.V;
    for (int c = 0; c < BAND; c++) {
        // products of line c behind its head with all lines
        Vec<T> dot[BAND];
        for (int a = 0; a < BAND; a++) dot[a] = Vec<T>{};
        for (int64_t i = c + 1; i < length; i++) {
            const Vec<T> *row = V + i * BAND, x = row[c];
            ESS_UNROLL
            for (int a = 0; a < BAND; a++) dot[a] += x * row[a];
        }
        Vec<T> *top = V + c * BAND;
        const Reflector<T> h = reflector<T>(top[c], dot[c]);
        for (int a = 0; a < c; a++) panel.triangle[c][a] = V[a * BAND + c];
        panel.triangle[c][c] = h.beta;
        for (int a = 0; a < c; a++) V[a * BAND + c] = Vec<T>{};
        top[c] = h.head;
        for (int a = 0; a < BAND; a++) dot[a] = (dot[a] + h.head * top[a]) * h.inverse;
        for (int64_t i = c; i < length; i++) {
            Vec<T> *row = V + i * BAND, x = row[c];
            for (int a = c + 1; a < BAND; a++) row[a] -= x * dot[a];
        }
        // T's column: -inverse T (V^T v)
        for (int a = 0; a < c; a++) {
            Vec<T> sum{};
            for (int b = a; b < c; b++) sum += panel.t[a][b] * dot[b];
            panel.t[a][c] = -sum;
        }
        panel.t[c][c] = h.inverse;
    }
}

// (I - V T V^T)^T applied to `count` lines of A: element i of line j at A[i * along + j * across]; count is a multiple
// of 4. 4 BAND length count flops.
template <class T>
ESS_ONE_COPY void apply_panel(const Panel<T> &panel, int64_t length, int64_t count, Vec<T> *A, int64_t along,
                              int64_t across) {
    // lines at a time: their sums are to stay in registers
    constexpr int LINES = ESS_VECTOR_BYTES == 64 ? 4 : 2;
    for (int64_t j = 0; j < count; j += LINES) {
        Vec<T> *first = A + j * across, w[BAND][LINES];
        ESS_UNROLL
        for (int t = 0; t < BAND * LINES; t++) w[t / LINES][t % LINES] = Vec<T>{};
        {
            const Vec<T> *v = panel.V, *a = first;
            for (int64_t i = 0; i < length; i++, v += BAND, a += along) {
                ESS_UNROLL
                for (int l = 0; l < LINES; l++) {
                    const Vec<T> x = a[l * across];
                    ESS_UNROLL
                    for (int c = 0; c < BAND; c++) w[c][l] += v[c] * x;
                }
            }
        }
        ESS_UNROLL
        for (int c = BAND - 1; c >= 0; c--) {
            ESS_UNROLL
            for (int l = 0; l < LINES; l++) {
                Vec<T> sum = panel.t[c][c] * w[c][l];
                ESS_UNROLL
                for (int b = 0; b < c; b++) sum += panel.t[b][c] * w[b][l];
                w[c][l] = sum;
            }
        }
        const Vec<T> *v = panel.V;
        Vec<T> *a = first;
        for (int64_t i = 0; i < length; i++, v += BAND, a += along) {
            ESS_UNROLL
            for (int l = 0; l < LINES; l++) {
                Vec<T> x = a[l * across];
                ESS_UNROLL
                for (int c = 0; c < BAND; c++) x -= v[c] * w[c][l];
                a[l * across] = x;
            }
        }
    }
}

// A band matrix of order n with room for bulges, G of them interleaved; rows and columns from n on are zero.
template <class T, int G> struct Band {
    static constexpr int64_t ROW = 3 * BAND; // diagonals -BAND .. 2 BAND - 1
    Vec<T> *memory;

    static constexpr int64_t size(int64_t n) { return (n + 3 * BAND) * ROW * G; }
    Vec<T> *at(int64_t i, int64_t j) const { return memory + (i * (ROW - 1) + j + BAND) * G; }
    void clear(int64_t n) const {
        for (int64_t i = 0; i < size(n); i++) memory[i] = Vec<T>{};
    }
};

// vectors of workspace of `reduce_to_band`
constexpr int64_t band_work(int64_t m) { return BAND * m; }

// Upper band form of A (m x n, m >= n, both multiples of BAND, column-major in lanes) into vector g of `band`, which is
// zero before. A is destroyed. 4 n^2 (m - n / 3) flops a matrix.
template <class T, int G>
void reduce_to_band(int64_t m, int64_t n, Vec<T> *A, int64_t ld, const Band<T, G> &band, int g, Vec<T> *work) {
    Panel<T> panel;
    panel.V = work;
    for (int64_t k = 0; k < n; k += BAND) {
        const int64_t next = k + BAND;
        Vec<T> *corner = A + k + k * ld;
        for (int64_t i = 0; i < m - k; i++) {
            for (int c = 0; c < BAND; c++) panel.V[i * BAND + c] = corner[i + c * ld];
        }
        factor_panel(m - k, panel);
        for (int c = 0; c < BAND; c++) {
            for (int a = 0; a <= c; a++) band.at(k + a, k + c)[g] = panel.triangle[c][a];
        }
        if (next == n) break;
        apply_panel(panel, m - k, n - next, A + k + next * ld, 1, ld);
        const Vec<T> *right = A + k + next * ld;
        for (int64_t j = 0; j < n - next; j++) {
            for (int c = 0; c < BAND; c++) panel.V[j * BAND + c] = right[c + j * ld];
        }
        factor_panel(n - next, panel);
        for (int c = 0; c < BAND; c++) {
            for (int a = 0; a <= c; a++) band.at(k + c, next + a)[g] = panel.triangle[c][a];
        }
        apply_panel(panel, n - next, m - next, A + next + next * ld, ld, 1);
    }
}

// A reflector of BAND elements in each of G vectors.
template <class T, int G> struct ShortReflector {
    Vec<T> v[BAND][G], inverse[G];

    // maps the elements x[i * along] to (beta, 0), and puts them there
    ESS_INLINE void make(Vec<T> *x, int64_t along) {
        ESS_UNROLL
        for (int g = 0; g < G; g++) {
            Vec<T> square{};
            ESS_UNROLL
            for (int i = 1; i < BAND; i++) {
                v[i][g] = x[i * along + g];
                square += v[i][g] * v[i][g];
                x[i * along + g] = Vec<T>{};
            }
            const Reflector<T> h = reflector<T>(x[g], square);
            v[0][g] = h.head;
            inverse[g] = h.inverse;
            x[g] = h.beta;
        }
    }

    // applied to COUNT lines: element i of line j at x[i * along + j * across]
    template <int COUNT> ESS_INLINE void apply(Vec<T> *x, int64_t along, int64_t across) const {
        ESS_UNROLL
        for (int j = 0; j < COUNT; j++) {
            ESS_UNROLL
            for (int g = 0; g < G; g++) {
                Vec<T> *line = x + j * across + g, old[BAND], sum{};
                ESS_UNROLL
                for (int i = 0; i < BAND; i++) {
                    old[i] = line[i * along];
                    sum += v[i][g] * old[i];
                }
                sum *= inverse[g];
                ESS_UNROLL
                for (int i = 0; i < BAND; i++) line[i * along] = old[i] - sum * v[i][g];
            }
        }
    }
};

// Bidiagonal form of a band: row s is reduced to two elements, and the bulge that this makes is chased to the end; d[k
// * G + g], e[k * G + g]. The next reflector's elements are updated first, so that its square root overlaps with the
// rest. 8 BAND n^2 flops a matrix.
template <class T, int G> void chase_bulges(int64_t n, const Band<T, G> &band, Vec<T> *d, Vec<T> *e) {
    const int64_t right = G, down = (Band<T, G>::ROW - 1) * G;
    ShortReflector<T, G> h;
    for (int64_t s = 0; s + 1 < n; s++) {
        int64_t row = s;
        for (int64_t k = s + 1; k < n; k += BAND) {
            // row `row` in columns k .. k + BAND - 1
            h.make(band.at(row, k), right);
            h.template apply<BAND>(band.at(k, k), right, down);
            if (row != s) h.template apply<BAND - 1>(band.at(row + 1, k), right, down);
            // column k in rows k .. k + BAND - 1
            h.make(band.at(k, k), down);
            h.template apply<BAND>(band.at(k, k + BAND), down, right);
            h.template apply<BAND - 1>(band.at(k, k + 1), down, right);
            row = k;
        }
    }
    for (int64_t k = 0; k < n; k++) {
        for (int g = 0; g < G; g++) {
            d[k * G + g] = band.at(k, k)[g];
            e[k * G + g] = k + 1 < n ? band.at(k, k + 1)[g] : Vec<T>{};
        }
    }
}

} // namespace
} // namespace ess::ESS_LEVEL::spectra
