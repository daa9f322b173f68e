// A warp of dense arrays, as XLA and TensorFlow hand them over: their types and shapes are checked here, for both.
#pragma once
#include "api.h"

#if defined(__GNUC__)
#define STN_EXPORT extern "C" __attribute__((visibility("default")))
#else
#define STN_EXPORT extern "C"
#endif

namespace stn {

struct Array {
    int type, rank;  // type: of `Type`, anything else for those without kernels
    const i64* shape;
    void* data;
};

// As the front ends send them, in this order; all of them checked.
struct Options {
    i64 what, kind, mode, padding, align_corners, channels_last, threads;
};
constexpr int OPTIONS = 7;

// FORWARD: image, coordinates, then the fill where the padding is CONSTANT; `result` is the output.
// GRAD_COORDINATES: image, coordinates, the gradient that came in, then the fill.
// GRAD_IMAGE: coordinates, the gradient that came in; `result` has the shape of the image, in its type or the working type.
// Images are (B, C, [D,] H, W) or (B, [D,] H, W, C). Returns null, or what is wrong.
struct Arrays {
    const Array* given;
    int count;
    Array result;
};
using RunArrays = const char* (*)(const Options&, const Arrays&);
const char* run_arrays(const Options& options, const Arrays& arrays);

}  // namespace stn
