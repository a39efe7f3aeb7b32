// Everything that does not depend on the dispatch level. It comes before the level's target options: a standard function
// that was compiled for one machine must not be linked into code for another.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
// GCC's own header warns about itself where its functions are inlined
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include "arena.h"
#include "levels.h"
#include "threads.h"
