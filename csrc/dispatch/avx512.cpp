// The kernels for x86 processors with AVX-512: eight doubles a vector. ESS_WITHOUT_AVX512 leaves them out, for builds
// that nobody installs.

#include "dispatch/headers.h"

#if defined(__x86_64__) && !defined(ESS_WITHOUT_AVX512)

#if defined(__clang__)
#pragma clang attribute push(                                                                                          \
    __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512cd,avx2,fma,bmi,bmi2,lzcnt,f16c"))),               \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx512cd,avx2,fma,bmi,bmi2,lzcnt,f16c")
#endif

#define ESS_LEVEL avx512
#define ESS_VECTOR_BYTES 64
#include "dispatch/kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace ess {
const Kernels *const avx512_kernels = &avx512::table;
} // namespace ess

#else

namespace ess {
const Kernels *const avx512_kernels = nullptr;
} // namespace ess

#endif
