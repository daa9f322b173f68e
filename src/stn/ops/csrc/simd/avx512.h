// AVX-512: 16 floats.
#pragma once

namespace stn::STN_SET {
namespace {

constexpr int LANES = 16;
typedef float vfloat __attribute__((vector_size(64)));
typedef int vint __attribute__((vector_size(64)));
typedef double vdouble __attribute__((vector_size(64)));

// The pairs (x, x + 1) at LANES / 2 offsets, each in one load of 64 bits.
inline vfloat pairs(const float* p, const i64* o) {
#if defined(__clang__) || __GNUC__ >= 12  // in halves and quarters: GCC makes a detour through memory for all at once
    typedef double two __attribute__((vector_size(16)));
    typedef double four __attribute__((vector_size(32)));
    auto load_two = [](const float* at, const i64* from) { return two{load<double>(at + from[0]), load<double>(at + from[1])}; };
    two a = load_two(p, o), b = load_two(p, o + 2), c = load_two(p, o + 4), d = load_two(p, o + 6);
    four low = __builtin_shufflevector(a, b, 0, 1, 2, 3), high = __builtin_shufflevector(c, d, 0, 1, 2, 3);
    return vfloat(__builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7));
#else
    return vfloat(vdouble{load<double>(p + o[0]), load<double>(p + o[1]), load<double>(p + o[2]), load<double>(p + o[3]),
                          load<double>(p + o[4]), load<double>(p + o[5]), load<double>(p + o[6]), load<double>(p + o[7])});
#endif
}

// Left and right pixels of two vectors of pairs, and weights in the order of the pairs.
inline vfloat evens(vfloat a, vfloat b) { return STN_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30); }
inline vfloat odds(vfloat a, vfloat b) { return STN_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31); }
inline vfloat twice_low(vfloat a) { return STN_SHUFFLE(a, a, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7); }
inline vfloat twice_high(vfloat a) { return STN_SHUFFLE(a, a, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15); }

}  // namespace
}  // namespace stn::STN_SET
