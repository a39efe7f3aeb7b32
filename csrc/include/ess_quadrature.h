/* The nodes and weights of a quadrature, by which entropies come from log-determinants. */
#ifndef ESS_QUADRATURE_H
#define ESS_QUADRATURE_H

#include <stdint.h>

#define ESS_MAX_NODES 64
#define ESS_LEAST_NODE 1e-20

/* Sums over k of weight_k log(1 + x / t_k) for x in 0..1.
 *
 *   nodes                       at most ESS_MAX_NODES; ess_recurrence_entropy wants a multiple of 8
 *   t                           [nodes], in units of the scale, at least ESS_LEAST_NODE
 *   total_weight, mixed_weight  [nodes], of root(x) and of root(x) log root(x)
 *   total_error, mixed_error    the largest error of either sum
 *   total_slope, mixed_slope    bounds of how fast either sum changes with x */
typedef struct {
    int64_t nodes;
    const double *t, *total_weight, *mixed_weight;
    double total_error, mixed_error, total_slope, mixed_slope;
} ess_quadrature;

#endif /* ESS_QUADRATURE_H */
