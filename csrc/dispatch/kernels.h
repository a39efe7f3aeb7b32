// All kernels of one dispatch level, and its table. Included once by each level_*.cpp.

#include "lanes/kernels.h"
#include "leaves/certainty.h"
#include "matrix/attention.h"
#include "matrix/kernels.h"
#include "recurrence/kernels.h"
#include "spectra/spectra.h"

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
