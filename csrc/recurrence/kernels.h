// The table of kernels for recurrences.

#pragma once

#include "recurrence/counts.h"
#include "recurrence/entropy.h"
#include "recurrence/fill.h"
#include "recurrence/lost.h"
#include "recurrence/roots.h"
#include "recurrence/survey.h"
#include "recurrence/unsquared.h"

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
