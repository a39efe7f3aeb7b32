// The entry points: every pointer and size is checked in this room and nowhere else, so kernels trust their jobs. It
// may include every other room. A family's file has a `check` for the job of each of its kernels; entries.cpp calls
// them.

#pragma once

#include <cstdint>
#include <initializer_list>

#include "dispatch/levels.h"

namespace ess {

// sizes beyond this would overflow where the bytes of a workspace are counted
constexpr int64_t MANY = int64_t{1} << 40;

inline bool aligned(const void *p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }

inline int32_t check_pointers(std::initializer_list<const void *> pointers) {
    for (const void *pointer : pointers) {
        if (pointer == nullptr) return ESS_ERR_NULL;
    }
    return ESS_OK;
}

inline int32_t check_aligned(std::initializer_list<const void *> pointers) {
    if (int32_t error = check_pointers(pointers)) return error;
    for (const void *pointer : pointers) {
        if (!aligned(pointer)) return ESS_ERR_SIZE;
    }
    return ESS_OK;
}

// A recurrence of at most `most_states` states; `gated`: whether its gates are read.
int32_t check_tokens(const ess_tokens *tokens, int64_t most_states, bool gated);

// Nodes for a kernel that takes `multiple` of them at a time.
int32_t check_quadrature(const ess_quadrature *quadrature, int64_t multiple);

#define ESS_CHECK(name, function) int32_t check(const ess_##name##_job &job);
ESS_KERNELS(ESS_CHECK)
#undef ESS_CHECK

} // namespace ess
