// The fixed part of the C ABI: version, build information, threads, and the small elimination that the self-test runs.

#include "include/ess_native.h"

#include <cfloat>
#include <cmath>

#ifdef _OPENMP
#include <omp.h>
#endif

#define ESS_TEXT_(x) #x
#define ESS_TEXT(x) ESS_TEXT_(x)

#if defined(__clang__)
#define ESS_COMPILER "clang " ESS_TEXT(__clang_major__) "." ESS_TEXT(__clang_minor__)
#elif defined(__GNUC__)
#define ESS_COMPILER "gcc " ESS_TEXT(__GNUC__) "." ESS_TEXT(__GNUC_MINOR__)
#elif defined(_MSC_VER)
#define ESS_COMPILER "msvc " ESS_TEXT(_MSC_VER)
#else
#define ESS_COMPILER "unknown compiler"
#endif

#ifdef _OPENMP
#define ESS_THREADING "OpenMP " ESS_TEXT(_OPENMP)
#else
#define ESS_THREADING "no OpenMP"
#endif

extern "C" {

int32_t ess_abi_version(void) { return ESS_ABI_VERSION; }

const char *ess_build_info(void) { return ESS_COMPILER ", " ESS_THREADING; }

int32_t ess_num_threads(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

const char *ess_error_string(int32_t code) {
    switch (code) {
    case ESS_OK: return "ok";
    case ESS_ERR_NULL: return "null pointer";
    case ESS_ERR_SIZE: return "size or stride out of range";
    case ESS_ERR_NONFINITE: return "non-finite input";
    case ESS_ERR_PIVOT: return "pivot is zero to working precision";
    case ESS_ERR_WORKSPACE: return "workspace is null, misaligned or too small";
    case ESS_ERR_LEVEL: return "this machine cannot run the dispatch level";
    case ESS_ERR_MEMORY: return "out of memory";
    default: return "unknown error code";
    }
}

int32_t ess_positive_pivots(int64_t n, const double *a, int64_t lda, double *work, int64_t *count) {
    if (count == nullptr) return ESS_ERR_NULL;
    if (n < 0 || n > ESS_MAX_PIVOTS || lda < n) return ESS_ERR_SIZE;
    if (n > 0 && (a == nullptr || work == nullptr)) return ESS_ERR_NULL;

    double largest = 0.0;
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
            const double x = a[i * lda + j];
            if (!std::isfinite(x)) return ESS_ERR_NONFINITE;
            largest = std::fmax(largest, std::fabs(x));
            work[i * n + j] = x;
        }
    }

    const double floor = static_cast<double>(n) * DBL_EPSILON * largest;
    int64_t positive = 0;
    for (int64_t k = 0; k < n; ++k) {
        const double pivot = work[k * n + k];
        // Written so that a NaN, which only an overflow on the way can have made, fails as well.
        if (!(std::fabs(pivot) > floor)) return ESS_ERR_PIVOT;
        positive += pivot > 0.0;
        for (int64_t i = k + 1; i < n; ++i) {
            const double multiplier = work[i * n + k] / pivot;
            // Column k stays as it is (L D, not L): every row below still needs it.
            for (int64_t j = k + 1; j <= i; ++j) work[i * n + j] -= multiplier * work[j * n + k];
        }
    }
    *count = positive;
    return ESS_OK;
}

} // extern "C"
