// Everything that does not depend on the dispatch level. It comes before the level's target options: a standard function
// that was compiled for one machine must not be linked into code for another.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "arena.h"
#include "levels.h"
#include "threads.h"
