// The kernels for dense lower triangular operators at one dispatch level.

#pragma once

#include "matrix_norm.h"
#include "matrix_products.h"
#include "matrix_staircase.h"

namespace ess {
namespace ESS_LEVEL {
namespace {

const MatrixKernels matrix_kernels = {dense::matrix_products, dense::matrix_staircase, dense::matrix_largest,
                                      dense::matrix_norm};

} // namespace
} // namespace ESS_LEVEL
} // namespace ess
