// One look at a recurrence's numbers before any kernel squares them: how large they are, and which heads are supported.

#pragma once

#include "dense/products.h"
#include "include/ess_tokens.h"

namespace ess::ESS_LEVEL::recurrence {
using namespace dense;
namespace {

// What is known of some numbers: the range of those that are numbers, and whether all of them are (`finite`), at least
// as numbers or infinities (`ordered`).
struct NumberRange {
    double low = HUGE_VAL, high = -HUGE_VAL;
    bool finite = true, ordered = true;

    double largest() const { return finite ? std::fmax(-low, high) : NAN; }

    void include(const NumberRange &other) {
        low = std::fmin(low, other.low);
        high = std::fmax(high, other.high);
        finite &= other.finite;
        ordered &= other.ordered;
    }

    // `rows` rows of `count` numbers, `stride` apart
    void look(const double *x, int64_t rows, int64_t stride, int64_t count) {
        V lows = all(low), highs = all(high), excess = V{};
        Mask<double> unordered{};
        for (int64_t t = 0; t < rows; t++) {
            const double *row = x + t * stride;
            int64_t i = 0;
            for (; i + W <= count; i += W) {
                V value = load(row + i);
                lows = smaller(value, lows);
                highs = larger(value, highs);
                excess += value * 0.0; // stays zero for numbers, and becomes NaN for good at NaN or infinity
                unordered |= value != value;
            }
            for (; i < count; i++) {
                low = row[i] < low ? row[i] : low;
                high = row[i] > high ? row[i] : high;
                finite &= row[i] * 0.0 == 0.0;
                ordered &= row[i] == row[i];
            }
        }
        low = std::fmin(low, horizontal_min(lows));
        high = std::fmax(high, horizontal_max(highs));
        finite &= horizontal_sum(excess) == 0.0;
        ordered &= !any(unordered);
    }
};

// The ranges of one head's tokens begin..end-1.
struct HeadSurvey {
    NumberRange read, write, gate, read_scale, write_scale;

    void look(const ess_tokens &tokens, int64_t head, int64_t begin, int64_t end) {
        const int64_t rows = end - begin, n = tokens.states;
        auto at = [begin](const double *x, int64_t stride) { return x + begin * stride; };
        // heads that share memory with the one before them are looked at once
        const bool same_read = head > 0 && tokens.read[head] == tokens.read[head - 1];
        const bool same_write = head > 0 && tokens.write[head] == tokens.write[head - 1];
        if (!same_read) read.look(at(tokens.read[head], tokens.read_stride), rows, tokens.read_stride, n);
        if (!same_write) write.look(at(tokens.write[head], tokens.write_stride), rows, tokens.write_stride, n);
        look_along(gate, tokens.gate, head, begin, rows, tokens.gate_stride, tokens.gate_shared ? 1 : n);
        look_along(read_scale, tokens.read_scale, head, begin, rows, tokens.read_scale_stride, 1);
        look_along(write_scale, tokens.write_scale, head, begin, rows, tokens.write_scale_stride, 1);
    }

    void include(const HeadSurvey &other) {
        read.include(other.read);
        write.include(other.write);
        gate.include(other.gate);
        read_scale.include(other.read_scale);
        write_scale.include(other.write_scale);
    }

  private:
    // one number a token, next to each other: a row of numbers
    static void look_along(NumberRange &range, const double *const *x, int64_t head, int64_t begin, int64_t rows,
                           int64_t stride, int64_t count) {
        if (x == nullptr) return;
        const double *first = x[head] + begin * stride;
        if (count == 1 && stride == 1) range.look(first, 1, 0, rows);
        else range.look(first, rows, stride, count);
    }
};

// Whether no transition grows; every rate times every gate, if there are rates.
inline bool supported_transitions(const ess_tokens &tokens, int64_t head, const NumberRange &gate) {
    if (!gate.ordered) return false;
    double low = gate.low, high = gate.high;
    if (tokens.rate) {
        NumberRange rate;
        rate.look(tokens.rate[head], 1, 0, tokens.states);
        // the logarithm of a gate may be -inf, a step or a rate may not
        if (!gate.finite || !rate.finite) return false;
        const double corners[] = {low * rate.low, low * rate.high, high * rate.low, high * rate.high};
        low = HUGE_VAL;
        high = -HUGE_VAL;
        for (double corner : corners) {
            if (!(corner * 0.0 == 0.0)) return false;
            low = std::fmin(low, corner);
            high = std::fmax(high, corner);
        }
    }
    return tokens.gate_is_log ? high <= 0.0 : high <= 1.0 && low >= -1.0;
}

// tokens that a thread looks at in one go
constexpr int64_t SURVEY_CHUNK = 256;

inline int64_t survey(const ess_tokens_survey_job &job, int32_t threads, void *workspace) {
    const ess_tokens &tokens = *job.tokens;
    const int64_t chunks = (tokens.length + SURVEY_CHUNK - 1) / SURVEY_CHUNK;
    Arena arena(workspace);
    HeadSurvey *found = arena.take<HeadSurvey>(tokens.heads * chunks);
    if (workspace == nullptr) return arena.used();
    TaskCounter tasks(tokens.heads * chunks);
    team(threads, [&](int32_t) {
        for (int64_t task = tasks.take(); task >= 0; task = tasks.take()) {
            const int64_t begin = task % chunks * SURVEY_CHUNK, left = tokens.length - begin;
            HeadSurvey survey;
            survey.look(tokens, task / chunks, begin, begin + (left < SURVEY_CHUNK ? left : SURVEY_CHUNK));
            found[task] = survey;
        }
    });
    HeadSurvey before;
    for (int64_t h = 0; h < tokens.heads; h++) {
        HeadSurvey head;
        for (int64_t c = 0; c < chunks; c++) head.include(found[h * chunks + c]);
        if (h > 0 && tokens.read[h] == tokens.read[h - 1]) head.read = before.read;
        if (h > 0 && tokens.write[h] == tokens.write[h - 1]) head.write = before.write;
        before = head;
        const double read_scale = tokens.read_scale ? head.read_scale.largest() : 1.0;
        const double write_scale = tokens.write_scale ? head.write_scale.largest() : 1.0;
        job.read_peak[h] = head.read.largest() * std::fabs(tokens.read_unit[h]) * read_scale;
        job.write_peak[h] = head.write.largest() * std::fabs(tokens.write_unit[h]) * write_scale;
        job.supported[h] = supported_transitions(tokens, h, head.gate);
    }
    return arena.used();
}

} // namespace
} // namespace ess::ESS_LEVEL::recurrence
