/* The door through which ess_kernels' compiled CPU kernels are reached: a plain C ABI.
 *
 * Neither Python's nor torch's headers are needed, so the library depends on no version of either; Python opens it with
 * ctypes (ess_kernels/backends/native/). The rules for everything that is added here:
 *
 *  - A kernel takes two structures: how it runs (ess_run) and what it does (ess_X_job). See ESS_KERNEL in ess_base.h.
 *  - Fields have fixed sizes. Sizes and strides are int64_t and count elements, and matrices are row-major unless a
 *    field says otherwise. All memory belongs to the caller, the workspace as well: kernels allocate nothing that
 *    outlives the call.
 *  - Pointers and sizes are checked before anything is read. No result is written when a function fails, and no
 *    exception leaves the library.
 *  - No function keeps state between calls; all may be called from several threads at once.
 *  - Any change to an existing structure, signature or meaning raises ESS_ABI_VERSION; Python refuses a library of
 *    another version. New functions need no new version.
 */
#ifndef ESS_NATIVE_H
#define ESS_NATIVE_H

#include "ess_base.h"

/* the kernels, a header a family */
#include "ess_attention.h"
#include "ess_certainty.h"
#include "ess_lanes.h"
#include "ess_matrix.h"
#include "ess_recurrence.h"
#include "ess_spectra.h"

#endif /* ESS_NATIVE_H */
