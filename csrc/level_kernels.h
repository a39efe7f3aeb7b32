// All kernels of one dispatch level, and its table. Included once by each level_*.cpp.

#include "recurrence_counts.h"
#include "recurrence_parts.h"
#include "recurrence_roots.h"

#define ESS_TEXT_(x) #x
#define ESS_TEXT(x) ESS_TEXT_(x)

namespace ess {
namespace ESS_LEVEL {
namespace {

const RecurrenceKernels recurrence_kernels = {
    parts_workspace, run_parts, counts_workspace, run_counts, roots_workspace, run_observe_roots, run_root_products,
};

const Kernels table = {
    ESS_TEXT(ESS_LEVEL),
    ESS_VECTOR_BYTES,
    &recurrence_kernels,
};

} // namespace
} // namespace ESS_LEVEL
} // namespace ess
