// Linearized multi-sampling's gradient: plain data, as api.h.
#pragma once
#include "api.h"

namespace stn {

// All arrays are dense, of `type`, F32 or F64. Axes are ordered x, y, z; a missing one has size 1.
struct Linearized {
    int type, ndim, threads, padding, samples;  // padding: ZEROS, BORDER or CONSTANT
    bool align_corners;
    i64 batch, channels, pixels, in[3];
    double spread;  // of the positions around a pixel's, in pixels of the image
    std::uint64_t seed;
    const void* image;     // (B, C, [D,] H, W)
    const void* grid;      // (B, pixels, d)
    const void* gradient;  // of the output, (B, C, pixels)
    const void* fill;      // (C,), or null for 0
    void* result;          // the gradient of the grid, (B, pixels, d)
    void* noise;           // or, where there is no image, what is drawn: (samples, d, B, pixels)
};

using Linearize = Status (*)(const Linearized&);

}  // namespace stn
