// One warp: what to read, where to read it, and what to compute. Plain data, so that the same code can be compiled once
// for every instruction set.
#pragma once
#include <cstdint>

namespace stn {

using i64 = std::int64_t;

enum What { FORWARD, GRAD_COORDINATES, GRAD_IMAGE };
enum Mode { NEAREST, LINEAR, CUBIC, INTEGER };  // the last: of two pixels equally near the one to the right, not the even one
enum Padding { ZEROS, BORDER, REFLECTION, CIRCULAR, CONSTANT };
enum Kind { AFFINE, PROJECTIVE, BASIS, GRID, PIXELS, FIELD };  // PIXELS for the door alone: a grid that is `in_pixels`
enum Type { F32, F64, BF16, F16, U8, TYPES };

// An interpolation kernel, the same along every axis: the weight of each of its taps is a polynomial in u = t - 1/2, where t is
// the fraction of a position and lies between 0 and 1. Positions of kernels of an odd number of taps are moved by half a pixel
// first, so that it does. The taps begin (taps - 1) / 2 pixels to the left of the integer part.
struct Polynomials {
    static constexpr int MOST_TAPS = 6, MOST_DEGREE = 23, MOST_POLES = 2;
    int taps, degree;
    double weight[MOST_DEGREE + 1][MOST_TAPS];  // by power and tap
    // Of the recursive filter that turns an image into the kernel's coefficients, and how far it reaches; none for kernels that
    // interpolate by themselves.
    int poles, reach;
    double pole[MOST_POLES];
};

// Axes are ordered x, y, z; a missing one has size 1 and stride 0. Strides count elements.
struct Problem {
    int what, ndim, mode, padding, kind, type, threads;
    bool align_corners;
    bool in_pixels;  // GRID: positions in pixels of the image, not normalized
    bool is_signal;  // of two dimensions, the second of which is one pixel that everybody reads: `polynomials` alone
    i64 batch, channels;
    i64 in[3], out[3];
    i64 margin[3];  // of `in`, on each side: pixels that positions do not count
    double shift;   // of positions, in pixels
    i64 image_batch, image_channel, image_stride[3];
    // The output or its gradient: pixels of one image are numbered row by row, `out_pixel` apart.
    i64 out_batch, out_channel, out_pixel;
    // AFFINE: (B, d, d+1), PROJECTIVE: (B, d+1, d+1), dense, in the working type; BASIS: coefficients (B, K, d), dense,
    // double; GRID: (B, *out, d) with these strides, in the working type; FIELD: displacements (B, *field, d), dense, in the working
    // type, on a lattice whose border points lie on -1 and 1.
    const void* coordinates;
    i64 grid_batch, grid_stride[3], grid_axis;
    i64 field[3];
    const double* basis;  // (pixel, K), dense over pixels: element (n, k) at k * basis_stride + n
    i64 basis_size, basis_stride;
    const void* fill;  // of the working type, one per channel, or null for 0
    const void* image;
    void* output;            // FORWARD: written; otherwise the gradient that came in, read
    void* grad_coordinates;  // dense, as `coordinates`; GRID: (B, pixel, d)
    void* grad_image;        // with the strides of `image`, all of it written, in the working type,
    bool grad_as_image;      // or in that of the image: then some cases cannot add it up
    const Polynomials* polynomials;  // instead of a mode
};

// Positions within KINK * epsilon * n pixels of a pixel's centre, on an axis of n pixels, lie on it: see kinks.h.
constexpr int KINK = 4;

// WORKING_TYPE: this gradient has to be of the working type. NOT_FINITE: a recursive filter met numbers that are not finite,
// which would be all over its output.
enum Status { DONE, NO_MEMORY, WORKING_TYPE, NOT_FINITE };

using Run = Status (*)(const Problem&);

// dispatch.cpp: the instruction set that runs. `choose` takes the newest one that was built and that the processor has, none
// newer than `limit` unless that is empty, and returns its name, or null where no instruction set has the name `limit`.
const char* choose(const char* limit);
const char* instruction_set();
bool is_built(int set);
Run chosen(int type);
Run chosen_polynomials(int type);  // F32 or F64

}  // namespace stn
