// Vectors as wide as the registers, in the notation of GCC and Clang; what differs by instruction set is in simd/.
#pragma once
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <type_traits>
#include <utility>

#include "api.h"

// Always inline: GCC takes a function that does nothing else for one without effect and drops the calls.
#define STN_INLINE inline __attribute__((always_inline))

// Called once for a chunk or a pixel along the border, from many places: compiled once.
#define STN_SHARED __attribute__((noinline))

// Keeps a pointer's target in memory: offsets hoisted out of a loop over channels are more than there are registers.
#define STN_REREAD(pointer) asm("" : "+r"(pointer))

// The lanes of a and b, which are numbered as if b followed a, in the order of the arguments.
#if defined(__clang__) || __GNUC__ >= 12
#define STN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define STN_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, vint{__VA_ARGS__})
#endif

namespace stn::STN_SET {
namespace {

template <class V, class T>
inline V load(const T* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}
template <class V, class T>
inline void store(T* p, V v) {
    memcpy(p, &v, sizeof v);
}

STN_INLINE void prefetch(const void* from, i64 bytes) {
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) + uintptr_t(bytes)));
}

}  // namespace
}  // namespace stn::STN_SET

#if defined(__AVX512F__)
#include "simd/avx512.h"
#elif defined(__AVX__)
#include "simd/avx.h"
#else
#include "simd/narrow.h"
#endif

namespace stn::STN_SET {
namespace {

template <int... I> using Order = std::integer_sequence<int, I...>;
typedef std::make_integer_sequence<int, LANES> Lanes;

// The 32 bits at each of LANES offsets.
template <class T, int... I>
inline vint words(const T* p, const i64* o, Order<I...>) { return vint{load<int>(p + o[I])...}; }

// The 16 bits at each of LANES offsets.
template <class T, int... I>
inline vint halves(const T* p, const i64* o, Order<I...>) { return vint{int(load<uint16_t>(p + o[I]))...}; }

inline vfloat floats(vint v) { return __builtin_convertvector(v, vfloat); }

// As a sum of weighted pixels: a + t * (b - a) would turn infinite pixels into NaN.
template <class V>
inline V mix(V a, V b, V s, V t) { return s * a + t * b; }

// Exchanges the upper half of every 2 S lanes of a with the lower half of those of b.
template <int S, int... I>
inline void exchange(vfloat& a, vfloat& b, Order<I...>) {
    vfloat low = STN_SHUFFLE(a, b, ((I & S) ? LANES + (I ^ S) : I)...);
    b = STN_SHUFFLE(a, b, ((I & S) ? LANES + I : (I ^ S))...);
    a = low;
}

template <int S = 1>
inline void transpose(vfloat* v) {
    if constexpr (S < LANES) {
        for (int k = 0; k < LANES; k++)
            if (!(k & S)) exchange<S>(v[k], v[k + S], Lanes());
        transpose<2 * S>(v);
    }
}

// Lane k of the result is the sum of the lanes of v[k].
template <int S = 1>
inline vfloat sums_of(vfloat* v) {
    if constexpr (S < LANES) {
        for (int k = 0; k < LANES; k += 2 * S) {
            exchange<S>(v[k], v[k + S], Lanes());
            v[k] += v[k + S];
        }
        return sums_of<2 * S>(v);
    }
    return v[0];
}

}  // namespace
}  // namespace stn::STN_SET
