// Room base/: the only files that know registers (simd.h), memory (arena.h) and threads (threads.h). It includes
// nothing of another room.
//
// The only file that knows what a vector register is. Kernels are written against it.
//
// Vec<T> holds `width<T>` numbers of type T (a GCC/Clang vector: + - * / and comparisons work lane by lane), Mask<T>
// the result of a comparison. The file of dispatch/ that includes this sets ESS_LEVEL, the namespace, and
// ESS_VECTOR_BYTES: 64 (AVX-512), 32 (AVX2) or 16 (any machine). Products and sums are meant to be fused
// (`-ffp-contract=fast`).

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define ESS_INLINE inline __attribute__((always_inline))
// One copy, whose roundings are the same wherever it is called from: the compiler fuses products and sums as it likes,
// and otherwise in another way in each copy, such as one for an argument that is always the same.
#if defined(__clang__)
#define ESS_ONE_COPY __attribute__((noinline))
#else
#define ESS_ONE_COPY __attribute__((noinline, noclone))
#endif
// before a loop with a fixed number of turns whose arrays are to live in registers
#define ESS_UNROLL _Pragma("GCC unroll 16")

namespace ess::ESS_LEVEL {
namespace {

template <class T> struct VectorOf {
    typedef T V __attribute__((vector_size(ESS_VECTOR_BYTES), may_alias));
    typedef T Unaligned __attribute__((vector_size(ESS_VECTOR_BYTES), may_alias, aligned(sizeof(T))));
    typedef decltype(V{} > V{}) M;
};
template <class T> using Vec = typename VectorOf<T>::V;
template <class T> using Mask = typename VectorOf<T>::M;
template <class T> constexpr int width = ESS_VECTOR_BYTES / static_cast<int>(sizeof(T));

using V = Vec<double>;
constexpr int W = width<double>;

template <class T> ESS_INLINE Vec<T> load(const T *p) {
    return *reinterpret_cast<const typename VectorOf<T>::Unaligned *>(p);
}
template <class T> ESS_INLINE void store(T *p, Vec<T> x) {
    *reinterpret_cast<typename VectorOf<T>::Unaligned *>(p) = x;
}
// x in every lane
template <class T> ESS_INLINE Vec<T> all(T x) { return x - Vec<T>{}; }
ESS_INLINE V all(double x) { return x - V{}; }

template <class X, class Y> ESS_INLINE Y select(X mask, Y yes, Y no) { return mask ? yes : no; }
// The larger and the smaller of two, in one instruction. If either is NaN the result is the second operand, so a
// maximum that a loop carries along forgets a NaN at the next number. Only for loops that detect NaN in another way,
// which their comments name.
template <class X> ESS_INLINE X larger(X a, X b) { return a > b ? a : b; }
template <class X> ESS_INLINE X smaller(X a, X b) { return a < b ? a : b; }
// The same, NaN where either is NaN: for all that certainty rests on.
template <class X> ESS_INLINE X max(X a, X b) { return a != a ? a : larger(a, b); }
template <class X> ESS_INLINE X min(X a, X b) { return a != a ? a : smaller(a, b); }

ESS_INLINE Vec<double> abs(Vec<double> x) {
    return reinterpret_cast<Vec<double>>(reinterpret_cast<Mask<double>>(x) & 0x7fffffffffffffff);
}
ESS_INLINE Vec<float> abs(Vec<float> x) {
    return reinterpret_cast<Vec<float>>(reinterpret_cast<Mask<float>>(x) & 0x7fffffff);
}

// The larger of `largest`, which is not negative, and the magnitude of x; may forget a NaN (see `larger`).
ESS_INLINE Vec<double> larger_magnitude(Vec<double> largest, Vec<double> x) {
#if ESS_VECTOR_BYTES == 64
    return (Vec<double>)_mm512_range_pd((__m512d)largest, (__m512d)x,
                                        11); // the one with the larger magnitude, without sign
#else
    return larger(abs(x), largest);
#endif
}

ESS_INLINE Vec<double> sqrt(Vec<double> x) {
#if ESS_VECTOR_BYTES == 64
    return (Vec<double>)_mm512_sqrt_pd((__m512d)x);
#elif ESS_VECTOR_BYTES == 32
    return (Vec<double>)_mm256_sqrt_pd((__m256d)x);
#else
    for (int l = 0; l < width<double>; l++) x[l] = std::sqrt(x[l]);
    return x;
#endif
}
ESS_INLINE Vec<float> sqrt(Vec<float> x) {
#if ESS_VECTOR_BYTES == 64
    return (Vec<float>)_mm512_sqrt_ps((__m512)x);
#elif ESS_VECTOR_BYTES == 32
    return (Vec<float>)_mm256_sqrt_ps((__m256)x);
#else
    for (int l = 0; l < width<float>; l++) x[l] = std::sqrt(x[l]);
    return x;
#endif
}

// a b + c, rounded once where the level has such an instruction: for results that must not depend on what the compiler
// makes of two copies of the same expression
ESS_INLINE Vec<double> fused(Vec<double> a, Vec<double> b, Vec<double> c) {
#if ESS_VECTOR_BYTES == 64
    return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif ESS_VECTOR_BYTES == 32
    return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
    return (Vec<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
    return a * b + c;
#endif
}
ESS_INLINE Vec<float> fused(Vec<float> a, Vec<float> b, Vec<float> c) {
#if ESS_VECTOR_BYTES == 64
    return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif ESS_VECTOR_BYTES == 32
    return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (Vec<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

// whether any lane of a mask is set
template <class M> ESS_INLINE bool any(M mask) {
#if ESS_VECTOR_BYTES == 64
    return _mm512_test_epi64_mask((__m512i)mask, (__m512i)mask) != 0;
#elif ESS_VECTOR_BYTES == 32
    return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
    typedef int64_t Words __attribute__((vector_size(16)));
    Words w = (Words)mask;
    return (w[0] | w[1]) != 0;
#endif
}

template <class X> ESS_INLINE auto horizontal_sum(X x) {
    auto r = x[0];
    for (unsigned l = 1; l < sizeof(x) / sizeof(x[0]); l++) r += x[l];
    return r;
}
#if ESS_VECTOR_BYTES == 64
// pairwise: a fraction of the latency
ESS_INLINE double horizontal_sum(V x) { return _mm512_reduce_add_pd((__m512d)x); }
#endif
// the largest and the smallest lane, NaN if any is
template <class X> ESS_INLINE auto horizontal_max(X x) {
    auto r = x[0];
    for (unsigned l = 1; l < sizeof(x) / sizeof(x[0]); l++) r = max(r, x[l]);
    return r;
}
template <class X> ESS_INLINE auto horizontal_min(X x) {
    auto r = x[0];
    for (unsigned l = 1; l < sizeof(x) / sizeof(x[0]); l++) r = min(r, x[l]);
    return r;
}

// the numbers of the lanes
constexpr double LANES[8] = {0, 1, 2, 3, 4, 5, 6, 7};

// of W rows that start with `row`, those from `first` on; zero in place of the others
ESS_INLINE V from_row(V x, int64_t row, int64_t first) {
    return select(load(LANES) >= all(static_cast<double>(first - row)), x, V{});
}

#if ESS_VECTOR_BYTES == 64
// the processor's reductions ignore NaN, so NaN is tested for first
ESS_INLINE double horizontal_max(Vec<double> x) { return any(x != x) ? NAN : _mm512_reduce_max_pd((__m512d)x); }
ESS_INLINE float horizontal_max(Vec<float> x) { return any(x != x) ? NAN : _mm512_reduce_max_ps((__m512)x); }
ESS_INLINE double horizontal_min(Vec<double> x) { return any(x != x) ? NAN : _mm512_reduce_min_pd((__m512d)x); }
ESS_INLINE float horizontal_min(Vec<float> x) { return any(x != x) ? NAN : _mm512_reduce_min_ps((__m512)x); }
#endif

// bit l: whether lane l of a mask is set
template <class T> ESS_INLINE uint32_t lanes_of(Mask<T> mask) {
#if ESS_VECTOR_BYTES == 64
    if (sizeof(T) == 8) return _mm512_movepi64_mask((__m512i)mask);
    return _mm512_movepi32_mask((__m512i)mask);
#elif ESS_VECTOR_BYTES == 32
    if (sizeof(T) == 8) return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)mask));
    return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#else
    uint32_t bits = 0;
    for (int l = 0; l < width<T>; l++) bits |= static_cast<uint32_t>(mask[l] != 0) << l;
    return bits;
#endif
}

// exp to 2 ulp; exp(-inf) = 0, results below the normal numbers are zero, NaN stays NaN, above 709.7 the largest
// result.
ESS_INLINE V exp(V x) {
    const double log2e = 1.4426950408889634074, ln2_high = 6.93147180369123816490e-01,
                 ln2_low = 1.90821492927058770002e-10;
    const double round = 6755399441055744.0;                 // adding it rounds to an integer in the low bits
    V clamped = smaller(larger(x, all(-745.0)), all(709.7)); // NaN is put back at the end
    V shifted = clamped * log2e + round;
    Mask<double> exponent = reinterpret_cast<Mask<double>>(shifted);
    V k = shifted - round;
    V r = clamped - k * ln2_high;
    r = r - k * ln2_low;
    V p = all(1.0 / 479001600);
    const double taylor[] = {1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
                             1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5,         1.0,        1.0};
    ESS_UNROLL
    for (double coefficient : taylor) p = p * r + coefficient;
    V scaled = reinterpret_cast<V>(reinterpret_cast<Mask<double>>(p) + (exponent << 52));
    return select(x != x, x, select(x < all(-708.0), V{}, scaled));
}

// Splits positive finite normal x into x 2^e, x in [sqrt(1/2), sqrt(2)): leaves x, returns e.
ESS_INLINE V take_exponent(V &x) {
    Mask<double> bits = reinterpret_cast<Mask<double>>(x);
    Mask<double> exponent = (bits - 0x3fe6a09e667f3bcd) >> 52;
    x = reinterpret_cast<V>(bits - (exponent << 52));
    return reinterpret_cast<V>(exponent + reinterpret_cast<Mask<double>>(all(6755399441055744.0))) - 6755399441055744.0;
}

// log of x in [sqrt(1/2), sqrt(2)): atanh series
ESS_INLINE V log_near_one(V x) {
    V f = x - 1.0, s = f / (x + 1.0), z = s * s;
    V p = all(1.0 / 21);
    const double series[] = {1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13, 1.0 / 11, 1.0 / 9, 1.0 / 7, 1.0 / 5, 1.0 / 3};
    ESS_UNROLL
    for (double coefficient : series) p = p * z + coefficient;
    V r = s * z * p;
    return r + r + (s + s);
}

// log of positive finite normal numbers, to 1 ulp
ESS_INLINE V log(V x) {
    V e = take_exponent(x);
    return e * 6.93147180369123816490e-01 + (log_near_one(x) + e * 1.90821492927058770002e-10);
}

// the W x W tile in r[0..W), rows to columns
ESS_INLINE void transpose_tile(V *r) {
#if ESS_VECTOR_BYTES == 64
    V t[8], u[8];
    ESS_UNROLL
    for (int i = 0; i < 8; i += 2) {
        t[i] = (V)_mm512_unpacklo_pd((__m512d)r[i], (__m512d)r[i + 1]);
        t[i + 1] = (V)_mm512_unpackhi_pd((__m512d)r[i], (__m512d)r[i + 1]);
    }
    const Mask<double> low = {0, 1, 8, 9, 4, 5, 12, 13}, high = {2, 3, 10, 11, 6, 7, 14, 15};
    ESS_UNROLL
    for (int h = 0; h < 8; h += 4) {
        ESS_UNROLL
        for (int i = 0; i < 2; i++) {
            u[h + i] = (V)_mm512_permutex2var_pd((__m512d)t[h + i], (__m512i)low, (__m512d)t[h + i + 2]);
            u[h + i + 2] = (V)_mm512_permutex2var_pd((__m512d)t[h + i], (__m512i)high, (__m512d)t[h + i + 2]);
        }
    }
    ESS_UNROLL
    for (int i = 0; i < 4; i++) {
        r[i] = (V)_mm512_shuffle_f64x2((__m512d)u[i], (__m512d)u[i + 4], 0x44);
        r[i + 4] = (V)_mm512_shuffle_f64x2((__m512d)u[i], (__m512d)u[i + 4], 0xee);
    }
#elif ESS_VECTOR_BYTES == 32
    __m256d a = _mm256_unpacklo_pd((__m256d)r[0], (__m256d)r[1]), b = _mm256_unpackhi_pd((__m256d)r[0], (__m256d)r[1]);
    __m256d c = _mm256_unpacklo_pd((__m256d)r[2], (__m256d)r[3]), d = _mm256_unpackhi_pd((__m256d)r[2], (__m256d)r[3]);
    r[0] = (V)_mm256_permute2f128_pd(a, c, 0x20);
    r[1] = (V)_mm256_permute2f128_pd(b, d, 0x20);
    r[2] = (V)_mm256_permute2f128_pd(a, c, 0x31);
    r[3] = (V)_mm256_permute2f128_pd(b, d, 0x31);
#else
    V a = {r[0][0], r[1][0]}, b = {r[0][1], r[1][1]};
    r[0] = a;
    r[1] = b;
#endif
}

// the sums of the lanes of r[0], ... r[W - 1], one in each lane; r is overwritten
ESS_INLINE V lane_sums(V *r) {
#if ESS_VECTOR_BYTES == 64
    // each step adds halves while it transposes: half the shuffles
    V pairs[4], quads[2];
    ESS_UNROLL
    for (int i = 0; i < 4; i++) {
        pairs[i] = (V)_mm512_unpacklo_pd((__m512d)r[2 * i], (__m512d)r[2 * i + 1]) +
                   (V)_mm512_unpackhi_pd((__m512d)r[2 * i], (__m512d)r[2 * i + 1]);
    }
    const Mask<double> low = {0, 1, 8, 9, 4, 5, 12, 13}, high = {2, 3, 10, 11, 6, 7, 14, 15};
    ESS_UNROLL
    for (int i = 0; i < 2; i++) {
        quads[i] = (V)_mm512_permutex2var_pd((__m512d)pairs[2 * i], (__m512i)low, (__m512d)pairs[2 * i + 1]) +
                   (V)_mm512_permutex2var_pd((__m512d)pairs[2 * i], (__m512i)high, (__m512d)pairs[2 * i + 1]);
    }
    return (V)_mm512_shuffle_f64x2((__m512d)quads[0], (__m512d)quads[1], 0x44) +
           (V)_mm512_shuffle_f64x2((__m512d)quads[0], (__m512d)quads[1], 0xee);
#else
    transpose_tile(r);
    ESS_UNROLL
    for (int half = W / 2; half > 0; half /= 2) {
        ESS_UNROLL
        for (int i = 0; i < half; i++) r[i] += r[i + half];
    }
    return r[0];
#endif
}

// The numbers 0 .. N-1 as a parameter pack.
template <int... L> struct Lanes {};
template <int N, int... L> struct LanesBelow : LanesBelow<N - 1, N - 1, L...> {};
template <int... L> struct LanesBelow<0, L...> {
    typedef Lanes<L...> Type;
};

// Swaps the off-diagonal DISTANCE x DISTANCE squares of two rows of a tile.
template <class T, int DISTANCE, int... L> ESS_INLINE void swap_squares(Vec<T> &a, Vec<T> &b, Lanes<L...>) {
    constexpr int N = width<T>;
#if defined(__clang__)
    Vec<T> low = __builtin_shufflevector(a, b, (L & DISTANCE ? N + L - DISTANCE : L)...);
    Vec<T> high = __builtin_shufflevector(a, b, (L & DISTANCE ? N + L : L + DISTANCE)...);
#else
    Vec<T> low = __builtin_shuffle(a, b, Mask<T>{(L & DISTANCE ? N + L - DISTANCE : L)...});
    Vec<T> high = __builtin_shuffle(a, b, Mask<T>{(L & DISTANCE ? N + L : L + DISTANCE)...});
#endif
    a = low;
    b = high;
}
template <class T, int DISTANCE> ESS_INLINE void transpose_squares(Vec<T> *r) {
    if constexpr (DISTANCE < width<T>) {
        ESS_UNROLL
        for (int i = 0; i < width<T>; i++) {
            if (!(i & DISTANCE))
                swap_squares<T, DISTANCE>(r[i], r[i + DISTANCE], typename LanesBelow<width<T>>::Type());
        }
        transpose_squares<T, 2 * DISTANCE>(r);
    }
}

// the width x width tile in r[0..width), rows to columns
ESS_INLINE void transpose_tile(Vec<float> *r) { transpose_squares<float, 1>(r); }

// Denormal numbers cost a hundred times a normal one: off for this thread while the object lives.
class FlushDenormals {
  public:
    FlushDenormals() {
#if defined(__x86_64__)
        before_ = _mm_getcsr();
        _mm_setcsr(static_cast<unsigned>(before_) | 0x8040u);
#elif defined(__aarch64__)
        __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
        __asm__ volatile("msr fpcr, %0" ::"r"(before_ | (uint64_t{1} << 24)));
#endif
    }
    ~FlushDenormals() {
#if defined(__x86_64__)
        _mm_setcsr(static_cast<unsigned>(before_));
#elif defined(__aarch64__)
        __asm__ volatile("msr fpcr, %0" ::"r"(before_));
#endif
    }
    FlushDenormals(const FlushDenormals &) = delete;
    FlushDenormals &operator=(const FlushDenormals &) = delete;

  private:
    uint64_t before_ = 0;
};

// keeps a broadcast in a register where the compiler would load it again for every use
ESS_INLINE void keep_in_register(V &x) {
#if ESS_VECTOR_BYTES == 64
    __asm__("" : "+v"(x));
#elif defined(__x86_64__)
    __asm__("" : "+x"(x));
#else
    (void)x;
#endif
}

} // namespace
} // namespace ess::ESS_LEVEL
