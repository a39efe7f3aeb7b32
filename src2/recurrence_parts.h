// Parts of all blocks of all heads, then the two scans of every head.

#pragma once

#include "parts.h"
#include "scans.h"

namespace ess {
namespace ESS_LEVEL {
namespace {

// What a thread needs for both.
struct RecurrenceWork {
    PartsWork parts;
    ScanWork scan;

    RecurrenceWork(Arena &arena, int64_t n, int64_t c, bool dense) : parts(arena, n, c, dense), scan(arena, n, c, dense) {}
};

inline int64_t parts_workspace(const RecurrencePartsJob &job) {
    Arena arena;
    for (int32_t t = 0; t < job.threads; t++) RecurrenceWork(arena, job.parts.n, job.parts.c, job.parts.dense);
    return arena.used();
}

inline void run_parts(const RecurrencePartsJob &job) {
    const RecurrenceParts &parts = job.parts;
    const int64_t each = parts_workspace(job) / job.threads;
    auto work_of = [&](int32_t thread) {
        Arena arena(static_cast<char *>(job.workspace) + thread * each);
        return RecurrenceWork(arena, parts.n, parts.c, parts.dense);
    };
    TaskCounter blocks(parts.count()), scans(2 * parts.heads);
    team(job.threads, [&](int32_t thread) {
        FlushDenormals flush;
        RecurrenceWork work = work_of(thread);
        for (int64_t b = blocks.take(); b >= 0; b = blocks.take()) {
            block_parts(job, b / parts.blocks, b % parts.blocks, work.parts);
        }
    });
    team(job.threads, [&](int32_t thread) {
        FlushDenormals flush;
        RecurrenceWork work = work_of(thread);
        for (int64_t task = scans.take(); task >= 0; task = scans.take()) {
            // the slow direction first
            if (task < parts.heads) reach_scan(parts, task, work.scan);
            else observe_scan(parts, task - parts.heads, work.scan);
        }
    });
}

} // namespace
} // namespace ESS_LEVEL
} // namespace ess
