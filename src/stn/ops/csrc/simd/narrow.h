// Registers of 128 bits, SSE2 and NEON: 4 floats.
#pragma once

namespace stn::STN_SET {
namespace {

constexpr int LANES = 4;
typedef float vfloat __attribute__((vector_size(16)));
typedef int vint __attribute__((vector_size(16)));
typedef double vdouble __attribute__((vector_size(16)));

// The pairs (x, x + 1) at LANES / 2 offsets, each in one load of 64 bits.
inline vfloat pairs(const float* p, const i64* o) { return vfloat(vdouble{load<double>(p + o[0]), load<double>(p + o[1])}); }

// Left and right pixels of two vectors of pairs, and weights in the order of the pairs.
inline vfloat evens(vfloat a, vfloat b) { return STN_SHUFFLE(a, b, 0, 2, 4, 6); }
inline vfloat odds(vfloat a, vfloat b) { return STN_SHUFFLE(a, b, 1, 3, 5, 7); }
inline vfloat twice_low(vfloat a) { return STN_SHUFFLE(a, a, 0, 0, 1, 1); }
inline vfloat twice_high(vfloat a) { return STN_SHUFFLE(a, a, 2, 2, 3, 3); }

}  // namespace
}  // namespace stn::STN_SET
