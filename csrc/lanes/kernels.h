// Everything for small states with heads in vector lanes.

#pragma once

#include "lanes/counts.h"
#include "lanes/entropy.h"

namespace ess {
namespace ESS_LEVEL {
namespace lanes {
namespace {

const LanesKernels kernels = {counts, entropy};

} // namespace
} // namespace lanes
} // namespace ESS_LEVEL
} // namespace ess
