/* What every function of the library shares: error codes, dispatch levels, how a kernel is called, and the fixed part
 * of the ABI. */
#ifndef ESS_BASE_H
#define ESS_BASE_H

#include <stdint.h>

#define ESS_ABI_VERSION 6

#if defined(_WIN32)
#define ESS_API __declspec(dllexport)
#else
#define ESS_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum {
    ESS_OK = 0,
    ESS_ERR_NULL = 1,      /* a pointer argument is null */
    ESS_ERR_SIZE = 2,      /* a size or stride is out of range */
    ESS_ERR_NONFINITE = 3, /* the input holds NaN or infinity */
    ESS_ERR_PIVOT = 4,     /* a pivot is zero to working precision: no count can be trusted */
    ESS_ERR_WORKSPACE = 5, /* the workspace is null, misaligned or too small */
    ESS_ERR_LEVEL = 6,     /* this machine cannot run the dispatch level that was asked for */
    ESS_ERR_MEMORY = 7     /* out of memory */
};

/* Dispatch levels: which vector instructions the kernels use. At one level results are bit-identical for any number of
 * threads and any composition of a batch; between levels they differ by rounding errors. */
enum { ESS_LEVEL_BEST = 0, ESS_LEVEL_BASELINE = 1, ESS_LEVEL_AVX2 = 2, ESS_LEVEL_AVX512 = 3 };

/* How a kernel runs. */
typedef struct {
    int32_t threads;         /* at most this many, the caller's among them; at least 1 */
    int32_t level;           /* one of ESS_LEVEL_* */
    void *workspace;         /* aligned to 64 bytes */
    int64_t workspace_bytes; /* how many there are */
} ess_run;

/* Declares a kernel X, which is described by one structure, ess_X_job:
 *
 *   ess_X             does the job, and returns ESS_OK or an error code: then nothing has been written
 *   ess_X_workspace   how many bytes of workspace ess_X needs for this job, run->threads and run->level, 0 if none; or
 *                     minus an error code. It does not look at run->workspace, and of the arrays it reads only those
 *                     that are checked: addresses, indices, shifts and nodes
 *
 * Every kernel returns ESS_ERR_NULL for a null pointer where the job does not allow it, ESS_ERR_SIZE for a number of
 * threads, a size, an index or an alignment that is out of range (no size may exceed 2^40, and no array 2^50 elements),
 * ESS_ERR_LEVEL for a dispatch level that this machine has not got, and ESS_ERR_WORKSPACE for a workspace that is null,
 * not aligned to 64 bytes or too small. */
#define ESS_KERNEL(X)                                                                                                  \
    ESS_API int32_t ess_##X(const ess_run *run, const ess_##X##_job *job);                                             \
    ESS_API int64_t ess_##X##_workspace(const ess_run *run, const ess_##X##_job *job)

/* Largest order that ess_positive_pivots takes: it is a check of the door and a small reference, not a fast kernel. */
#define ESS_MAX_PIVOTS 512

/* ESS_ABI_VERSION of the header that the library was built from. */
ESS_API int32_t ess_abi_version(void);

/* One line on how the library was built (compiler, OpenMP); a static string. */
ESS_API const char *ess_build_info(void);

/* The name of a level ("avx512"; of ESS_LEVEL_BEST: of the one that would be taken), or null if this machine has not
 * got it; a static string. */
ESS_API const char *ess_level_name(int32_t level);

/* How many threads a parallel kernel would use now: OpenMP's answer, or 1 without OpenMP. */
ESS_API int32_t ess_num_threads(void);

/* The size in bytes of a structure of this ABI ("ess_run", "ess_spectra_job", ...), or -1 for a name that is none: the
 * caller's idea of a structure is compared with the library's before any is passed. */
ESS_API int64_t ess_size_of(const char *structure);

/* What an error code means; a static string, also for codes that do not exist. */
ESS_API const char *ess_error_string(int32_t code);

/* The number of positive pivots of the symmetric n x n matrix a, which by Sylvester's law of inertia is the number of
 * its positive eigenvalues: the count on which everything in this package rests.
 *
 *   n      order, 0 <= n <= ESS_MAX_PIVOTS
 *   a      row-major with row stride lda >= n; only the lower triangle and the diagonal are read
 *   work   n * n doubles, overwritten (may be null when n is 0; must not overlap a)
 *   count  receives the result
 *
 * LDL^T without pivoting: a pivot of at most n * 2^-52 * max|a| gives ESS_ERR_PIVOT instead of a guess. */
ESS_API int32_t ess_positive_pivots(int64_t n, const double *a, int64_t lda, double *work, int64_t *count);

#ifdef __cplusplus
}
#endif

#endif /* ESS_BASE_H */
