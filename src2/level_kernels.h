// All kernels of one dispatch level, and its table. Included once by each level_*.cpp.

#include "recurrence_kernels.h"

#define ESS_TEXT_(x) #x
#define ESS_TEXT(x) ESS_TEXT_(x)

namespace ess {
namespace ESS_LEVEL {
namespace {

const Kernels table = {
    ESS_TEXT(ESS_LEVEL),
    ESS_VECTOR_BYTES,
    &recurrence_kernels,
};

} // namespace
} // namespace ESS_LEVEL
} // namespace ess
