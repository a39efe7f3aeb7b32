// Entry points for dense operators: checks, then the kernels of the run's dispatch level.

#include "jobs/matrix.h"
#include "abi/checks.h"
#include "include/ess_matrix.h"

namespace ess {
namespace {

// a whole workspace must be countable in bytes
constexpr int64_t MANY = int64_t{1} << 40;

int32_t check_matrix(const ess_matrix *m) {
    if (m == nullptr || m->T == nullptr || m->scale == nullptr) return ESS_ERR_NULL;
    if (m->heads < 1 || m->heads > MANY || m->length < 1 || m->length > ESS_MAX_LENGTH) return ESS_ERR_SIZE;
    if (m->row_stride < m->length || m->row_stride > MANY) return ESS_ERR_SIZE;
    if (m->heads > 1 && m->head_stride < m->length * m->row_stride) return ESS_ERR_SIZE;
    return ESS_OK;
}

int32_t check_products(const ess_matrix *m, const double *products) {
    if (matrix_products_size(m->length) == 0) return ESS_OK;
    if (products == nullptr) return ESS_ERR_NULL;
    return aligned(products) ? ESS_OK : ESS_ERR_SIZE;
}

MatrixOperand operand_of(const ess_matrix *m) {
    return {m->heads, m->length, m->T, m->row_stride, m->head_stride, m->scale};
}

int32_t products_job(const ess_run *run, const ess_matrix *matrix, double *products, const Kernels *&kernels,
                     MatrixProductsJob &job) {
    if (int32_t error = check_run(run, kernels)) return error;
    if (int32_t error = check_matrix(matrix)) return error;
    if (int32_t error = check_products(matrix, products)) return error;
    job = {operand_of(matrix), products, run->threads, nullptr};
    return ESS_OK;
}

int32_t largest_job(const ess_run *run, const ess_matrix *matrix, double *largest, const Kernels *&kernels,
                    MatrixLargestJob &job) {
    if (int32_t error = check_run(run, kernels)) return error;
    if (int32_t error = check_matrix(matrix)) return error;
    if (largest == nullptr) return ESS_ERR_NULL;
    job = {operand_of(matrix), largest, run->threads, nullptr};
    return ESS_OK;
}

int32_t norm_job(const ess_run *run, const ess_matrix *matrix, int64_t steps, double *norm, double *squares,
                 const Kernels *&kernels, MatrixNormJob &job) {
    if (int32_t error = check_run(run, kernels)) return error;
    if (int32_t error = check_matrix(matrix)) return error;
    if (norm == nullptr || squares == nullptr) return ESS_ERR_NULL;
    if (steps < 1) return ESS_ERR_SIZE;
    job = {operand_of(matrix), steps, norm, squares, run->threads, nullptr};
    return ESS_OK;
}

int32_t staircase_job(const ess_run *run, const ess_matrix *matrix, const double *products, int64_t items,
                      const int64_t *head, const double *shift, int32_t definite, const uint8_t *wanted, double *value,
                      double *growth, double *least, const Kernels *&kernels, MatrixStaircaseJob &job) {
    if (int32_t error = check_run(run, kernels)) return error;
    if (int32_t error = check_matrix(matrix)) return error;
    if (int32_t error = check_products(matrix, products)) return error;
    if (items < 1 || items > MANY) return ESS_ERR_SIZE;
    if (!head || !shift || !wanted || !value || (!definite && (!growth || !least))) return ESS_ERR_NULL;
    for (int64_t i = 0; i < items; i++) {
        if (head[i] < 0 || head[i] >= matrix->heads || !(shift[i] > 0)) return ESS_ERR_SIZE;
    }
    job = {operand_of(matrix), products, items, head, shift, definite != 0, wanted, value, growth, least,
           run->threads,       nullptr};
    return ESS_OK;
}

} // namespace
} // namespace ess

extern "C" {

int64_t ess_matrix_products_size(int64_t length) {
    return length < 1 || length > ESS_MAX_LENGTH ? -ESS_ERR_SIZE : ess::matrix_products_size(length);
}

int64_t ess_matrix_products_workspace(const ess_run *run, const ess_matrix *matrix, double *products) {
    const ess::Kernels *kernels;
    ess::MatrixProductsJob job;
    if (int32_t error = ess::products_job(run, matrix, products, kernels, job)) return -error;
    return kernels->matrix->products(job);
}

int32_t ess_matrix_products(const ess_run *run, const ess_matrix *matrix, double *products) {
    const ess::Kernels *kernels;
    ess::MatrixProductsJob job;
    if (int32_t error = ess::products_job(run, matrix, products, kernels, job)) return error;
    const int64_t needed = kernels->matrix->products(job);
    if (needed == 0) return ESS_OK;
    if (int32_t error = ess::check_workspace(run, needed)) return error;
    job.workspace = run->workspace;
    kernels->matrix->products(job);
    return ESS_OK;
}

int64_t ess_matrix_largest_workspace(const ess_run *run, const ess_matrix *matrix, double *largest) {
    const ess::Kernels *kernels;
    ess::MatrixLargestJob job;
    if (int32_t error = ess::largest_job(run, matrix, largest, kernels, job)) return -error;
    return kernels->matrix->largest(job);
}

int32_t ess_matrix_largest(const ess_run *run, const ess_matrix *matrix, double *largest) {
    const ess::Kernels *kernels;
    ess::MatrixLargestJob job;
    if (int32_t error = ess::largest_job(run, matrix, largest, kernels, job)) return error;
    if (int32_t error = ess::check_workspace(run, kernels->matrix->largest(job))) return error;
    job.workspace = run->workspace;
    kernels->matrix->largest(job);
    return ESS_OK;
}

int64_t ess_matrix_norm_workspace(const ess_run *run, const ess_matrix *matrix, int64_t steps, double *norm,
                                  double *squares) {
    const ess::Kernels *kernels;
    ess::MatrixNormJob job;
    if (int32_t error = ess::norm_job(run, matrix, steps, norm, squares, kernels, job)) return -error;
    return kernels->matrix->norm(job);
}

int32_t ess_matrix_norm(const ess_run *run, const ess_matrix *matrix, int64_t steps, double *norm, double *squares) {
    const ess::Kernels *kernels;
    ess::MatrixNormJob job;
    if (int32_t error = ess::norm_job(run, matrix, steps, norm, squares, kernels, job)) return error;
    if (int32_t error = ess::check_workspace(run, kernels->matrix->norm(job))) return error;
    job.workspace = run->workspace;
    kernels->matrix->norm(job);
    return ESS_OK;
}

int64_t ess_matrix_staircase_workspace(const ess_run *run, const ess_matrix *matrix, const double *products,
                                       int64_t items, const int64_t *head, const double *shift, int32_t definite,
                                       const uint8_t *wanted, double *value, double *growth, double *least) {
    const ess::Kernels *kernels;
    ess::MatrixStaircaseJob job;
    if (int32_t error = ess::staircase_job(run, matrix, products, items, head, shift, definite, wanted, value, growth,
                                           least, kernels, job)) {
        return -error;
    }
    return kernels->matrix->staircase(job);
}

int32_t ess_matrix_staircase(const ess_run *run, const ess_matrix *matrix, const double *products, int64_t items,
                             const int64_t *head, const double *shift, int32_t definite, const uint8_t *wanted,
                             double *value, double *growth, double *least) {
    const ess::Kernels *kernels;
    ess::MatrixStaircaseJob job;
    if (int32_t error = ess::staircase_job(run, matrix, products, items, head, shift, definite, wanted, value, growth,
                                           least, kernels, job)) {
        return error;
    }
    if (int32_t error = ess::check_workspace(run, kernels->matrix->staircase(job))) return error;
    job.workspace = run->workspace;
    kernels->matrix->staircase(job);
    return ESS_OK;
}

} // extern "C"
