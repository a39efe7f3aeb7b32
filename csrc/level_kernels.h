// All kernels of one dispatch level, and its table. Included once by each level_*.cpp.

#include "attention.h"
#include "certainty.h"
#include "lanes.h"
#include "matrix.h"
#include "recurrence_kernels.h"
#include "spectra.h"

#define ESS_TEXT_(x) #x
#define ESS_TEXT(x) ESS_TEXT_(x)

namespace ess {
namespace ESS_LEVEL {
namespace {

const Kernels table = {
    ESS_TEXT(ESS_LEVEL), ESS_VECTOR_BYTES,   &recurrence_kernels, &spectra_kernels,
    &matrix_kernels,     &attention_kernels, &lanes::kernels,     &certainty::kernels,
};

} // namespace
} // namespace ESS_LEVEL
} // namespace ess
