// Parts of a block whose transitions are matrices, token by token.

#pragma once

#include "dense/products.h"
#include "recurrence/tokens.h"

namespace ess::ESS_LEVEL::recurrence {
using namespace dense;
namespace {

// X, Y, Z and Phi of dense transitions: rows of `states` (transposed: [n + written tokens] rows, n columns,
// column-major) are the states had the block begun with each unit vector, or had one token been written.
// 2 n^2 (n + c / 2) flops a token.
struct DenseStates {
    int64_t stride;
    double *now, *next, *transition, *seen;

    DenseStates(Arena &arena, int64_t n, int64_t c)
        : stride(padded_stride(n + c)), now(arena.take<double>(stride * n)), next(arena.take<double>(stride * n)),
          transition(arena.take<double>(n * n)), seen(arena.take<double>(stride)) {}
};

// Of a contiguous matrix of `count` numbers.
inline double frobenius_norm(const double *A, int64_t count) {
    V sum = V{};
    int64_t i = 0;
    for (; i + W <= count; i += W) sum += load(A + i) * load(A + i);
    double rest = horizontal_sum(sum);
    for (; i < count; i++) rest += A[i] * A[i];
    return std::sqrt(rest);
}

// Returns the largest Frobenius norm of the transitions.
inline double dense_parts(const BlockTokens &tokens, bool reads_before, const double *transition, int64_t stride,
                          bool columns, int64_t states, int64_t present, DenseStates &work, double *X, double *Y,
                          double *Z, double *Phi) {
    double largest = 0;
    const int64_t n = tokens.n, c = tokens.c, ld = work.stride;
    fill(work.now, 0, ld * n);
    for (int64_t i = 0; i < n; i++) work.now[i + i * ld] = 1;
    for (int64_t t = 0; t < c; t++) {
        const int64_t rows = padded(n + t);
        auto step = [&] {
            // states^T A^T; a zero token's transition is the identity, as it is in padded coordinates
            if (t >= present) return;
            const double *A = transition + t * stride;
            const double norm = t == 0 || stride != 0 ? frobenius_norm(A, states * states) : largest;
            largest = max(largest, norm); // NaN once any norm is
            if (states != n) {
                for (int64_t i = 0; i < n; i++) fill(work.transition + i * n, 0, n);
                for (int64_t i = 0; i < n; i++) {
                    if (i >= states) work.transition[i + i * n] = 1;
                    else copy_scaled(A + i * states, states, 1.0, work.transition + i * n, n);
                }
                A = work.transition;
            }
            auto all_states = [n](int64_t, int64_t, int64_t, int64_t) { return Range{0, n}; };
            if (columns) {
                multiply<Right::Transposed, Update::Set>(rows, n, work.now, ld, A, n, work.next, ld, all_states);
            } else {
                multiply<Right::Plain, Update::Set>(rows, n, work.now, ld, A, n, work.next, ld, all_states);
            }
            double *other = work.now;
            work.now = work.next;
            work.next = other;
        };
        auto look = [&] {
            const double *read = tokens.read + t * n;
            fill(work.seen, 0, rows);
            for (int64_t k = 0; k < n; k++) {
                V q = all(read[k]);
                for (int64_t i = 0; i < rows; i += W) {
                    store(work.seen + i, load(work.seen + i) + load(work.now + i + k * ld) * q);
                }
            }
            for (int64_t i = 0; i < n; i++) X[i + t * n] = work.seen[i];
            for (int64_t j = 0; j < t; j++) Y[j + (c - 1 - t) * c] = work.seen[n + j];
        };
        if (reads_before) look();
        step();
        if (!reads_before) look();
        // the token's own write becomes one more row; rows beyond it are zero up to the padding
        for (int64_t k = 0; k < n; k++) {
            double *column = work.now + k * ld;
            column[n + t] = tokens.write[k + t * n];
            for (int64_t i = n + t + 1; i < padded(n + t + 1); i++) column[i] = 0;
        }
    }
    for (int64_t k = 0; k < n; k++) {
        for (int64_t i = 0; i < n; i++) Phi[k + i * n] = work.now[i + k * ld];
        for (int64_t j = 0; j < c; j++) Z[k + j * n] = work.now[n + j + k * ld];
    }
    return largest;
}

} // namespace
} // namespace ess::ESS_LEVEL::recurrence
