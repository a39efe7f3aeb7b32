// The kernels for x86 processors with AVX2 and FMA: four doubles a vector.

#include "dispatch/headers.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,lzcnt,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,lzcnt,f16c")
#endif

#define ESS_LEVEL avx2
#define ESS_VECTOR_BYTES 32
#include "dispatch/kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace ess {
const Kernels *const avx2_kernels = &avx2::table;
} // namespace ess

#else

namespace ess {
const Kernels *const avx2_kernels = nullptr;
} // namespace ess

#endif
