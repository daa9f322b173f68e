// Pixel types: `get` reads a number of the working type, `put` rounds to even.
#pragma once
#include "simd.h"

namespace stn::STN_SET {
namespace {

typedef float f32;
typedef double f64;
struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };
typedef uint8_t u8;

inline float as_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
inline uint32_t as_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }

inline float get(float v) { return v; }
inline double get(double v) { return v; }
inline float get(uint8_t v) { return float(v); }
inline float get(bf16 v) { return as_float(uint32_t(v.bits) << 16); }
inline float get(f16 v) {
    uint32_t sign = uint32_t(v.bits & 0x8000) << 16, rest = uint32_t(v.bits & 0x7fff) << 13;
    float f = as_float(rest) * 0x1p112f;  // the exponent's bias; right for subnormals too
    uint32_t bits = as_bits(f);
    bits |= rest >= (0x7c00u << 13) ? 0x7f800000u : 0;
    return as_float(bits | sign);
}

inline void put(float& to, float v) { to = v; }
inline void put(double& to, double v) { to = v; }
inline void put(uint8_t& to, float v) {
    float r = v > 0 ? v : 0;  // NaN becomes 0
    r = r < 255 ? r : 255;
    to = uint8_t(as_bits(r + 0x1.8p23f));  // where the unit of the last bit is 1
}
inline void put(bf16& to, float v) {
    uint32_t bits = as_bits(v);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to.bits = uint16_t(v == v ? rounded : 0x7fc0);
}
inline void put(f16& to, float v) {
    uint32_t bits = as_bits(v), sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
    // Below the smallest normal number the addition of 0.5 rounds to multiples of 2^-24 in the last bits.
    uint32_t small = as_bits(as_float(rest) + 0.5f) - as_bits(0.5f);
    uint32_t normal = (rest - (112u << 23) + 0xfff + ((rest >> 13) & 1)) >> 13;
    uint32_t half = rest < (113u << 23) ? small : normal;
    half = rest >= 0x47800000u ? (rest > 0x7f800000u ? 0x7e00 : 0x7c00) : half;
    to.bits = uint16_t(half | sign);
}

// Of coordinates, weights and sums.
template <class T> using Working = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace
}  // namespace stn::STN_SET
