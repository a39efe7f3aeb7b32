/* The door through which ess_kernels' compiled CPU kernels are reached: a plain C ABI.
 *
 * Neither Python's nor torch's headers are needed, so the library depends on no version of either; Python opens it with
 * ctypes (ess_kernels/backends/native/). The rules for everything that is added here:
 *
 *  - Sizes and strides are int64_t and count elements, matrices are row-major unless a function says otherwise, and memory
 *    belongs to the caller: functions allocate nothing that outlives the call, and where they need workspace the caller
 *    passes it. A function ess_X that needs some has a twin ess_X_workspace that says how many bytes.
 *  - A function that can fail returns an error code (ESS_OK is 0) and writes its results through pointers. It checks
 *    pointers and sizes before it reads anything, and writes no result when it fails. No exception leaves the library.
 *  - No function keeps state between calls; all may be called from several threads at once.
 *  - Any change to an existing signature or meaning raises ESS_ABI_VERSION; Python refuses a library of another version.
 *    New functions need no new version.
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
