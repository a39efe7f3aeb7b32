// Which counts and entropies can be believed: one look at what the eliminations have left.

#pragma once

#include "base/threads.h"
#include "include/ess_certainty.h"
#include "leaves/entropy_sums.h"

namespace ess::ESS_LEVEL::leaves {
namespace {
// Start one more thread for every so many numbers.
constexpr int64_t WORTH_A_THREAD = 1 << 15;

// above every count
constexpr double NO_COUNT = 1e15;

inline int32_t threads_for(int64_t numbers, int32_t threads) {
    const int64_t worth = numbers / WORTH_A_THREAD + 1;
    return worth < threads ? static_cast<int32_t>(worth) : threads;
}

// The blur of a position; `row` counts tolerances of heads.
inline double blur_at(const ess_blur &blur, int64_t row, int64_t length, int64_t position) {
    if (blur.width == nullptr) return 0;
    return blur.width[row * ((length + blur.span - 1) / blur.span) + position / blur.span];
}

// The relative width behind a growth; a growth that is not a number is no answer.
ESS_INLINE double width_of(double growth, double eps) {
    const double width = growth * eps;
    return width != width ? HUGE_VAL : width > __DBL_MAX__ ? __DBL_MAX__ : width;
}

// Calls body(head, tolerance) for all of them.
template <class Job, class Body> void by_rows(const Job &job, int32_t threads, Body body) {
    const int64_t rows = job.heads * job.tolerances;
    TaskCounter tasks(rows);
    team(threads_for(rows * job.length, threads), [&](int32_t) {
        for (int64_t row; (row = tasks.take()) >= 0;) body(row / job.tolerances, row % job.tolerances);
    });
}

// One head at one tolerance; returns how many positions are doubtful.
inline int64_t judge_row(const ess_judge_counts_job job, int64_t head, int64_t tolerance) {
    const int64_t row = head * job.tolerances + tolerance, count = job.length - 1;
    const int64_t from = row * job.length + 1, to = (tolerance * job.heads + head) * count;
    const double *value = job.value + from, *growth = job.growth + from, *least = job.least + from;
    const uint8_t *asked = job.asked + 1;
    int64_t *__restrict counts = job.counts + to;
    double *__restrict widths = job.width + to;
    uint8_t *__restrict doubtful = job.doubtful + to;
    const bool possible = job.possible[row] != 0;
    int64_t number = 0;
    // positions of one span share a blur
    const int64_t span = job.blur.width ? job.blur.span : job.length;
    for (int64_t first = 1, end; first < job.length; first = end) {
        end = min((first / span + 1) * span, job.length);
        const double blur = blur_at(job.blur, row, job.length, first);
        const bool blurred = !(blur <= job.blurred);
        for (int64_t i = first - 1; i < end - 1; i++) { // entry i is position i + 1
            const bool wanted = possible && asked[i] != 0;
            const double width = width_of(growth[i], job.eps);
            double limit = job.tiny_row * (1.0 + growth[i]);
            // Where the growth is NaN the limit stays NaN: then no comparison below holds, and the count is doubtful.
            limit = limit > job.small_row ? job.small_row : limit;
            const bool doubt = wanted && (blurred || !(least[i] > limit && width <= job.sure));
            // Where nothing was eliminated the value may be any bits, even ones that no integer can hold.
            const bool counted = value[i] >= 0.0 && value[i] <= NO_COUNT;
            counts[i] = wanted && counted ? static_cast<int64_t>(value[i]) : 0;
            widths[i] = wanted ? width + blur : 0.0;
            doubtful[i] = doubt;
            number += doubt;
        }
    }
    return number;
}

inline int64_t judge_counts(const ess_judge_counts_job &job, int32_t threads, void *workspace) {
    if (workspace == nullptr) return 0;
    *job.number = 0;
    by_rows(job, threads, [&](int64_t head, int64_t tolerance) {
        __atomic_fetch_add(job.number, judge_row(job, head, tolerance), __ATOMIC_RELAXED);
    });
    return 0;
}

inline int64_t group_widths(const ess_group_widths_job &job, int32_t threads, void *workspace) {
    if (workspace == nullptr) return 0;
    const int64_t groups = (job.length + job.group - 1) / job.group;
    by_rows(job, threads, [&](int64_t head, int64_t tolerance) {
        // these arrays have no entry for position 0
        const int64_t from = (tolerance * job.heads + head) * (job.length - 1);
        const double *widths = job.width + from;
        const uint8_t *doubtful = job.doubtful + from;
        auto smallest = [&](int64_t begin, int64_t end) {
            double least = HUGE_VAL;
            for (int64_t i = begin; i < end; i++) least = job.asked[i] && widths[i - 1] < least ? widths[i - 1] : least;
            return least;
        };
        auto largest = [&](int64_t begin, int64_t end) {
            double most = 0.0;
            for (int64_t i = begin; i < end; i++) {
                const double width = widths[i - 1];
                if (!doubtful[i - 1] || width > job.hopeless) continue;
                if (!(width <= most)) most = width; // also where the width is NaN,
                if (most != most) break;            // which then is the answer
            }
            return most;
        };
        double *chosen = job.chosen + (head * job.tolerances + tolerance) * groups, of_head = -1.0;
        for (int64_t g = 0; g < groups; g++) {
            const int64_t begin = g == 0 ? 1 : g * job.group, end = min((g + 1) * job.group, job.length);
            bool some = false;
            for (int64_t i = begin; i < end; i++) some |= doubtful[i - 1] != 0;
            chosen[g] = !some ? HUGE_VAL : job.typical ? smallest(begin, end) : largest(begin, end);
            if (some && job.typical && chosen[g] == HUGE_VAL) {
                if (of_head < 0.0) of_head = smallest(1, job.length);
                chosen[g] = of_head;
            }
        }
    });
    return 0;
}

inline int64_t compare_counts(const ess_compare_counts_job &job, int32_t threads, void *workspace) {
    if (workspace == nullptr) return 0;
    const int64_t groups = (job.length + job.group - 1) / job.group;
    *job.number = 0;
    by_rows(job, threads, [&](int64_t head, int64_t tolerance) {
        const int64_t row = head * job.tolerances + tolerance, L = job.length;
        // counts, widths and doubts have no entry for position 0
        const int64_t to = (tolerance * job.heads + head) * (L - 1);
        const double *value = job.value + row * 2 * L, *growth = job.growth + row * 2 * L;
        const double *moves = job.move + row * groups;
        int64_t left = 0;
        for (int64_t g = 0; g < groups; g++) {
            const int64_t begin = g == 0 ? 1 : g * job.group, end = min((g + 1) * job.group, L);
            const double move = moves[g];
            const bool tried = move == move;
            for (int64_t i = begin; i < end; i++) {
                uint8_t &doubtful = job.doubtful[to + i - 1];
                double &width = job.width[to + i - 1];
                if (!doubtful) continue;
                left++;
                if (!tried || width != width) continue;
                const double reach =
                    max(width_of(growth[i], job.eps), width_of(growth[L + i], job.eps)) + blur_at(job.blur, row, L, i);
                if (!(reach <= move)) {
                    width = reach;
                } else if (value[i] == value[L + i]) {
                    job.counts[to + i - 1] = static_cast<int64_t>(value[i]);
                    width = 0.0;
                    doubtful = 0;
                    left--;
                } else {
                    // The two sides disagree, so a singular value lies between them: moving them apart cannot help,
                    // and a width of NaN says so.
                    width = __builtin_nan("");
                }
            }
        }
        __atomic_fetch_add(job.number, left, __ATOMIC_RELAXED);
    });
    return 0;
}

inline int64_t judge_entropy(const ess_judge_entropy_job &job, int32_t threads, void *workspace) {
    if (workspace == nullptr) return 0;
    const int64_t groups = (job.length + job.group - 1) / job.group;
    TaskCounter tasks(job.heads);
    team(threads_for(job.heads * job.length, threads), [&](int32_t) {
        for (int64_t head; (head = tasks.take()) >= 0;) {
            const double *rounding = job.rounding + head * groups;
            for (int64_t i = 0; i < job.length; i += W) {
                const int64_t left = job.length - i, count = left < W ? left : W, at = head * job.length + i;
                // lanes beyond the last position get zeros, which stand for a position without singular values
                double x[4][W] = {}, y[2][W];
                for (int64_t l = 0; l < count; l++) {
                    x[0][l] = job.total[at + l];
                    x[1][l] = job.mixed[at + l];
                    x[2][l] = job.cap[i + l];
                    x[3][l] = rounding[(i + l) / job.group];
                }
                V ess, bound;
                entropy_of({load(x[0]), load(x[1])}, *job.quadrature, load(x[2]), load(x[3]), ess, bound);
                store(y[0], ess);
                store(y[1], bound);
                for (int64_t l = 0; l < count; l++) {
                    job.ess[at + l] = y[0][l];
                    job.bound[at + l] = y[1][l];
                }
            }
        }
    });
    return 0;
}

} // namespace
} // namespace ess::ESS_LEVEL::leaves
