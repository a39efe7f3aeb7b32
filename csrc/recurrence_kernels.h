// The table of kernels for recurrences.

#pragma once

#include "lost.h"
#include "recurrence_counts.h"
#include "recurrence_entropy.h"
#include "recurrence_parts.h"
#include "recurrence_roots.h"
#include "recurrence_unsquared.h"
#include "survey.h"

namespace ess {
namespace ESS_LEVEL {
namespace {

const RecurrenceKernels recurrence_kernels = {
    parts_workspace,   run_parts,         counts_workspace, run_counts,      unsquared_workspace,
    run_unsquared,     entropy_workspace, run_entropy,      roots_workspace, run_observe_roots,
    run_root_products, survey_workspace,  run_survey,       lost_workspace,  run_lost,
};

} // namespace
} // namespace ESS_LEVEL
} // namespace ess
