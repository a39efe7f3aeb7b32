// Deliberate mistakes, one a number, to see that the sanitizers of `.ci/sanitize` are awake: a check that cannot fail says
// nothing.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../csrc/base/arena.h"
#include "../../csrc/base/threads.h"

namespace {

alignas(64) char workspace[1024];

// past the end of a piece of the workspace, inside the caller's memory
double past_the_piece(int64_t n) {
    ess::Arena arena(workspace);
    double *first = arena.take<double>(n);
    double *second = arena.take<double>(n);
    second[0] = 1;
    first[n] = 2;
    return first[n] + second[0];
}

double past_the_memory(int64_t n) {
    std::vector<double> x(static_cast<size_t>(n));
    return x.data()[n];
}

double signed_overflow(int64_t n) { return static_cast<double>(INT64_MAX - 4 + n); }

double race(int64_t) {
    double sum = 0;
    ess::team(4, [&](int32_t thread) {
        for (int i = 0; i < 1000; i++) sum += thread;
    });
    return sum;
}

} // namespace

int main(int count, char **arguments) {
    const int which = count > 1 ? std::atoi(arguments[1]) : 0;
    const int64_t n = count + 3; // 5, which the compiler does not know
    double (*const bugs[])(int64_t) = {past_the_piece, past_the_memory, signed_overflow, race};
    if (which < 0 || which > 3) return 0;
    std::printf("%g\n", bugs[which](n));
    return 0;
}
