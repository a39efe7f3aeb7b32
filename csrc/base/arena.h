// Workspace that the caller owns, dealt out piece by piece. Without memory it only adds up, so that the function which
// says how much is needed and the one that uses it are the same lines.

#pragma once

#include <cstddef>
#include <cstdint>

// AddressSanitizer knows the caller's memory as one piece: it is told where each piece in it ends.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ESS_WATCH_ARENA
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define ESS_WATCH_ARENA
#endif
#ifdef ESS_WATCH_ARENA
#include <sanitizer/asan_interface.h>
#endif

namespace ess {
namespace {

class Arena {
  public:
    explicit Arena(void *memory = nullptr) : memory_(static_cast<char *>(memory)) {}
#ifdef ESS_WATCH_ARENA
    ~Arena() { // the memory is the caller's again
        if (memory_) __asan_unpoison_memory_region(memory_, static_cast<size_t>(used_));
    }
#endif

    // `count` objects of type T, on a cache line of their own; null when only measuring
    template <class T> T *take(int64_t count) {
        int64_t start = used_, bytes = count * static_cast<int64_t>(sizeof(T));
        used_ += (bytes + LINE - 1) / LINE * LINE + MARGIN;
        if (!memory_) return nullptr;
#ifdef ESS_WATCH_ARENA
        __asan_unpoison_memory_region(memory_ + start, static_cast<size_t>(bytes));
        __asan_poison_memory_region(memory_ + start + bytes, static_cast<size_t>(used_ - start - bytes));
#endif
        return reinterpret_cast<T *>(memory_ + start);
    }

    int64_t used() const { return used_; }
    bool measures_only() const { return memory_ == nullptr; }
    // what lies behind all that has been dealt out
    char *rest() const { return memory_ + used_; }

  private:
    static constexpr int64_t LINE = 64;
#ifdef ESS_WATCH_ARENA
    static constexpr int64_t MARGIN = LINE;
#else
    static constexpr int64_t MARGIN = 0;
#endif
    char *memory_;
    int64_t used_ = 0;
};

} // namespace
} // namespace ess
