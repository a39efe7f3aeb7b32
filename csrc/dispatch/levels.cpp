// Which levels this machine can run.

#include "dispatch/levels.h"

namespace ess {

const Kernels *kernels_for(int32_t level) {
    const Kernels *avx2 = nullptr, *avx512 = nullptr;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) avx2 = avx2_kernels;
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
        avx512 = avx512_kernels;
    }
#endif
    switch (level) {
    case ESS_LEVEL_BEST: return avx512 ? avx512 : avx2 ? avx2 : baseline_kernels;
    case ESS_LEVEL_BASELINE: return baseline_kernels;
    case ESS_LEVEL_AVX2: return avx2;
    case ESS_LEVEL_AVX512: return avx512;
    default: return nullptr;
    }
}

} // namespace ess

extern "C" const char *ess_level_name(int32_t level) {
    const ess::Kernels *kernels = ess::kernels_for(level);
    return kernels ? kernels->name : nullptr;
}
