// The kernels for any machine: two doubles a vector (SSE2, NEON).

#include "dispatch/headers.h"

#define ESS_LEVEL baseline
#define ESS_VECTOR_BYTES 16
#include "dispatch/kernels.h"

namespace ess {
const Kernels *const baseline_kernels = &baseline::table;
} // namespace ess
