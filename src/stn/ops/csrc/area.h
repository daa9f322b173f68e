// Warps that average each output pixel over what it stands for in the image: plain data, as api.h.
#pragma once
#include "api.h"

namespace stn {

// Linear, in two or three dimensions, float32 or float64; the coordinates are AFFINE or GRID, dense, output and gradients dense.
// `problem.is_signal`: of two dimensions, the second of which is one pixel, and no copy of the image halves it.
// GRAD_COORDINATES writes the gradient of the Jacobian too.
struct Area {
    Problem problem;
    const void* jacobian;  // [input axis][output axis], in pixels of the image for a pixel of the output: one for each image
                           // (AFFINE) or each pixel (GRID), dense, in the working type
    void* grad_jacobian;   // the same
    int last;              // number of the smallest copy, each of which has half the size of the one before
};

using Average = Status (*)(const Area&);

constexpr int MOST_COPIES = 9;
// Of a copy's numbers, so that an offset within it is an int.
constexpr i64 MOST_NUMBERS = i64(1) << 30;

}  // namespace stn
