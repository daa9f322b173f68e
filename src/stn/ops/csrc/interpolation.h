// Interpolation kernels: the K taps of an axis begin `before` pixels to the left of the integer part.
#pragma once
#include "simd.h"

namespace stn::STN_SET {
namespace {

template <int MODE> struct Kernel;
template <> struct Kernel<NEAREST> { static constexpr int K = 1, before = 0; };
template <> struct Kernel<LINEAR> { static constexpr int K = 2, before = 0; };
template <> struct Kernel<CUBIC> { static constexpr int K = 4, before = 1; };

// Keys' kernel with A = -0.75 as one cubic polynomial for each tap: constant, linear, square, cube.
constexpr double A = -0.75;
constexpr double CUBIC_POLYNOMIAL[4][4] = {{0, A, -2 * A, A}, {1, 0, -(A + 3), A + 2}, {0, -A, 2 * A + 3, -(A + 2)}, {0, 0, A, -A}};

template <int MODE, class R>
inline void axis_weights(R t, R* w, R* dw) {
    if (MODE == NEAREST) {
        w[0] = t == t ? R(1) : t;
        dw[0] = 0;
    } else if (MODE == LINEAR) {
        w[0] = 1 - t, w[1] = t;
        dw[0] = -1, dw[1] = 1;
    } else {
        for (int k = 0; k < 4; k++) {
            const double* c = CUBIC_POLYNOMIAL[k];
            w[k] = ((R(c[3]) * t + R(c[2])) * t + R(c[1])) * t + R(c[0]);
            dw[k] = (R(3 * c[3]) * t + R(2 * c[2])) * t + R(c[1]);
        }
    }
}

}  // namespace
}  // namespace stn::STN_SET
