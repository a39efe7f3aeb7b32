// Dispatch: the kernels are compiled once per level of the processor's vector unit, and the best one is taken at run
// time. This room includes all kernels and nothing of abi/, which calls them by way of this file.

#pragma once

#include "include/ess_native.h"

// Every kernel: the X of its C function ess_X, and the function that is compiled at every level.
#define ESS_KERNELS(KERNEL)                                                                                            \
    KERNEL(attention_rows, matrix::attention_rows)                                                                     \
    KERNEL(compare_counts, leaves::compare_counts)                                                                     \
    KERNEL(group_widths, leaves::group_widths)                                                                         \
    KERNEL(judge_counts, leaves::judge_counts)                                                                         \
    KERNEL(judge_entropy, leaves::judge_entropy)                                                                       \
    KERNEL(lanes_counts, lanes::counts)                                                                                \
    KERNEL(lanes_entropy, lanes::entropy)                                                                              \
    KERNEL(matrix_largest, matrix::largest)                                                                            \
    KERNEL(matrix_norm, matrix::norm)                                                                                  \
    KERNEL(matrix_products, matrix::products)                                                                          \
    KERNEL(matrix_staircase, matrix::staircase)                                                                        \
    KERNEL(recurrence_counts, recurrence::counts)                                                                      \
    KERNEL(recurrence_entropy, recurrence::entropy)                                                                    \
    KERNEL(recurrence_observe_roots, recurrence::observe_roots)                                                        \
    KERNEL(recurrence_parts, recurrence::parts)                                                                        \
    KERNEL(recurrence_root_products, recurrence::root_products)                                                        \
    KERNEL(recurrence_unsquared_counts, recurrence::unsquared_counts)                                                  \
    KERNEL(spectra, spectra::spectra)                                                                                  \
    KERNEL(tokens_lost, recurrence::lost)                                                                              \
    KERNEL(tokens_survey, recurrence::survey)

namespace ess {

// A kernel without a workspace (null) does nothing but say how many bytes of it the job needs; with one it does the job
// and returns the same number. So the lines that measure the workspace are those that deal it out.
template <class Job> using Kernel = int64_t (*)(const Job &job, int32_t threads, void *workspace);

// The kernels of one level.
struct Kernels {
    const char *name;
    int32_t vector_bytes;
#define ESS_FIELD(name, function) Kernel<ess_##name##_job> name;
    ESS_KERNELS(ESS_FIELD)
#undef ESS_FIELD
};

// null where the level does not exist on this architecture
extern const Kernels *const baseline_kernels;
extern const Kernels *const avx2_kernels;
extern const Kernels *const avx512_kernels;

// The kernels for a run: of the level asked for, or of the best one if it says ESS_LEVEL_BEST. Null if the machine has
// no such level.
const Kernels *kernels_for(int32_t level);

} // namespace ess
