// Stationary velocities followed for one unit of time: plain data, as api.h.
#pragma once
#include "api.h"

namespace stn {

constexpr int MOST_STEPS = 30;

// All arrays are dense, (B, [D,] H, W, d), of `type`, F32 or F64. Axes are ordered x, y, z; a missing one has size 1.
struct Flow {
    int type, ndim, threads, steps;
    i64 batch, size[3];
    const void* velocity;
    void* displacement;    // written where there is no gradient
    const void* gradient;  // of the displacement, or null
    void* for_velocity;    // written where there is one
};

// NOT_FINITE, and nothing to be used, where a velocity is not a number or too large for what is added up.
using Follow = Status (*)(const Flow&);

}  // namespace stn
