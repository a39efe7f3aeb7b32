// A team of OpenMP threads, so that one runtime (torch's own, in Python) holds all threads of the process. Without
// OpenMP, or with ESS_STD_THREADS (ThreadSanitizer understands only these), std::thread.

#include "base/threads.h"

#include <thread>

#if defined(ESS_STD_THREADS)
#include <vector>
#elif defined(_OPENMP)
#include <omp.h>
#endif

namespace ess {

void run_team(int32_t threads, void (*body)(void *context, int32_t thread), void *context) {
    if (threads <= 1) {
        body(context, 0);
        return;
    }
#if defined(ESS_STD_THREADS)
    std::vector<std::thread> others;
    for (int32_t t = 1; t < threads; t++) others.emplace_back(body, context, t);
    body(context, 0);
    for (std::thread &other : others) other.join();
#elif defined(_OPENMP)
#pragma omp parallel num_threads(threads)
    body(context, omp_get_thread_num());
#else
    body(context, 0);
#endif
}

void back_off(int64_t polls) {
    // Spin for about a microsecond; after that the operating system may give this core to another thread.
    if (polls >= 32) return std::this_thread::yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

} // namespace ess
