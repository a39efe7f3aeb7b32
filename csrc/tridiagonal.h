// A symmetric matrix S brought to tridiagonal form T = H^T S H by Householder reflections, and further rows B, on which S
// acts from the right, turned along: B H. For any shift s, B (s I + S)^-1 B^T = (B H) (s I + T)^-1 (B H)^T.

#pragma once

#include "products.h"

namespace ess {
namespace ESS_LEVEL {
namespace {

// squares of numbers below 1 that may be taken for zero
constexpr double NO_SQUARE = 1e-100;

// vectors of rows that stay in registers together with what is subtracted from them and what is added up
constexpr int64_t UPDATE_VECTORS = ESS_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int64_t PRODUCT_VECTORS = ESS_VECTOR_BYTES == 64 ? 8 : 4;

// A reflection that S has not taken in yet: what is meant is S - w v^T - v w^T.
struct Pending {
    double *v, *w;
};

// Takes in two reflections and multiplies by x, in one pass over VECTORS vectors of rows and the columns begin .. end:
// S -= w v^T + v w^T for both, y = S x. 10 flops an entry.
template <int VECTORS>
ESS_INLINE void update_and_multiply(double *S, int64_t lds, int64_t row, int64_t begin, int64_t end, const Pending &a,
                                    const Pending &b, const double *x, double *y) {
    V av[VECTORS], aw[VECTORS], bv[VECTORS], bw[VECTORS], sum[VECTORS];
    ESS_UNROLL
    for (int i = 0; i < VECTORS; i++) {
        av[i] = load(a.v + row + i * W);
        aw[i] = load(a.w + row + i * W);
        bv[i] = load(b.v + row + i * W);
        bw[i] = load(b.w + row + i * W);
        sum[i] = V{};
    }
    for (int64_t j = begin; j < end; j++) {
        double *column = S + row + j * lds;
        const V avj = all(a.v[j]), awj = all(a.w[j]), bvj = all(b.v[j]), bwj = all(b.w[j]), xj = all(x[j]);
        ESS_UNROLL
        for (int i = 0; i < VECTORS; i++) {
            V entry = load(column + i * W) - aw[i] * avj - av[i] * awj - bw[i] * bvj - bv[i] * bwj;
            store(column + i * W, entry);
            sum[i] += entry * xj;
        }
    }
    ESS_UNROLL
    for (int i = 0; i < VECTORS; i++) store(y + row + i * W, sum[i]);
}

// y = S x on VECTORS vectors of rows; two sums a row hide the latency where there are few.
template <int VECTORS>
ESS_INLINE void multiply_columns(const double *S, int64_t lds, int64_t row, int64_t begin, int64_t end, const double *x,
                                 double *y) {
    V even[VECTORS], odd[VECTORS];
    ESS_UNROLL
    for (int i = 0; i < VECTORS; i++) even[i] = odd[i] = V{};
    const double *column = S + row + begin * lds;
    int64_t j = begin;
    for (; j + 1 < end; j += 2) {
        const V x0 = all(x[j]), x1 = all(x[j + 1]);
        ESS_UNROLL
        for (int i = 0; i < VECTORS; i++) {
            even[i] += load(column + i * W) * x0;
            odd[i] += load(column + lds + i * W) * x1;
        }
        column += 2 * lds;
    }
    if (j < end) {
        const V x0 = all(x[j]);
        ESS_UNROLL
        for (int i = 0; i < VECTORS; i++) even[i] += load(column + i * W) * x0;
    }
    ESS_UNROLL
    for (int i = 0; i < VECTORS; i++) store(y + row + i * W, even[i] + odd[i]);
}

template <int VECTORS>
void update_strip(int64_t vectors, double *S, int64_t lds, int64_t row, int64_t begin, int64_t end, const Pending &a,
                  const Pending &b, const double *x, double *y) {
    if (vectors == VECTORS) update_and_multiply<VECTORS>(S, lds, row, begin, end, a, b, x, y);
    else if constexpr (VECTORS > 1) update_strip<VECTORS - 1>(vectors, S, lds, row, begin, end, a, b, x, y);
}

template <int VECTORS>
void multiply_strip(int64_t vectors, const double *S, int64_t lds, int64_t row, int64_t begin, int64_t end,
                    const double *x, double *y) {
    if (vectors == VECTORS) multiply_columns<VECTORS>(S, lds, row, begin, end, x, y);
    else if constexpr (VECTORS > 1) multiply_strip<VECTORS - 1>(vectors, S, lds, row, begin, end, x, y);
}

// Calls strip(vectors, row) for the rows begin .. n, at most `most` vectors of them at a time.
template <class Strip> ESS_INLINE void for_strips(int64_t begin, int64_t n, int64_t most, Strip strip) {
    for (int64_t row = begin; row < n;) {
        const int64_t left = (n - row) / W, vectors = left < most ? left : most;
        strip(vectors, row);
        row += vectors * W;
    }
}

// Householder tridiagonalisation of a symmetric n x n matrix, reflections in pairs: while S takes in the two of one pair
// it is multiplied for the next; the second product reads S as it is and accounts for the first reflection by itself. A
// pass that also writes S would be bound by its stores.
class Tridiagonalisation {
  public:
    // `work`: 6 n doubles
    Tridiagonalisation(int64_t n, double *S, int64_t lds, double *diagonal, double *off, double *factor, double *work)
        : n_(n), lds_(lds), S_(S), diagonal_(diagonal), off_(off), factor_(factor), x_(work), y_(work + n) {
        a_.v = work + 2 * n;
        a_.w = work + 3 * n;
        b_.v = work + 4 * n;
        b_.w = work + 5 * n;
        for (int64_t i = 0; i < 6 * n; i++) work[i] = 0;
    }

    void run() {
        for (int64_t k = 0; k < n_; k += 2) {
            step<true>(k);
            step<false>(k + 1);
        }
    }

  private:
    int64_t n_, lds_;
    double *S_, *diagonal_, *off_, *factor_, *x_, *y_;
    Pending a_, b_; // the first and the second of a pair

    // Column k is reflected. If FIRST, S still lacks both reflections of the pair before, else the first of this one.
    template <bool FIRST> ESS_INLINE void step(int64_t k) {
        double *column = S_ + k * lds_;
        const int64_t first = k / W * W, next = k + 1, strip = next / W * W;
        // the column as it is after all reflections so far
        V squares{}, v_dot{}, w_dot{};
        const V avk = all(a_.v[k]), awk = all(a_.w[k]), bvk = all(b_.v[k]), bwk = all(b_.w[k]);
        for (int64_t i = first; i < n_; i += W) {
            V av = load(a_.v + i), aw = load(a_.w + i), entry = load(column + i) - aw * avk - av * awk;
            if (FIRST) entry -= load(b_.w + i) * bvk + load(b_.v + i) * bwk;
            store(column + i, entry);
            V below = from_row(entry, i, next), rest = from_row(entry, i, next + 1);
            store(x_ + i, below);
            squares += rest * rest;
            if (!FIRST) {
                v_dot += av * below;
                w_dot += aw * below;
            }
        }
        diagonal_[k] = column[k];
        factor_[k] = off_[k] = 0;
        for (int64_t i = k / ROWS * ROWS; i < first; i += W) store(column + i, V{});
        if (next == n_) {
            for (int64_t i = first; i < n_; i += W) store(column + i, V{});
            return;
        }
        const double rest = horizontal_sum(squares), head = x_[next];
        double image = head, h = 0;
        if (rest > NO_SQUARE) {
            const double norm = std::sqrt(head * head + rest);
            image = head > 0 ? -norm : norm;
            h = 1 / (image * (image - head));
        }
        off_[k] = image;
        factor_[k] = h;
        // S times the column does not wait for the norm; S times the reflector x - image e follows from it
        if (FIRST) {
            for_strips(strip, n_, UPDATE_VECTORS, [&](int64_t vectors, int64_t row) {
                update_strip<UPDATE_VECTORS>(vectors, S_, lds_, row, next, n_, a_, b_, x_, y_);
            });
        } else {
            for_strips(strip, n_, PRODUCT_VECTORS, [&](int64_t vectors, int64_t row) {
                multiply_strip<PRODUCT_VECTORS>(vectors, S_, lds_, row, next, n_, x_, y_);
            });
        }
        Pending &mine = FIRST ? a_ : b_;
        const double *beside = S_ + next * lds_;
        // what the first reflection does to S x and to S e
        const V minus = all(image), zero = all(h == 0 ? 0.0 : 1.0);
        V v_times{}, w_times{};
        if (!FIRST) {
            v_times = all(horizontal_sum(v_dot) - image * a_.v[next]);
            w_times = all(horizontal_sum(w_dot) - image * a_.w[next]);
        }
        V product{};
        for (int64_t i = first; i < strip; i += W) store(column + i, V{});
        for (int64_t i = strip; i < n_; i += W) {
            V reflector = (load(x_ + i) - (from_row(minus, i, next) - from_row(minus, i, next + 1))) * zero;
            V image_rows = load(y_ + i) - load(beside + i) * minus;
            if (!FIRST) image_rows -= load(a_.w + i) * v_times + load(a_.v + i) * w_times;
            store(mine.v + i, reflector);
            store(column + i, reflector);
            store(y_ + i, image_rows);
            product += reflector * image_rows;
        }
        const V share = all(0.5 * h * h * horizontal_sum(product)), hh = all(h);
        for (int64_t i = strip; i < n_; i += W) {
            store(mine.w + i, from_row(load(y_ + i) * hh - load(mine.v + i) * share, i, next));
        }
    }
};

// The symmetric n x n matrix S, all of it stored, entries at most about 1, n a multiple of ROWS.
//
// diagonal[n] and off[n] receive T (off[k] couples k and k + 1, the last is 0). Reflection k is I - factor[k] v v^T with
// v in rows k + 1 .. n of S's column k, zeros above as far as the strip of ROWS rows that k belongs to. `work`: 6 n
// doubles. Flops: 2 n^3.
inline void tridiagonalise(int64_t n, double *S, int64_t lds, double *diagonal, double *off, double *factor,
                           double *work) {
    Tridiagonalisation(n, S, lds, diagonal, off, factor, work).run();
}

// Turns B's rows by the reflections of `tridiagonalise`, ROWS of them at a time: with V the reflectors of one panel,
// H_0 H_1 ... = I - V U V^T, U upper triangular, B -= (B V U) V^T. `work`: ROWS padded_stride(rows) doubles. Flops:
// 2 rows n^2.
inline void turn(int64_t n, const double *S, int64_t lds, const double *factor, int64_t rows, double *B, int64_t ldb,
          double *work) {
    constexpr int P = static_cast<int>(ROWS);
    const int64_t ldw = padded_stride(rows);
    for (int64_t k0 = 0; k0 < n; k0 += P) {
        const double *reflectors = S + k0 + k0 * lds, *h = factor + k0;
        const int64_t depth = n - k0;
        multiply<Right::Plain, Update::Set>(rows, P, B + k0 * ldb, ldb, reflectors, lds, work, ldw,
                                            [=](int64_t, int64_t, int64_t, int64_t) { return Range{0, depth}; });
        // products of the reflectors with each other, the one of i and j, i < j, at j (j - 1) / 2 + i
        constexpr int PAIRS = P * (P - 1) / 2, PADDED = (PAIRS + W - 1) / W * W;
        V sums[PADDED];
        ESS_UNROLL
        for (int i = 0; i < PADDED / W; i++) {
            ESS_UNROLL
            for (int l = 0; l < W; l++) sums[i * W + l] = V{};
        }
        for (int64_t row = 0; row < depth; row += W) {
            V r[P];
            ESS_UNROLL
            for (int j = 0; j < P; j++) r[j] = load(reflectors + row + j * lds);
            ESS_UNROLL
            for (int j = 1; j < P; j++) {
                ESS_UNROLL
                for (int i = 0; i < j; i++) sums[j * (j - 1) / 2 + i] += r[j] * r[i];
            }
        }
        double gram[PADDED];
        ESS_UNROLL
        for (int i = 0; i < PADDED; i += W) store(gram + i, lane_sums(sums + i));
        // column j of B V U is h_j (B v_j - sum over i < j of column i times v_i . v_j)
        for (int64_t row = 0; row < rows; row += W) {
            V column[P];
            ESS_UNROLL
            for (int j = 0; j < P; j++) {
                V sum = load(work + row + j * ldw);
                ESS_UNROLL
                for (int i = 0; i < j; i++) sum -= column[i] * all(gram[j * (j - 1) / 2 + i]);
                column[j] = sum * all(h[j]);
                store(work + row + j * ldw, column[j]);
            }
        }
        multiply<Right::Transposed, Update::Subtract>(rows, depth, work, ldw, reflectors, lds, B + k0 * ldb, ldb,
                                                      [=](int64_t, int64_t, int64_t, int64_t) { return Range{0, P}; });
    }
}

} // namespace
} // namespace ESS_LEVEL
} // namespace ess
