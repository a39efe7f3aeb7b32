// Calls the library from several threads at once and with teams of several threads, for ThreadSanitizer: no Python, whose
// own threads it does not understand. `.ci/sanitize` compiles this together with csrc/*.cpp and -DESS_STD_THREADS.
//
// A family of kernels adds a function to `checks`: it calls the family with `run.threads` threads on data large enough that
// every thread gets work, and returns the answer's numbers. They must have the same bits for any number of threads, and from
// whichever thread they are asked.

#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "../../csrc/ess_native.h"
#include "../../csrc/threads.h"

namespace {

struct Check {
    const char *name;
    std::vector<double> (*answer)(int32_t threads, int32_t level);
};

// a team that shares tasks: each task is done once
std::vector<double> tasks(int32_t threads, int32_t) {
    std::vector<double> done(1000, 0.0);
    ess::TaskCounter counter(static_cast<int64_t>(done.size()));
    ess::team(threads, [&](int32_t) {
        for (int64_t task; (task = counter.take()) >= 0;) done[static_cast<size_t>(task)] += static_cast<double>(task);
    });
    return done;
}

// the small elimination keeps no state
std::vector<double> positive_pivots(int32_t, int32_t) {
    const int64_t n = 24;
    std::vector<double> a(static_cast<size_t>(n * n)), work(a.size());
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++) a[static_cast<size_t>(i * n + j)] = i == j ? static_cast<double>(i % 3 - 1) + 0.25 : 1e-3;
    }
    int64_t count = -1;
    int32_t code = ess_positive_pivots(n, a.data(), n, work.data(), &count);
    return {static_cast<double>(code), static_cast<double>(count)};
}

const Check checks[] = {
    {"tasks of a team", tasks},
    {"positive pivots", positive_pivots},
};

bool same(const std::vector<double> &a, const std::vector<double> &b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

// how many of a check's answers differ from that of one thread
int differing(const Check &check, int32_t level) {
    const std::vector<double> expected = check.answer(1, level);
    int wrong = 0;
    for (int32_t threads : {2, 3, 4}) wrong += !same(check.answer(threads, level), expected);
    // three callers at once, each with a team of two
    std::vector<std::vector<double>> found(3);
    std::vector<std::thread> callers;
    for (std::vector<double> &answer : found) callers.emplace_back([&] { answer = check.answer(2, level); });
    for (std::thread &caller : callers) caller.join();
    for (const std::vector<double> &answer : found) wrong += !same(answer, expected);
    return wrong;
}

} // namespace

int main() {
    int failed = 0;
    for (int32_t level : {ESS_LEVEL_BASELINE, ESS_LEVEL_AVX2, ESS_LEVEL_AVX512}) {
        const char *name = ess_level_name(level);
        if (!name) continue;
        for (const Check &check : checks) {
            int wrong = differing(check, level);
            std::printf("%-9s %-20s %s\n", name, check.name, wrong ? "DIFFERS" : "ok");
            failed += wrong;
        }
    }
    return failed != 0;
}
