// A symmetric matrix S brought to tridiagonal form T = H^T S H by Householder reflections, and further rows B, on which
// S acts from the right, turned along: B H. For any shift s, B (s I + S)^-1 B^T = (B H) (s I + T)^-1 (B H)^T.

#pragma once

#include "dense/products.h"

namespace ess::ESS_LEVEL::dense {
namespace {

// squares of numbers below 1 that may be taken for zero
constexpr double NO_SQUARE = 1e-100;

// A reflection that S has not taken in yet: what is meant is S - w v^T - v w^T.
struct Pending {
    double *v, *w;
};

// y = S x from S's lower triangle, of which every entry below the diagonal tiles serves twice; with UPDATE, S first
// takes in two reflections. Flops an entry of the triangle: 4, with UPDATE 12.
template <bool UPDATE> class LowerProduct {
  public:
    LowerProduct(int64_t n, double *S, int64_t lds, const Pending &a, const Pending &b, const double *x, double *y)
        : n_(n), lds_(lds), S_(S), a_(a), b_(b), x_(x), y_(y) {}

    // For the rows and columns from `next` on; v, w and x are zero before it as far as the strip of W rows that `next`
    // is in, of which y receives anything.
    void run(int64_t next) {
        const int64_t begin = next / W * W;
        for (int64_t i = begin; i < n_; i += W) store(y_ + i, V{});
        for (int64_t j = begin; j < n_; j += W) {
            V across[W]; // products of the columns with x, lane by lane
            ESS_UNROLL
            for (int g = 0; g < W; g += COLUMNS) {
                if (j + g + COLUMNS > next) {
                    columns(j, g, across + g);
                } else {
                    ESS_UNROLL
                    for (int q = 0; q < COLUMNS; q++) across[g + q] = V{};
                }
            }
            store(y_ + j, load(y_ + j) + lane_sums(across));
        }
    }

  private:
    // columns that are worked on together: what belongs to them stays in registers
    static constexpr int COLUMNS = ESS_VECTOR_BYTES == 64 ? (UPDATE ? 4 : 8) : 2;

    int64_t n_, lds_;
    double *S_;
    const Pending a_, b_;
    const double *x_;
    double *y_;

    // COLUMNS columns, j + g the first of them, from the diagonal tile (rows j .. j + W) down.
    ESS_INLINE void columns(int64_t j, int g, V *across) {
        V av[COLUMNS], aw[COLUMNS], bv[COLUMNS], bw[COLUMNS], x[COLUMNS], sums[COLUMNS];
        ESS_UNROLL
        for (int q = 0; q < COLUMNS; q++) {
            const int64_t k = j + g + q;
            sums[q] = V{};
            x[q] = all(x_[k]);
            if (UPDATE) {
                av[q] = all(a_.v[k]);
                aw[q] = all(a_.w[k]);
                bv[q] = all(b_.v[k]);
                bw[q] = all(b_.w[k]);
            }
        }
        // vectors may alias anything: what the loop needs must not be read from this object again
        const double *const a_v = a_.v, *const a_w = a_.w, *const b_v = b_.v, *const b_w = b_.w, *const x_all = x_;
        double *const y = y_, *const first = S_ + (j + g) * lds_;
        const int64_t n = n_, lds = lds_;
        for (int64_t i = j; i < n; i += W) {
            V a_v_rows, a_w_rows, b_v_rows, b_w_rows, x_rows = load(x_all + i), sum = load(y + i);
            if (UPDATE) {
                a_v_rows = load(a_v + i);
                a_w_rows = load(a_w + i);
                b_v_rows = load(b_v + i);
                b_w_rows = load(b_w + i);
            }
            // the diagonal tile is stored in full: there every entry serves once
            if (i == j) x_rows = V{};
            ESS_UNROLL
            for (int q = 0; q < COLUMNS; q++) {
                V entry = load(first + q * lds + i);
                if (UPDATE) {
                    entry -= a_w_rows * av[q];
                    entry -= a_v_rows * aw[q];
                    entry -= b_w_rows * bv[q];
                    entry -= b_v_rows * bw[q];
                    store(first + q * lds + i, entry);
                }
                sums[q] += entry * x_rows;
                sum += entry * x[q];
            }
            store(y + i, sum);
        }
        ESS_UNROLL
        for (int q = 0; q < COLUMNS; q++) across[q] = sums[q];
    }
};

// Householder tridiagonalisation of a symmetric n x n matrix, reflections in pairs: while S takes in the two of one
// pair it is multiplied for the next; the second product reads S as it is and accounts for the first reflection by
// itself. That halves the stores, by which passes over S would be bound.
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
        if (FIRST) {
            // columns before `next` are final: the strip that holds them must not change them
            double *vectors[] = {a_.v, a_.w, b_.v, b_.w};
            for (double *vector : vectors) store(vector + first, from_row(load(vector + first), first, next));
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
        LowerProduct<FIRST>(n_, S_, lds_, a_, b_, x_, y_).run(next);
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

// The symmetric n x n matrix S, its lower triangle and all of the W x W tiles on the diagonal, entries at most about 1,
// n a multiple of ROWS.
//
// diagonal[n] and off[n] receive T (off[k] couples k and k + 1, the last is 0). Reflection k is I - factor[k] v v^T
// with v in rows k + 1 .. n of S's column k, zeros above as far as the strip of ROWS rows that k belongs to. `work`: 6
// n doubles. Flops: 4 n^3 / 3.
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
} // namespace ess::ESS_LEVEL::dense
