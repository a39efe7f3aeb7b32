// The kernels for dense lower triangular operators at one dispatch level.

#pragma once

#include "matrix/norm.h"
#include "matrix/products.h"
#include "matrix/staircase.h"

namespace ess {
namespace ESS_LEVEL {
namespace {

const MatrixKernels matrix_kernels = {dense::matrix_products, dense::matrix_staircase, dense::matrix_largest,
                                      dense::matrix_norm};

} // namespace
} // namespace ESS_LEVEL
} // namespace ess
