// Threads with workspace of their own: what nearly every kernel runs on.

#pragma once

#include "base/arena.h"
#include "base/threads.h"

namespace ess::ESS_LEVEL {
namespace {

// Calls body(work) on each thread of a team, `work` being a Work(arena, arguments...) that lies behind what the threads
// share. Without memory nothing runs. Returns how many bytes all of it takes.
template <class Work, class Body, class... Arguments>
int64_t run_with(Arena &shared, int32_t threads, Body body, const Arguments &...arguments) {
    Arena one;
    const Work measured(one, arguments...);
    const int64_t needed = shared.used() + threads * one.used();
    if (shared.measures_only()) return needed;
    char *memory = shared.rest();
    team(threads, [&](int32_t thread) {
        Arena arena(memory + thread * one.used());
        Work work(arena, arguments...);
        body(work);
    });
    return needed;
}

} // namespace
} // namespace ess::ESS_LEVEL
