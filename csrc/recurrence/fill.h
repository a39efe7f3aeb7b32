// Parts of all blocks of all heads and the two scans of every head, with nothing asked of them yet.

#pragma once

#include "recurrence/tasks.h"

namespace ess {
namespace ESS_LEVEL {
namespace {

inline int64_t parts_workspace(const RecurrencePartsJob &job) {
    Arena arena;
    RecurrenceTasks(arena, job.parts, &job, false, job.threads);
    for (int32_t t = 0; t < job.threads; t++) RecurrenceWork(arena, job.parts, &job);
    return arena.used();
}

inline void run_parts(const RecurrencePartsJob &job) {
    Arena shared(job.workspace), one;
    RecurrenceTasks tasks(shared, job.parts, &job, false, job.threads);
    RecurrenceWork(one, job.parts, &job);
    char *memory = static_cast<char *>(job.workspace) + shared.used();
    team(job.threads, [&](int32_t thread) {
        FlushDenormals flush;
        Arena arena(memory + thread * one.used());
        RecurrenceWork work(arena, job.parts, &job);
        tasks.share(work, [](int64_t) {});
    });
}

} // namespace
} // namespace ESS_LEVEL
} // namespace ess
