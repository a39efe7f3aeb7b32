/* Diagonal recurrences as their callers store them: what every kernel for state spaces reads.
 *
 * Head h of a recurrence with n states s_t has s_t = a_t * s_{t-1} + w_t u_t (element by element) and the output
 * y_t = r_t . s_t, or r_t . s_{t-1} where reads come before the transition. Numbers are float64 in the caller's memory. */
#ifndef ESS_TOKENS_H
#define ESS_TOKENS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Arrays `[heads]` of pointers hold the address of each head's first number; token t lies `stride` doubles further, t
 * times. Heads may share memory, and strides may be 0.
 *
 *   heads, length, states     at least 1 each
 *   read, write               `states` numbers in a row a token: r_t and w_t before their scales and units
 *   gate                      `states` numbers in a row a token, or one if gate_shared is not 0
 *   rate                      `[heads]` pointers to `states` numbers, multiplied onto the gate at every token, or null
 *   read_scale, write_scale   one number a token, multiplied onto the read (write), or null
 *   read_unit, write_unit     `[heads]` numbers, multiplied onto all reads (writes) of a head
 *   gate_is_log               not 0: a_t = exp(gate * rate), where exp(-inf) = 0; 0: a_t = gate * rate
 *   reads_before              not 0: row i reads the state before its own transition
 *   reserved                  0
 *
 * No number may be NaN, none but a logarithmic gate infinite, and no transition larger than 1 in magnitude: kernels check
 * pointers and sizes, not values. */
typedef struct {
    int64_t heads, length, states;
    const double *const *read;
    int64_t read_stride;
    const double *const *write;
    int64_t write_stride;
    const double *const *gate;
    int64_t gate_stride;
    const double *const *rate;
    const double *const *read_scale;
    int64_t read_scale_stride;
    const double *const *write_scale;
    int64_t write_scale_stride;
    const double *read_unit, *write_unit;
    int32_t gate_shared, gate_is_log, reads_before, reserved;
} ess_tokens;

#ifdef __cplusplus
}
#endif

#endif /* ESS_TOKENS_H */
