// What is to be done for a recurrence, as one list of tasks that threads take in order.
//
// A few heads are done together, then the next few, so that the parts of their blocks are still in cache when they are
// needed. For the heads that are done together:
//
//   parts     of every block
//   reach     the forward scan of every head: slow, and one block after the other
//   observe   the backward scan
//   answer    what the caller wants to know of every block: it needs F at its left edge and Q at its right edge
//
// A forward scan tells how far it has come, and the blocks behind it are answered meanwhile. Tasks wait only for tasks
// earlier in the list, so the first that is not finished never waits: no number of threads gets stuck.

#pragma once

#include "base/team_work.h"
#include "recurrence/parts.h"
#include "recurrence/scans.h"

namespace ess::ESS_LEVEL::recurrence {
namespace {

// What a thread needs to make parts and scans, if they are to be made.
struct RecurrenceWork {
    PartsWork parts;
    ScanWork scan;

    RecurrenceWork(Arena &arena, const ess_recurrence &of, const ess_recurrence_parts_job *making)
        : parts(arena, making ? of.n : 0, making ? of.c : 0, of.transitions),
          scan(arena, making ? of.n : 0, making ? of.c : 0, full_phi(of)) {}
};

// How the parts are made that a job asks to be filled on the way: from its tokens, if it has any.
class Making {
  public:
    template <class Job>
    explicit Making(const Job &job) : parts_{job.parts, job.tokens, nullptr, 0}, wanted_(job.tokens != nullptr) {}
    const ess_recurrence_parts_job *job() const { return wanted_ ? &parts_ : nullptr; }

  private:
    ess_recurrence_parts_job parts_;
    bool wanted_;
};

class RecurrenceTasks {
  public:
    // `making`: null where parts and scans are there; `answers`: whether anything is asked of blocks
    RecurrenceTasks(Arena &arena, const ess_recurrence &parts, const ess_recurrence_parts_job *making, bool answers,
                    int32_t threads)
        : parts_(parts), making_(making), answers_(answers), together_(heads_together(parts, threads)),
          progress_(arena.take<HeadProgress>(making ? parts.heads : 0)), tasks_(count(parts.heads)) {
        for (int64_t h = 0; progress_ && making && h < parts.heads; h++) progress_[h].reset();
    }

    // A thread's share of all tasks. `answer(number)` is called for blocks whose parts, F and Q are there.
    template <class Answer> void share(RecurrenceWork &work, Answer answer) {
        const int64_t each = count(together_), blocks = parts_.blocks;
        for (int64_t task = tasks_.take(); task >= 0; task = tasks_.take()) {
            const int64_t first = task / each * together_, left = parts_.heads - first;
            const int64_t heads = left < together_ ? left : together_;
            int64_t place = task % each;
            if (making_) {
                if (place < heads * blocks) {
                    make(first + place / blocks, place % blocks, work);
                    continue;
                }
                place -= heads * blocks;
                if (place < heads) {
                    reach(first + place, work);
                    continue;
                }
                place -= heads;
                if (place < heads) {
                    observe(first + place, work);
                    continue;
                }
                place -= heads;
                const HeadProgress &head = progress_[first + place / blocks];
                head.observed.wait_for(1);
                head.reached.wait_for(place % blocks + 1);
            }
            answer(first * blocks + place);
        }
    }

  private:
    struct HeadProgress {
        Progress parts, reached, observed; // blocks with parts; blocks with F; 1 when all have Q

        void reset() {
            parts.reset();
            reached.reset();
            observed.reset();
        }
    };

    const ess_recurrence &parts_;
    const ess_recurrence_parts_job *making_;
    const bool answers_;
    const int64_t together_;
    HeadProgress *progress_;
    TaskCounter tasks_;

    // How many heads are done together: so many that every thread finds a scan, two a head, and that there are at least
    // 8 blocks a thread.
    static int64_t heads_together(const ess_recurrence &parts, int32_t threads) {
        const int64_t scans = (threads + 1) / 2, enough = (8 * threads + parts.blocks - 1) / parts.blocks;
        return scans > enough ? scans : enough;
    }

    int64_t count(int64_t heads) const {
        return heads * ((making_ ? parts_.blocks + 2 : 0) + (answers_ ? parts_.blocks : 0));
    }

    void make(int64_t head, int64_t block, RecurrenceWork &work) {
        block_parts(*making_, head, block, work.parts);
        progress_[head].parts.advance();
    }

    void reach(int64_t head, RecurrenceWork &work) {
        Progress &reached = progress_[head].reached;
        progress_[head].parts.wait_for(parts_.blocks);
        reach_scan(parts_, head, work.scan, [&] { reached.advance(); });
    }

    void observe(int64_t head, RecurrenceWork &work) {
        progress_[head].parts.wait_for(parts_.blocks);
        observe_scan(parts_, head, work.scan);
        progress_[head].observed.advance();
    }
};

} // namespace
} // namespace ess::ESS_LEVEL::recurrence
