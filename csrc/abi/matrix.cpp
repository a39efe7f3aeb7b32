// Checks of the jobs of ess_matrix.h and ess_attention.h.

#include "abi/checks.h"
#include "matrix/tree.h"

namespace ess {
namespace {

int32_t check_matrix(const ess_matrix *m) {
    if (m == nullptr || m->T == nullptr || m->scale == nullptr) return ESS_ERR_NULL;
    if (int32_t error = check_sizes({m->heads, m->length, m->row_stride})) return error;
    if (m->length > ESS_MAX_LENGTH || m->part < ESS_MATRIX_WHOLE || m->part > ESS_MATRIX_LAST || m->reserved != 0) {
        return ESS_ERR_SIZE;
    }
    const int64_t middle = middle_of(m->length);
    if (m->part != ESS_MATRIX_WHOLE && middle == 0) return ESS_ERR_SIZE;
    int64_t rows = m->length, columns = m->length;
    if (m->part == ESS_MATRIX_FIRST) rows = middle;
    if (m->part == ESS_MATRIX_CORNER || m->part == ESS_MATRIX_LAST) rows -= middle;
    if (m->part == ESS_MATRIX_FIRST || m->part == ESS_MATRIX_CORNER) columns = middle;
    if (m->part == ESS_MATRIX_LAST) columns -= middle;
    if (m->row_stride < columns) return ESS_ERR_SIZE;
    return m->heads > 1 && m->head_stride < rows * m->row_stride ? ESS_ERR_SIZE : ESS_OK;
}

int32_t check_whole(const ess_matrix *m) {
    if (int32_t error = check_matrix(m)) return error;
    return m->part == ESS_MATRIX_WHOLE ? ESS_OK : ESS_ERR_SIZE;
}

int32_t check_products(const ess_matrix *m, const double *products) {
    if (int32_t error = check_matrix(m)) return error;
    return products_size(m->length) == 0 ? ESS_OK : check_aligned({products});
}

} // namespace

int32_t check(const ess_matrix_largest_job &job) {
    const int32_t error = check_whole(job.matrix);
    return error ? error : check_pointers({job.largest});
}

int32_t check(const ess_matrix_norm_job &job) {
    if (int32_t error = check_whole(job.matrix)) return error;
    if (int32_t error = check_pointers({job.norm, job.squares})) return error;
    return job.steps < 1 ? ESS_ERR_SIZE : ESS_OK;
}

int32_t check(const ess_matrix_products_job &job) { return check_products(job.matrix, job.products); }

int32_t check(const ess_matrix_staircase_job &job) {
    if (int32_t error = check_products(job.matrix, job.products)) return error;
    if (int32_t error = check_sizes({job.items, job.matrix->length, job.matrix->length})) return error;
    if (job.reserved != 0 || job.matrix->part == ESS_MATRIX_CORNER) return ESS_ERR_SIZE;
    if (int32_t error = check_pointers({job.head, job.shift, job.wanted, job.value})) return error;
    if (!job.definite && (!job.growth || !job.least)) return ESS_ERR_NULL;
    for (int64_t i = 0; i < job.items; i++) {
        if (job.head[i] < 0 || job.head[i] >= job.matrix->heads || !(job.shift[i] > 0)) return ESS_ERR_SIZE;
    }
    return ESS_OK;
}

int32_t check(const ess_attention_rows_job &job) {
    if (int32_t error = check_pointers({job.q, job.k, job.weights})) return error;
    if (int32_t error = check_sizes({job.heads, job.length, job.size})) return error;
    if (int32_t error = check_sizes({job.heads, job.length, job.row_stride})) return error;
    if (job.length > ESS_MAX_LENGTH || job.size > ESS_MAX_QUERY) return ESS_ERR_SIZE;
    if (job.window < 0 || !(job.softcap >= 0)) return ESS_ERR_SIZE;
    if (job.begin < 0 || job.begin % ESS_ATTENTION_TILE || job.end <= job.begin || job.end > job.length) {
        return ESS_ERR_SIZE;
    }
    return job.row_stride < padded_rows(job.end) ? ESS_ERR_SIZE : ESS_OK;
}

} // namespace ess

extern "C" int64_t ess_matrix_middle(int64_t length) {
    return length < 1 || length > ESS_MAX_LENGTH ? -ESS_ERR_SIZE : ess::middle_of(length);
}

extern "C" int64_t ess_matrix_products_size(int64_t length) {
    return length < 1 || length > ESS_MAX_LENGTH ? -ESS_ERR_SIZE : ess::products_size(length);
}
