// Threads for kernels: a team runs one body, and a counter hands out tasks. No kernel knows what threads are made of.

#pragma once

#include <atomic>
#include <cstdint>

namespace ess {

// Calls body(context, t) for t = 0..n-1, each on a thread of its own, the caller's among them; n is at most `threads`,
// and may be less: a body takes its work from a TaskCounter, and waits only for tasks that were handed out before its
// own.
void run_team(int32_t threads, void (*body)(void *context, int32_t thread), void *context);

// As above for anything that can be called with the number of the thread.
template <class Body> void team(int32_t threads, Body body) {
    run_team(threads, [](void *context, int32_t thread) { (*static_cast<Body *>(context))(thread); }, &body);
}

// Back-off while spinning on another thread's flag; `polls` counts how often the flag has been read so far.
void back_off(int64_t polls);

namespace { // every dispatch level has its own copy

// Hands out 0, 1, ... count - 1, each once, in this order.
class TaskCounter {
  public:
    explicit TaskCounter(int64_t count) : count_(count) {}
    // the next task, or -1 when there is none left
    int64_t take() {
        int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
        return task < count_ ? task : -1;
    }

  private:
    std::atomic<int64_t> next_{0};
    const int64_t count_;
};

// A counter of finished steps, on a cache line of its own. A thread that has waited for a step sees everything that was
// written before it.
struct alignas(64) Progress {
    int64_t steps;

    // to be called before any other thread can read the counter
    void reset() { steps = 0; }
    void advance() { __atomic_fetch_add(&steps, 1, __ATOMIC_RELEASE); }
    void wait_for(int64_t wanted) const {
        for (int64_t polls = 0; __atomic_load_n(&steps, __ATOMIC_ACQUIRE) < wanted; polls++) back_off(polls);
    }
};

} // namespace

} // namespace ess
