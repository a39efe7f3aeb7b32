/* Recurrences as their callers store them: what every kernel for state spaces reads.
 *
 * Head h of a recurrence with n states s_t has s_t = d_t * s_{t-1} + w_t u_t (d_t element by element) and the output
 * y_t = r_t . s_t, or r_t . s_{t-1} where reads come before the transition. Transitions may have a rank-one term more,
 * as in the delta rules: s_t = d_t * s_{t-1} + b_t (a_t . s_{t-1}) + w_t u_t, with lookups a_t and updates b_t. Numbers
 * are float64 in the caller's memory. */
#ifndef ESS_TOKENS_H
#define ESS_TOKENS_H

#include "ess_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Largest state size. */
#define ESS_MAX_STATES 1024

/* Arrays `[heads]` of pointers hold the address of each head's first number; token t lies `stride` doubles further, t
 * times. Heads may share memory, and strides may be 0.
 *
 *   heads, length, states     at least 1 each
 *   read, write               `states` numbers in a row a token: r_t and w_t before their scales and units
 *   gate                      `states` numbers in a row a token, or one if gate_shared is not 0
 *   rate                      `[heads]` pointers to `states` numbers, multiplied onto the gate at every token, or null
 *   read_scale, write_scale   one number a token, multiplied onto the read (write), or null
 *   lookup                    `states` numbers in a row a token, or null: transitions are diagonal. Only
 *                             ess_tokens_survey and kernels of recurrences with ESS_RANK_ONE take lookups
 *   update                    `states` numbers in a row a token: b_t, as it is; or null: b_t = -w_t, scales included,
 *                             so that a token replaces what it has looked up. Null without lookups
 *   read_unit, write_unit     `[heads]` numbers, multiplied onto all reads (writes) of a head
 *   gate_is_log               not 0: d_t = exp(gate * rate), where exp(-inf) = 0; 0: d_t = gate * rate
 *   reads_before              not 0: row i reads the state before its own transition
 *   lookup_decayed            not 0: a_t = d_t * lookup, what the token's own decay has left is looked up; 0: a_t =
 *                             lookup
 *
 * No number may be NaN, none but a logarithmic gate infinite, and without lookups no transition larger than 1 in
 * magnitude: kernels check pointers and sizes, not values. */
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
    const double *const *lookup;
    int64_t lookup_stride;
    const double *const *update;
    int64_t update_stride;
    const double *read_unit, *write_unit;
    int32_t gate_shared, gate_is_log, reads_before, lookup_decayed;
} ess_tokens;

/* How large a recurrence's numbers are, and whether its transitions shrink, before anything is made of them. Tokens may
 * hold anything here, NaN and infinities too; a gate is needed.
 *
 *   read_peak, write_peak   [heads]: at least the largest magnitude of reads and writes, scales and units included; NaN
 *                           where a number is not finite
 *   supported               [heads]: 1 where all of d_t are numbers of magnitude at most 1; lookups and updates are
 *                           not looked at */
typedef struct {
    const ess_tokens *tokens;
    double *read_peak, *write_peak;
    uint8_t *supported;
} ess_tokens_survey_job;
ESS_KERNEL(tokens_survey);

/* By how much H_i may be wrong because the states are rounded, before anything is eliminated: a bound of the 2-norm, to
 * first order in the unit roundoff.
 *
 *   span    positions in a row that share one bound, at least 1; position i belongs to number i / span
 *   lost    [heads][ceil(length / span)]; infinite where the bound overflows */
typedef struct {
    const ess_tokens *tokens;
    int64_t span;
    double *lost;
} ess_tokens_lost_job;
ESS_KERNEL(tokens_lost);

#ifdef __cplusplus
}
#endif

#endif /* ESS_TOKENS_H */
