// AVX: 8 floats.
#pragma once

namespace stn::STN_SET {
namespace {

constexpr int LANES = 8;
typedef float vfloat __attribute__((vector_size(32)));
typedef int vint __attribute__((vector_size(32)));
typedef double vdouble __attribute__((vector_size(32)));

// The pairs (x, x + 1) at LANES / 2 offsets, each in one load of 64 bits.
inline vfloat pairs(const float* p, const i64* o) {
    return vfloat(vdouble{load<double>(p + o[0]), load<double>(p + o[1]), load<double>(p + o[2]), load<double>(p + o[3])});
}

// Left and right pixels of two vectors of pairs, and weights in the order of the pairs.
inline vfloat evens(vfloat a, vfloat b) { return STN_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14); }
inline vfloat odds(vfloat a, vfloat b) { return STN_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15); }
inline vfloat twice_low(vfloat a) { return STN_SHUFFLE(a, a, 0, 0, 1, 1, 2, 2, 3, 3); }
inline vfloat twice_high(vfloat a) { return STN_SHUFFLE(a, a, 4, 4, 5, 5, 6, 6, 7, 7); }

}  // namespace
}  // namespace stn::STN_SET
