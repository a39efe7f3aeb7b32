// What every entry point checks before it reads anything.

#pragma once

#include <cstdint>

#include "dispatch/levels.h"

namespace ess {

constexpr int32_t MAX_THREADS = 1024;

inline bool aligned(const void *p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }

// The run itself: threads and dispatch level, whose kernels go to `kernels`.
inline int32_t check_run(const ess_run *run, const Kernels *&kernels) {
    if (run == nullptr) return ESS_ERR_NULL;
    if (run->threads < 1 || run->threads > MAX_THREADS) return ESS_ERR_SIZE;
    kernels = kernels_for(run->level);
    return kernels ? ESS_OK : ESS_ERR_LEVEL;
}

inline int32_t check_workspace(const ess_run *run, int64_t needed) {
    if (needed == 0) return ESS_OK;
    if (run->workspace == nullptr || !aligned(run->workspace) || run->workspace_bytes < needed)
        return ESS_ERR_WORKSPACE;
    return ESS_OK;
}

} // namespace ess
