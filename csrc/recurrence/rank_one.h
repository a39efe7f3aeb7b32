// Parts of a block with transitions diag(d_t) - b_t a_t^T, without a step per token.
//
// Where the state is s, token t looks up z_t = a_t . s_{t-1}, takes b_t z_t away and writes w_t u_t. With P(t, r) for
// d_t ... d_{r+1}, all lookups of a block solve the unit lower triangular system (I + N) z = A s_in + M u with
//
//   N_tr = a_t P(t-1, r) b_r     M_tr = a_t P(t-1, r) w_r   (r < t)     A_t = a_t P(t-1, -1)
//
// What the state at the right edge (B) and the reads (K) make of every update is known from diagonal transitions, and
// one substitution from the right, E (I + N) = [B; K], gives what they make of every lookup:
//
//   X = X_d - E_K A    Phi = Phi_d - E_B A    Y = Y_d - E_K M    Z = Z_d - E_B M    (of diagonal transitions: _d)
//
// Where a token writes what it takes away, w = b, M is N, and E itself is [Z; Y]. The triangle is never inverted:
// where lookups repeat, the powers of N in its inverse cancel to many digits.
//
// The WY form of products of Householder matrices (Bischof and Van Loan), as chunked delta rules use it.

#pragma once

#include "dense/products.h"
#include "recurrence/diagonal.h"

namespace ess::ESS_LEVEL::recurrence {
using namespace dense;
namespace {

// Columns of `E` are tokens. Its rows are n states and the block's rows, reversed, so that a column's zeros are its
// last numbers. `N` and `K` lie as Y does (ess_recurrence.h): N_tj at N[j + (c - 1 - t) * c].
struct RankOneWork {
    int64_t ld;
    double *N, *K, *E, *A, *B, *Phi;

    RankOneWork(Arena &arena, int64_t n, int64_t c)
        : ld(padded_stride(n + c)), N(arena.take<double>(c * c)), K(arena.take<double>(c * c)),
          E(arena.take<double>(ld * c)), A(arena.take<double>(n * c)), B(arena.take<double>(n * c)),
          Phi(arena.take<double>(n)) {}
};

// E <- E (I + N)^-1, from the last token back, ROWS of them at a time: first what later tokens take, as a product, then
// the corner itself. (n + c / 3) c^2 flops.
inline void substitute(int64_t n, int64_t c, const double *N, double *E, int64_t ld) {
    for (int64_t first = c - ROWS; first >= 0; first -= ROWS) {
        const int64_t rows = n + c - first, behind = first + ROWS;
        double *panel = E + first * ld;
        // row i of the block's rows is of token c - 1 - (i - n), and has nothing in the columns of later tokens
        multiply<Right::Transposed, Update::Subtract>(
            rows, ROWS, E + behind * ld, ld, N + first + (c - 1 - behind) * c, -c, panel, ld,
            [=](int64_t i0, int64_t, int64_t, int64_t) { return Range{0, (i0 > n ? c + n - i0 : c) - behind}; });
        double corner[ROWS][ROWS];
        for (int64_t k = 1; k < ROWS; k++) {
            for (int64_t j = 0; j < k; j++) corner[k][j] = N[first + j + (c - 1 - first - k) * c];
        }
        for (int64_t i = 0; i < rows; i += W) {
            V e[ROWS];
            ESS_UNROLL
            for (int j = 0; j < ROWS; j++) e[j] = load(panel + i + j * ld);
            ESS_UNROLL
            for (int j = ROWS - 2; j >= 0; j--) {
                ESS_UNROLL
                for (int k = j + 1; k < ROWS; k++) e[j] -= e[k] * all(corner[k][j]);
            }
            ESS_UNROLL
            for (int j = 0; j < ROWS; j++) store(panel + i + j * ld, e[j]);
        }
    }
}

// What the state at the right edge and the reads make of every update alone: E = [B; K].
inline void fill_answers(const BlockTokens &updates, bool reads_before, const LocalWork &local, RankOneWork &work) {
    const int64_t n = updates.n, c = updates.c, ld = work.ld;
    fill(work.K, 0, c * c);
    local_operator(updates, reads_before, 0, c, work.K, local);
    transpose(c, c, work.K, c, work.E + n, ld);
    for (int64_t t = 0; t < c; t++) {
        double *e = work.E + t * ld;
        for (int64_t i = 0; i < n; i += W) store(e + i, load(work.B + t * n + i));
        if (reads_before) continue;
        V sum{};
        for (int64_t i = 0; i < n; i += W) sum += load(updates.read + t * n + i) * load(updates.write + t * n + i);
        e[n + c - 1 - t] = horizontal_sum(sum);
    }
}

// Y <- Y - E_K M and Z <- Z - E_B M, M lying as N does. (2 n + 2 c / 3) c^2 flops.
inline void subtract_writes(int64_t n, int64_t c, const double *M, const double *E, int64_t ld, const BlockParts &out) {
    const double *last = M + (c - 1) * c; // the first token's; a token later is c numbers before
    multiply<Right::Transposed, Update::Subtract>(
        c, c, last, -c, E + n, ld, out.Y, c,
        [c](int64_t i0, int64_t, int64_t j0, int64_t) { return Range{i0, c - j0}; });
    multiply<Right::Transposed, Update::Subtract>(n, c, E, ld, last, -c, out.Z, n,
                                                  [c](int64_t, int64_t, int64_t j0, int64_t) { return Range{j0, c}; });
}

// Y and Z from E itself: Y lies reversed, and has nothing on T's diagonal.
inline void take_answers(int64_t n, int64_t c, const double *E, int64_t ld, const BlockParts &out) {
    for (int64_t t = 0; t < c; t++) {
        for (int64_t i = 0; i < n; i += W) store(out.Z + t * n + i, load(E + t * ld + i));
    }
    transpose(c, c, E + n, ld, out.Y, c);
    for (int64_t t = 0; t < c; t++) {
        double *row = out.Y + (c - 1 - t) * c;
        for (int64_t j = t; j < c; j++) row[j] = 0;
    }
}

// `writes_back`: whether every token writes what it takes away. `out.Y` is zero before. About 5 n c^2 + 2 n^2 c flops,
// twice the first where tokens write something else.
inline void rank_one_parts(const BlockTokens &tokens, bool reads_before, bool writes_back, const LocalWork &local,
                           RankOneWork &work, const BlockParts &out) {
    const int64_t n = tokens.n, c = tokens.c, ld = work.ld;
    BlockTokens lookups = tokens,
                updates = tokens; // rows that read what is looked up; columns that write what is taken
    lookups.read = tokens.lookup;
    updates.write = lookups.write = tokens.replace;
    fill(work.N, 0, c * c);
    local_operator(lookups, true, 0, c, work.N, local);
    diagonal_parts(lookups, true, work.A, work.B, work.Phi);
    fill_answers(updates, reads_before, local, work);
    substitute(n, c, work.N, work.E, ld);

    diagonal_parts(tokens, reads_before, out.X, out.Z, work.Phi);
    if (writes_back) {
        take_answers(n, c, work.E, ld, out);
    } else {
        lookups.write = tokens.write;
        local_operator(lookups, true, 0, c, work.N, local); // M, where N is no longer needed
        local_operator(tokens, reads_before, 0, c, out.Y, local);
        subtract_writes(n, c, work.N, work.E, ld, out);
    }
    multiply<Right::Transposed, Update::Subtract>(
        n, c, work.A, n, work.E + n, ld, out.X + (c - 1) * n, -n,
        [c](int64_t, int64_t, int64_t j0, int64_t) { return Range{0, c - j0}; });
    fill(out.Phi, 0, n * n);
    for (int64_t i = 0; i < n; i++) out.Phi[i + i * n] = work.Phi[i];
    multiply<Right::Transposed, Update::Subtract>(n, n, work.E, ld, work.A, n, out.Phi, n,
                                                  [c](int64_t, int64_t, int64_t, int64_t) { return Range{0, c}; });
}

// The largest magnitude, and what the 2-norm is in units of it: a square of neither overflows.
struct ScaledNorm {
    double peak, norm;

    ScaledNorm(const double *x, int64_t n) {
        V largest{}, sum{};
        for (int64_t i = 0; i < n; i += W) largest = max(largest, abs(load(x + i)));
        peak = horizontal_max(largest);
        const V inverse = all(peak == 0 ? 0.0 : 1 / peak);
        for (int64_t i = 0; i < n; i += W) sum += (load(x + i) * inverse) * (load(x + i) * inverse);
        norm = std::sqrt(horizontal_sum(sum));
    }
};

// How much each token of the block does at most, four numbers a token: the norms of its read and write, a bound of the
// 2-norm of its transition A = diag(d) - b a^T, and one of the terms of which that is made, (max |d| + |a| |b|)
// (1 + |a| |b|). A^T A = D^2 + v a^T + a v^T with v = |b|^2 a / 2 - D b, of which the last two have the eigenvalue
// a.v + |a| |v|. With a and b in units of their largest entries no square overflows. The factors of padded coordinates,
// from `states` on, are one, and no part of it.
inline void token_sizes(const BlockTokens &tokens, int64_t states, double *sizes) {
    const int64_t n = tokens.n;
    for (int64_t t = 0; t < tokens.c; t++, sizes += 4) {
        const double *d = tokens.factor + t * n, *a = tokens.lookup + t * n, *b = tokens.replace + t * n;
        const ScaledNorm lookup(a, n), update(b, n);
        const double product = lookup.peak * update.peak;
        const V a_unit = all(lookup.peak == 0 ? 0.0 : 1 / lookup.peak);
        const V b_unit = all(update.peak == 0 ? 0.0 : 1 / update.peak);
        const V half = all(product * update.norm * update.norm / 2);
        V largest{}, along{}, square{};
        for (int64_t i = 0; i < n; i += W) {
            const V decay = load(d + i), x = load(a + i) * a_unit, v = half * x - decay * (load(b + i) * b_unit);
            if (i + W <= states) largest = max(largest, abs(decay));
            along += x * v;
            square += v * v;
        }
        double decay = horizontal_max(largest);
        for (int64_t i = states / W * W; i < states; i++) decay = max(decay, std::abs(d[i]));
        const double terms = product * (lookup.norm * update.norm);
        const double more = product * (horizontal_sum(along) + lookup.norm * std::sqrt(horizontal_sum(square)));
        sizes[0] = std::sqrt(sum_of_squares(tokens.read + t * n, n, n, 1));
        sizes[1] = std::sqrt(sum_of_squares(tokens.write + t * n, n, n, 1));
        sizes[2] = std::sqrt(decay * decay + larger(more, 0.0));
        sizes[3] = (decay + terms) * (1 + terms);
    }
}

} // namespace
} // namespace ess::ESS_LEVEL::recurrence
