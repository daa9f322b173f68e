// One warp: what to read, where to read it, and what to compute. Plain data, so that the same kernels can be compiled
// once for every instruction set.
#pragma once
#include <cstdint>

namespace stn {

using i64 = std::int64_t;

enum Mode { NEAREST, LINEAR, CUBIC };
enum Padding { ZEROS, BORDER, REFLECTION, CIRCULAR, CONSTANT };
enum Coords { AFFINE, PROJECTIVE, BASIS, GRID };
enum Type { F32, F64, BF16, F16, U8 };
enum What { FORWARD, GRAD_COORDS, GRAD_IMAGE };

// Axes are ordered x, y, z; a missing one has size 1 and stride 0. Strides count elements.
struct Problem {
    int what, ndim, mode, padding, coords, type, threads;
    bool align_corners;
    i64 batch, channels;
    i64 in[3], out[3];
    i64 image_batch, image_channel, image_stride[3];
    // The output or its gradient: pixels of one image are numbered row by row, `out_pixel` apart.
    i64 out_batch, out_channel, out_pixel;
    // AFFINE: (B, d, d+1), PROJECTIVE: (B, d+1, d+1), dense, in the working type; BASIS: coefficients (B, K, d), dense,
    // double; GRID: (B, *out, d) with these strides, in the working type.
    const void* coords_data;
    i64 grid_batch, grid_stride[3], grid_axis;
    const double* basis;  // (pixel, K), dense over pixels: element (n, k) at k * basis_stride + n
    i64 basis_size, basis_stride;
    const void* fill;  // of the working type, one per channel, or null for 0
    const void* image;
    void* output;       // FORWARD: written; otherwise the gradient that came in, read
    void* grad_coords;  // dense, as coords_data; GRID: (B, pixel, d)
    void* grad_image;   // with the strides of `image`, all written by the kernel, in the working type,
    bool grad_as_image; // or in that of the image: then some cases cannot add it up
};

// Kernels return 0, 1 where there was no memory, or 2 where a gradient has to be of the working type.
#define STN_KERNELS(set)                \
    int run_##set##_f32(const Problem&);  \
    int run_##set##_f64(const Problem&);  \
    int run_##set##_bf16(const Problem&); \
    int run_##set##_f16(const Problem&);  \
    int run_##set##_u8(const Problem&);
STN_KERNELS(baseline)
STN_KERNELS(v3)
STN_KERNELS(v4)
#undef STN_KERNELS

}  // namespace stn
