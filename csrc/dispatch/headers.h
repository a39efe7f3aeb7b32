// Everything that does not depend on the dispatch level. It comes before the level's target options: a standard
// function that was compiled for one machine must not be linked into code for another.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
// GCC's own header warns about itself where its functions are inlined; Clang does not know the second warning's name
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "base/arena.h"
#include "base/threads.h"
#include "dispatch/levels.h"
