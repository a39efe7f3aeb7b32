// Workspace that the caller owns, dealt out piece by piece. Without memory it only adds up, so that the function which
// says how much is needed and the one that uses it are the same lines.

#pragma once

#include <cstdint>

namespace ess {
namespace {

class Arena {
  public:
    explicit Arena(void *memory = nullptr) : memory_(static_cast<char *>(memory)) {}

    // `count` objects of type T, on a cache line of their own; null when only measuring
    template <class T> T *take(int64_t count) {
        int64_t start = used_;
        used_ += (count * static_cast<int64_t>(sizeof(T)) + LINE - 1) / LINE * LINE;
        return memory_ ? reinterpret_cast<T *>(memory_ + start) : nullptr;
    }

    int64_t used() const { return used_; }

  private:
    static constexpr int64_t LINE = 64;
    char *memory_;
    int64_t used_ = 0;
};

} // namespace
} // namespace ess
