// The entry points: every pointer and size is checked in this room and nowhere else, so kernels trust their jobs. It
// may include every other room. A family's file has a `check` for the job of each of its kernels; entries.cpp calls
// them.

#pragma once

#include <cstdint>
#include <initializer_list>

#include "dispatch/levels.h"

namespace ess {

// One size may be as large as MANY and an array have MOST elements: beyond that, the bytes of a workspace, which takes
// some for every element and every thread, could no longer be counted in 64 bits.
constexpr int64_t MANY = int64_t{1} << 40;
constexpr double MOST = 0x1p50;

// ESS_ERR_SIZE unless all sizes are in 1 .. MANY, and an array [sizes...] has at most MOST elements.
inline int32_t check_sizes(std::initializer_list<int64_t> sizes) {
    double elements = 1;
    for (int64_t size : sizes) {
        if (size < 1 || size > MANY) return ESS_ERR_SIZE;
        elements *= static_cast<double>(size);
    }
    return elements <= MOST ? ESS_OK : ESS_ERR_SIZE;
}

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

// The same for kernels that take no lookups.
int32_t check_diagonal_tokens(const ess_tokens *tokens, int64_t most_states);

// Nodes for a kernel that takes `multiple` of them at a time.
int32_t check_quadrature(const ess_quadrature *quadrature, int64_t multiple);

#define ESS_CHECK(name, function) int32_t check(const ess_##name##_job &job);
ESS_KERNELS(ESS_CHECK)
#undef ESS_CHECK

} // namespace ess
