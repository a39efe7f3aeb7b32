// What the kernels for small spectra are asked to do.

#pragma once

#include <cstdint>

#include "include/ess_spectra.h"

namespace ess {

struct SpectraJob {
    ess_spectra_job asked;
    int32_t threads;
    void *workspace;

    bool product() const { return asked.right.rows >= 0; }
    int64_t columns() const { return product() ? asked.right.rows : asked.left.columns; }
    // how many singular values a matrix has
    int64_t values() const { return asked.left.rows < columns() ? asked.left.rows : columns(); }
};

struct SpectraKernels {
    int64_t (*workspace)(const SpectraJob &);
    void (*run)(const SpectraJob &);
};

} // namespace ess
