// Parts of all blocks of all heads and the two scans of every head, with nothing asked of them yet.

#pragma once

#include "recurrence/tasks.h"

namespace ess::ESS_LEVEL::recurrence {
namespace {

inline int64_t parts(const ess_recurrence_parts_job &job, int32_t threads, void *workspace) {
    Arena shared(workspace);
    RecurrenceTasks tasks(shared, *job.parts, &job, false, threads);
    auto body = [&](RecurrenceWork &work) {
        FlushDenormals flush;
        tasks.share(work, [](int64_t) {});
    };
    return run_with<RecurrenceWork>(shared, threads, body, *job.parts, &job);
}

} // namespace
} // namespace ess::ESS_LEVEL::recurrence
