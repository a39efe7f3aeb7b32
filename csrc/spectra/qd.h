// All singular values of bidiagonal matrices in lanes: differential quotient-difference sweeps with shifts (dqds).
//
// Every lane has a window [lo, hi] of its own; all lanes sweep in lock-step over the union of their windows. What is
// decided for a lane (shifts, splits, deflations) depends on its own numbers only, and each lane makes exactly one
// sweep of its window a turn, so that a matrix's values do not depend on its neighbours.
//
// That holds to the last bit because products and sums are fused by hand: the compiler would not choose alike in the
// copies of the loop.
//
// A sweep also yields p1 = tr M^-1 and p2 = tr M^-2 of the shifted matrix M, hence Laguerre's step, which cannot pass
// the smallest eigenvalue: no sweep has to be undone. e_k is dropped when e_k <= eps/4 lambda and e_k q_{k+1} <= (eps
// lambda)^2: that changes the diagonal of M by e_k and an off-diagonal whose square is e_k q_{k+1}.

#pragma once

#include "spectra/bidiagonal.h"

namespace ess::ESS_LEVEL::spectra {
namespace {

// What a sweep carries from row to row: the pivot d, sums and partial sums of the traces, the last off-diagonal, and
// minima.
template <class T> struct QdSweep {
    Vec<T> d, p1, p2, r, r1, beside, least_pivot, least_coupling;
};

// Row k. With MASKED, lanes that are not `live` keep what they have; q is written where `write`.
template <class T, bool MASKED>
ESS_INLINE void qd_step(QdSweep<T> &s, Vec<T> &q, Vec<T> &e, Vec<T> next_q, Vec<T> shift, Mask<T> live, Mask<T> write) {
    QdSweep<T> n;
    // a pivot is raised before anything is derived from it: still an exact step, of a matrix changed by so little
    const Vec<T> d = larger(all(TINY_SQUARE<T>), s.d), new_q = d + e;
    // a pivot that is NaN makes all that follow it NaN, the last one too: a lane that has one never converges
    n.least_pivot = smaller(s.d, s.least_pivot);
    n.least_coupling = smaller(s.beside * new_q, s.least_coupling);
    const Vec<T> inverse = all(T(1)) / new_q, t = next_q * inverse, new_e = e * t;
    const Vec<T> w = new_e * inverse, ri = s.r * inverse;
    n.p1 = fused(s.r, inverse, s.p1);
    n.p2 = fused(inverse, fused(s.r, ri, s.r1), s.p2);
    n.r1 = w * fused(s.r + s.r, ri, s.r1);
    n.r = fused(s.r, w, all(T(1)));
    n.d = fused(d, t, -shift);
    n.beside = new_e;
    if constexpr (MASKED) {
        q = select(write, new_q, q);
        e = select(live, new_e, e);
        s.d = select(live, n.d, s.d);
        s.p1 = select(live, n.p1, s.p1);
        s.p2 = select(live, n.p2, s.p2);
        s.r = select(live, n.r, s.r);
        s.r1 = select(live, n.r1, s.r1);
        s.beside = select(live, n.beside, s.beside);
        s.least_pivot = select(live, n.least_pivot, s.least_pivot);
        s.least_coupling = select(live, n.least_coupling, s.least_coupling);
    } else {
        q = new_q;
        e = new_e;
        s = n;
    }
}

// The windows of one vector of matrices, and how far they have been shifted. Row k of the vector is at k * G.
template <class T, int G> struct QdLanes {
    static constexpr int N = width<T>;
    static constexpr T EPS = sizeof(T) == 8 ? T(2.220446049250313e-16) : T(1.1920929e-07);

    // numbers of rows, as T: they are compared in lanes; hi < 0 when the lane is done
    Vec<T> lo, hi, total, shift, negative;
    T lowest, highest_start, lowest_end, highest; // of the live lanes' windows
    bool live;

    static T &at(Vec<T> *x, int64_t k, int l) { return reinterpret_cast<T *>(x)[k * G * N + l]; }

    void start(int64_t n) {
        lo = total = shift = negative = Vec<T>{};
        hi = all(T(n - 1));
        find_bounds();
    }

    void find_bounds() {
        const Vec<T> none = all(T(-1)), far = all(T(1e6));
        const Mask<T> done = hi < Vec<T>{};
        highest = horizontal_max(hi);
        live = highest >= 0;
        highest_start = horizontal_max(select(done, none, lo));
        lowest = horizontal_min(select(done, far, lo));
        lowest_end = horizontal_min(select(done, far, hi));
    }

    static bool negligible(T e, T q, T lambda) {
        const T small = EPS * lambda;
        return (e <= small * T(0.25)) & (e * q <= small * small);
    }

    // The value of lane l at row k has been found: writes it and cuts it off.
    static void take(int l, int64_t k, T lambda, Vec<T> *e, Vec<T> *out) {
        at(out, k, l) = lambda <= 4 * TINY_SQUARE<T> ? T(0) : lambda;
        if (k > 0) at(e, k - 1, l) = 0;
    }

    // Deflates lane l, whose window ends at row k now, as often as it goes on; false if it does not.
    bool settle(int l, int64_t k, Vec<T> *q, Vec<T> *e, const Vec<T> *split_totals, Vec<T> *out) {
        int64_t first = static_cast<int64_t>(at(&lo, 0, l));
        T sum = at(&total, 0, l);
        bool more = false;
        for (; k >= 0; k--) {
            if (k < first) {
                // the block is exhausted; the next one has a shift of its own
                more = true;
                sum = reinterpret_cast<const T *>(split_totals)[k * G * N + l];
                first = k;
                while (first > 0 && at(e, first - 1, l) != 0) first--;
            }
            const T lambda = sum + at(q, k, l);
            if (k > first && !negligible(at(e, k - 1, l), at(q, k, l), lambda)) break;
            take(l, k, lambda, e, out);
            more = true;
        }
        if (!more) return k < 0;
        at(&lo, 0, l) = T(first);
        at(&hi, 0, l) = T(k);
        at(&total, 0, l) = sum;
        return true;
    }

    // After a sweep of rows [begin, end]: shifts, splits, and deflations. Lanes whose next shift is 0 get nonzero
    // `again`, those that lost their last value nonzero `deflated`.
    void deflate(int64_t begin, int64_t end, const QdSweep<T> &s, Vec<T> *q, Vec<T> *e, Vec<T> *split_totals,
                 Vec<T> *out, Vec<T> &again, Vec<T> &deflated) {
        const Mask<T> alive = hi >= Vec<T>{};
        total += shift;
        const Vec<T> small = total * EPS, limit = small * small;
        negative = select(alive & (s.least_pivot < Vec<T>{}), all(T(1)), negative);
        bool moved = false;
        again = deflated = Vec<T>{};
        if (any(alive & (s.least_coupling <= limit))) {
            Vec<T> first = lo;
            for (int64_t i = begin; i + 1 < end; i++) {
                const Vec<T> x = e[i * G];
                const Mask<T> split =
                    (x <= small * T(0.25)) & (x * q[(i + 1) * G] <= limit) & (hi > all(T(i + 1))) & (lo <= all(T(i)));
                e[i * G] = select(split, Vec<T>{}, x);
                split_totals[i * G] = select(split, total, split_totals[i * G]);
                first = select(split, all(T(i + 1)), first);
            }
            again = select(first != lo, all(T(1)), Vec<T>{});
            lo = first;
            moved = true;
        }
        const Vec<T> q_last = max(s.d, all(TINY_SQUARE<T>)), lambda = total + q_last, near = lambda * EPS;
        const Mask<T> converged =
            alive & ((hi == lo) | ((s.beside <= near * T(0.25)) & (s.beside * q_last <= near * near)));
        if (uint32_t lanes = lanes_of<T>(converged)) {
            const Vec<T> last = hi;
            deflated = select(converged, all(T(1)), Vec<T>{});
            hi -= deflated;
            for (; lanes != 0; lanes &= lanes - 1) {
                const int l = __builtin_ctz(lanes);
                const int64_t k = static_cast<int64_t>(reinterpret_cast<const T *>(&last)[l]);
                take(l, k, reinterpret_cast<const T *>(&lambda)[l], e, out);
                if (settle(l, k - 1, q, e, split_totals, out)) at(&again, 0, l) = 1;
            }
            moved = true;
        }
        if (moved) find_bounds();
    }

    // The next shift, by Laguerre from p1, p2: sums over rows k < hi. After a deflation these rows are the window that
    // is left; otherwise the term of row hi is added first.
    void choose_shift(const QdSweep<T> &s, Vec<T> again, Vec<T> deflated) {
        const Vec<T> m = hi - lo + T(1), inverse = all(T(1)) / max(s.d, all(TINY_SQUARE<T>)), rl = s.r * inverse;
        const Mask<T> whole = deflated == Vec<T>{};
        const Vec<T> p1 = select(whole, fused(s.r, inverse, s.p1), s.p1);
        const Vec<T> p2 = select(whole, fused(inverse, fused(s.r, rl, s.r1), s.p2), s.p2);
        const Vec<T> mean = m * p2, spread = max(fused(-p1, p1, mean), Vec<T>{});
        // the last term keeps the step safe where all eigenvalues agree
        const Vec<T> step = m / (p1 + sqrt((m - T(1)) * fused(mean, m * (32 * EPS), spread)));
        const Mask<T> use = (step > Vec<T>{}) & (step < all(T(1e30))) & (again == Vec<T>{}) & (hi >= Vec<T>{});
        shift = select(use, step, Vec<T>{});
    }
};

// Squares of the singular values of n x n bidiagonals, G vectors of them interleaved (row k of vector g at k * G + g),
// in about descending order. q, e: squares of the diagonal and of what stands beside it (e[n - 1] is set to 0),
// destroyed; split_totals [n][G]: work. failed[g]: nonzero in lanes that have to be done otherwise. About 2 n^2 steps
// of 20 flops.
template <class T, int G>
void qd_values(int64_t n, Vec<T> *q, Vec<T> *e, Vec<T> *out, Vec<T> *split_totals, Vec<T> *failed) {
    QdLanes<T, G> lanes[G];
    for (int g = 0; g < G; g++) {
        e[(n - 1) * G + g] = Vec<T>{};
        lanes[g].start(n);
        // sweeps want the large end first
        const Mask<T> flip = q[g] * T(1.5) < q[(n - 1) * G + g];
        auto reverse = [=](Vec<T> *x, int64_t length) {
            for (int64_t i = 0; i < length / 2; i++) {
                Vec<T> &a = x[i * G + g], &b = x[(length - 1 - i) * G + g], before = a;
                a = select(flip, b, a);
                b = select(flip, before, b);
            }
        };
        if (any(flip)) {
            reverse(q, n);
            reverse(e, n - 1);
        }
    }
    for (int64_t i = 0; i < n * G; i++) split_totals[i] = Vec<T>{};

    for (int64_t turn = 0; turn < 12 * n + 60; turn++) {
        T bounds[4] = {T(1e6), -1, T(1e6), -1};
        for (int g = 0; g < G; g++) {
            const QdLanes<T, G> &own = lanes[g];
            if (!own.live) continue;
            bounds[0] = own.lowest < bounds[0] ? own.lowest : bounds[0];
            bounds[1] = own.highest_start > bounds[1] ? own.highest_start : bounds[1];
            bounds[2] = own.lowest_end < bounds[2] ? own.lowest_end : bounds[2];
            bounds[3] = own.highest > bounds[3] ? own.highest : bounds[3];
        }
        if (bounds[3] < 0) break;
        const int64_t begin = static_cast<int64_t>(bounds[0]), last_start = static_cast<int64_t>(bounds[1]);
        const int64_t first_end = static_cast<int64_t>(bounds[2]), end = static_cast<int64_t>(bounds[3]);

        QdSweep<T> sweep[G];
        Vec<T> shift[G], lo[G], hi[G];
        for (int g = 0; g < G; g++) {
            shift[g] = lanes[g].shift;
            lo[g] = lanes[g].lo, hi[g] = lanes[g].hi;
            const Vec<T> zero{}, large = all(T(1e30));
            sweep[g] = {q[begin * G + g] - shift[g], zero, zero, all(T(1)), zero, large, zero, large};
        }
        int64_t k = begin;
        if (begin != last_start) {
            for (; k <= last_start && k < end; k++) {
                const Vec<T> row = all(T(k));
                ESS_UNROLL
                for (int g = 0; g < G; g++) {
                    sweep[g].d = select(lo[g] == row, q[k * G + g] - shift[g], sweep[g].d);
                    qd_step<T, true>(sweep[g], q[k * G + g], e[k * G + g], q[(k + 1) * G + g], shift[g],
                                     (lo[g] <= row) & (hi[g] > row), lo[g] <= row);
                }
            }
        }
        for (; k < first_end; k++) {
            ESS_UNROLL
            for (int g = 0; g < G; g++) {
                qd_step<T, false>(sweep[g], q[k * G + g], e[k * G + g], q[(k + 1) * G + g], shift[g], Mask<T>{},
                                  Mask<T>{});
            }
        }
        for (; k < end; k++) {
            const Vec<T> row = all(T(k));
            ESS_UNROLL
            for (int g = 0; g < G; g++) {
                qd_step<T, true>(sweep[g], q[k * G + g], e[k * G + g], q[(k + 1) * G + g], shift[g], hi[g] > row,
                                 ~Mask<T>{});
            }
        }
        Vec<T> again[G], deflated[G];
        for (int g = 0; g < G; g++) {
            q[end * G + g] = max(sweep[g].d, all(TINY_SQUARE<T>));
            lanes[g].deflate(begin, end, sweep[g], q + g, e + g, split_totals + g, out + g, again[g], deflated[g]);
        }
        ESS_UNROLL
        for (int g = 0; g < G; g++) lanes[g].choose_shift(sweep[g], again[g], deflated[g]);
    }
    for (int g = 0; g < G; g++) {
        failed[g] = select(lanes[g].hi >= Vec<T>{}, all(T(1)), lanes[g].negative);
    }
}

} // namespace
} // namespace ess::ESS_LEVEL::spectra
