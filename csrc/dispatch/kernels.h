// All kernels of one dispatch level, and their table. Included once by the file of each level.

#include "lanes/counts.h"
#include "lanes/entropy.h"
#include "leaves/certainty.h"
#include "matrix/attention.h"
#include "matrix/norm.h"
#include "matrix/products.h"
#include "matrix/staircase.h"
#include "recurrence/counts.h"
#include "recurrence/entropy.h"
#include "recurrence/fill.h"
#include "recurrence/lost.h"
#include "recurrence/roots.h"
#include "recurrence/survey.h"
#include "recurrence/unsquared.h"
#include "spectra/spectra.h"

#define ESS_TEXT_(x) #x
#define ESS_TEXT(x) ESS_TEXT_(x)

namespace ess::ESS_LEVEL {
namespace {

#define ESS_ENTRY(name, function) function,
const Kernels table = {ESS_TEXT(ESS_LEVEL), ESS_VECTOR_BYTES, ESS_KERNELS(ESS_ENTRY)};
#undef ESS_ENTRY

} // namespace
} // namespace ess::ESS_LEVEL
