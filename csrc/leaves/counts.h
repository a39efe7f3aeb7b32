// Counts at the positions of leaves (leaves/leaf.h): positive pivots of factors that are updated from position to
// position, and made anew where updates would spoil them.

#pragma once

#include "leaves/leaf.h"
#include "leaves/update_errors.h"

namespace ess::ESS_LEVEL::leaves {
namespace {

// vectors of work that the columns of c positions need, and a leaf of c positions
constexpr int64_t columns_work(int64_t c) { return (4 + CHAIN + c) * c; }
constexpr int64_t leaf_work(int64_t c) { return columns_work(c) + 2 * c; }
// errors that are no more than this times what the matrix brings along are not worth new factors
constexpr double USUAL = 3;

// What is known of W positions: `positive` pivots, the largest update of a diagonal entry that they depend on, and the
// smallest of the rows' largest entries (1 where no pivot is small): a row that is negligible as a whole is a tie.
struct LeafVerdict {
    V positive, growth, least;
};

ESS_INLINE LeafVerdict select_verdict(Mask<double> lanes, const LeafVerdict &yes, const LeafVerdict &no) {
    return {select(lanes, yes.positive, no.positive), select(lanes, yes.growth, no.growth),
            select(lanes, yes.least, no.least)};
}

// Arrays for verdicts, a vector a position.
struct LeafVerdicts {
    V *counts, *growths, *leasts;

    ESS_INLINE void operator()(int s, const LeafVerdict &verdict) const {
        counts[s] = verdict.positive;
        growths[s] = verdict.growth;
        leasts[s] = verdict.least;
    }
};

// The columns of c positions, whose rows are eliminated: from the last position to the first.
//
// SIZE is c where that is known beforehand, or else 0. `Rows` knows the c eliminated rows, the last token's first:
// pivot(r); entries(r), their c - 1 - r entries at columns; growth(r), the largest update of the pivot; least(s), the
// smallest of the largest entries of the rows of position s; columns(target), which fills in C as it is without any
// row. `put(s, verdict)` takes what is found. C is overwritten, `work` has columns_work(c) vectors, `before` is what is
// known already.
template <int SIZE, class Rows, class Put> class LeafColumns {
  public:
    ESS_INLINE LeafColumns(int c, V *C, V *work, const LeafVerdict &before, const Rows &rows, const Put &put)
        : any_c_(c), factors_(c, C, work), fresh_(c, work + 4 * c, work + 2 * c), w_(work + (4 + c) * c), rows_(rows),
          put_(put), before_(before), so_far_(before), errors_(harmless(c, C, before.growth)) {}

    ESS_INLINE void run() {
        errors_.restart(~Mask<double>{}, factor_columns(c_(), c_() - 1, factors_.C, factors_.d, factors_.largest));
        for (int last = c_() - 1; last >= 0; last -= CHAIN) chain(last);
    }

  private:
    ESS_INLINE int c_() const { return SIZE ? SIZE : any_c_; }

    static V harmless(int c, const V *C, V growth) {
        for (int j = 1; j < c - 1; j++) growth = max(growth, abs(C[j * c + j]));
        return max(all(HARMLESS), USUAL * growth);
    }

    // Position s has one row more than the one behind it.
    ESS_INLINE void add_row(int s) {
        const int r = c_() - 1 - s;
        const V pivot = rows_.pivot(r);
        so_far_.positive += select(pivot > V{}, all(1.0), V{});
        // A pivot that is NaN or infinite makes the growth NaN, even if no position uses the row further.
        so_far_.growth = max(so_far_.growth, rows_.growth(r) + pivot * 0.0);
        small_ |= any(abs(pivot) < all(SMALL_PIVOT));
        if (small_) so_far_.least = min(before_.least, rows_.least(s));
    }

    // Positions last, last - 1, ... in one pass over the columns.
    ESS_INLINE void chain(int last) {
        Chain chain;
        LeafVerdict rows[CHAIN], position[CHAIN];
        errors_.begin();
        // a position reads the columns before it only
        for (int u = 0; u < CHAIN; u++) {
            const int s = last - u, r = c_() - 1 - s;
            if (s >= 0) add_row(s);
            rows[u] = position[u] = so_far_;
            chain.alpha[u] = s >= 0 ? -1.0 / rows_.pivot(r) : V{};
            V largest = V{};
            for (int j = 0; j < last; j++) {
                const V entry = j < s ? rows_.entries(r)[j] : V{};
                w_[u * c_() + j] = entry;
                if (j > 0) largest = larger_magnitude(largest, entry);
            }
            largest_w_[u] = largest;
            errors_.include(u, abs(chain.alpha[u]) * largest * largest);
        }
        for (int j = 0; j < last; j++) column(chain, last, j, position);
        V growth = V{};
        Mask<double> spoilt{};
        for (int u = 0; u < CHAIN && u <= last; u++) {
            position[u].growth = max(position[u].growth, errors_.after(u));
            spoilt = errors_.harmful();
            if (any(spoilt)) growth = renew(last - u, rows[u], spoilt, position[u]);
            put_(last - u, position[u]);
        }
        if (last >= CHAIN && any(spoilt)) take_fresh(last + 1 - CHAIN, spoilt, growth);
    }

    // Column j takes the terms of the positions from `last` on.
    ESS_INLINE void column(Chain &chain, int last, int j, LeafVerdict *position) {
        V after[CHAIN], *const Cj = factors_.C + j * c_();
        chain.pivots(factors_.d[j], w_, c_(), j, after, true);
        ESS_UNROLL
        for (int u = 0; u < CHAIN; u++) {
            if (j >= last - u) continue;
            const V update = abs(chain.t[u] * chain.p[u]);
            errors_.include(u, j == 0 ? first(update, after[u]) : max(update, abs(after[u])));
            position[u].positive += select(after[u] > V{}, all(1.0), V{});
            auto near = abs(after[u]) < all(SMALL_PIVOT);
            if (any(near)) {
                const V row = max(all(1.0), chain.largest(Cj, w_, c_(), j, last - u, u)) * abs(after[u]);
                position[u].least = select(near, min(position[u].least, row), position[u].least);
            }
        }
        V l[CHAIN], w[CHAIN], l_before = factors_.largest[j];
        chain.column(Cj, w_, c_(), j, last, l, w);
        ESS_UNROLL
        for (int u = 0; u < CHAIN; u++) {
            const V t = abs(chain.t[u]), both = t * w[u] + abs(after[u]) * l[u];
            errors_.include(u, larger(t * l_before * largest_w_[u], both * l[u] + abs(chain.alpha[u]) * w[u] * w[u]));
            l_before = l[u];
            largest_w_[u] = w[u];
        }
        factors_.d[j] = after[CHAIN - 1];
        factors_.largest[j] = l_before;
    }

    // The growth of the first column's pivot, which becomes `after`.
    ESS_INLINE V first(V update, V after) {
        largest_first_ = max(largest_first_, max(abs(update), abs(after)));
        return growth_of_first(after, largest_first_);
    }

    // Position s by factors of its own, where updates have spoilt the others: `verdict` of these lanes. `rows` is what
    // is known of its rows. Returns the growth of the factors, which are in `fresh_`.
    V renew(int s, const LeafVerdict &rows, Mask<double> spoilt, LeafVerdict &verdict) {
        const V growth = make_fresh(s, false);
        LeafVerdict own = judged(s, rows, growth);
        const Mask<double> bad = spoilt & (growth > errors_.harmless());
        if (any(bad)) {
            // factors in the reverse order of columns may grow less
            const V other = make_fresh(s, true);
            own = select_verdict(bad & (other < growth), judged(s, rows, other), own);
            make_fresh(s, false);
        }
        verdict = select_verdict(spoilt, own, verdict);
        return growth;
    }

    // The factors of position s, of its columns in reverse order if asked for, and how they have grown. Which lanes
    // need them decides how often they are made: their roundings must not depend on it.
    ESS_ONE_COPY V make_fresh(int s, bool reversed) {
        V *C = fresh_.C, growth = V{}, first = V{};
        rows_.columns(C);
        for (int r = 0; r < c_() - s; r++) {
            const V inverse = 1.0 / rows_.pivot(r), *w = rows_.entries(r);
            for (int j = 0; j < s; j++) {
                const V l = w[j] * inverse;
                V &largest = j == 0 ? first : growth;
                largest = max(largest, abs(l * w[j]));
                for (int i = j; i < s; i++) C[j * c_() + i] -= w[i] * l;
            }
        }
        for (int j = 0; reversed && j < s; j++) {
            for (int i = j; i < s - 1 - j; i++) {
                V &one = C[j * c_() + i], &other = C[(s - 1 - i) * c_() + s - 1 - j], kept = one;
                one = other;
                other = kept;
            }
        }
        // In reverse order column 0 is not the first pivot, so its updates count in full.
        if (s > 0) growth = max(growth, reversed ? first : growth_of_first(C[0], first));
        growth = max(growth, factor_columns(c_(), s, C, fresh_.d, fresh_.largest));
        fresh_first_ = s > 0 ? max(first, abs(fresh_.d[0])) : V{};
        return growth;
    }

    // What the fresh factors say of position s.
    LeafVerdict judged(int s, LeafVerdict verdict, V growth) const {
        verdict.growth = max(verdict.growth, growth);
        for (int j = 0; j < s; j++) {
            const V size = abs(fresh_.d[j]);
            auto near = size < all(SMALL_PIVOT);
            verdict.positive += select(fresh_.d[j] > V{}, all(1.0), V{});
            if (!any(near)) continue;
            V row = all(1.0);
            for (int i = j + 1; i < s; i++) row = max(row, abs(fresh_.C[j * c_() + i]));
            verdict.least = select(near, min(verdict.least, row * size), verdict.least);
        }
        return verdict;
    }

    // In these lanes the next positions start from the fresh factors of position s.
    void take_fresh(int s, Mask<double> lanes, V growth) {
        for (int j = 0; j < s; j++) {
            for (int i = j + 1; i < s; i++) {
                V &entry = factors_.C[j * c_() + i];
                entry = select(lanes, fresh_.C[j * c_() + i], entry);
            }
            factors_.d[j] = select(lanes, fresh_.d[j], factors_.d[j]);
            factors_.largest[j] = select(lanes, fresh_.largest[j], factors_.largest[j]);
        }
        largest_first_ = select(lanes, fresh_first_, largest_first_);
        errors_.restart(lanes, growth);
    }

    // L D L^T of columns: unit lower L in C, the largest entry of each of its columns, the pivots.
    struct Factors {
        V *C, *d, *largest;
        ESS_INLINE Factors(int c, V *C, V *work) : C(C), d(work), largest(work + c) {}
    };

    const int any_c_;
    const Factors factors_, fresh_; // updated from position to position, and made for one
    V *const w_;
    V largest_w_[CHAIN]; // of each term's entries
    const Rows &rows_;
    const Put &put_;
    const LeafVerdict before_;
    LeafVerdict so_far_; // with the rows that have been added
    bool small_ = false; // whether any of their pivots is
    V largest_first_{};  // of what the first column's pivot has been and was changed by
    V fresh_first_{};    // the same of the fresh factors
    UpdateErrors<CHAIN> errors_;
};

// The rows of a leaf.
template <class Fill> struct LeafRows {
    int c;
    const V *R, *K, *d, *largest_update;
    const Fill &fill_columns;

    ESS_INLINE V pivot(int r) const { return d[r]; }
    ESS_INLINE const V *entries(int r) const { return K + r * c; }
    ESS_INLINE V growth(int r) const { return largest_update[r]; }
    void columns(V *target) const { fill_columns(target); }

    V least(int s) const {
        V least = all(1.0);
        for (int r = 0; r <= c - 1 - s; r++) {
            V most = abs(d[r]);
            auto small = most < all(SMALL_PIVOT); // of this lane: what a lane answers depends on no other
            if (!any(small)) continue;
            for (int i = r + 1; i <= c - 1 - s; i++) most = max(most, abs(R[r * c + i]));
            for (int j = 0; j < s; j++) most = max(most, abs(K[r * c + j]));
            least = select(small, min(least, most), least);
        }
        return least;
    }
};

// Positive pivots at all positions; on entry R = -I + ..., C = -I + ....
//
// `growth` and `least` are what the eliminations before brought, what they counted is not known here.
// `fill_columns(target)` makes C once more. `work` has leaf_work(c) vectors.
template <class Fill>
inline void leaf_counts(int c, V *R, V *K, V *C, V *work, V growth, V least, const Fill &fill_columns,
                        const LeafVerdicts &verdicts) {
    V *d = work + columns_work(c), *row_growth = d + c;
    factor_rows(c, R, K, d, row_growth);
    const LeafRows<Fill> rows = {c, R, K, d, row_growth, fill_columns};
    LeafColumns<0, LeafRows<Fill>, LeafVerdicts>(c, C, work, {V{}, growth, least}, rows, verdicts).run();
}

} // namespace
} // namespace ess::ESS_LEVEL::leaves
