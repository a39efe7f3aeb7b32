// Dispatch: the kernels are compiled once per level of the processor's vector unit, and the best one is taken at run
// time.

#pragma once

#include "include/ess_native.h"
#include "jobs/attention.h"
#include "jobs/certainty.h"
#include "jobs/lanes.h"
#include "jobs/matrix.h"
#include "jobs/recurrence.h"
#include "jobs/spectra.h"

namespace ess {

struct Kernels {
    const char *name;
    int32_t vector_bytes;
    const RecurrenceKernels *recurrence;
    const SpectraKernels *spectra;
    const MatrixKernels *matrix;
    const AttentionKernels *attention;
    const LanesKernels *lanes;
    const CertaintyKernels *certainty;
};

// null where the level does not exist on this architecture
extern const Kernels *const baseline_kernels;
extern const Kernels *const avx2_kernels;
extern const Kernels *const avx512_kernels;

// The kernels for a run: of the level asked for, or of the best one if it says ESS_LEVEL_BEST. Null if the machine has
// no such level.
const Kernels *kernels_for(int32_t level);

} // namespace ess
