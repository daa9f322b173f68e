// The kernels, compiled once for each instruction set (STN_SET) and pixel type (STN_TYPE). Everything lives in a namespace of its own and
// nothing of the C++ library is used: an inline function compiled for a newer processor must not end up in older code.
//
// An output image is a sequence of pixels, worked through in chunks. For a chunk, in this order:
//   1. positions: for each pixel and axis the integer part `i` and the fraction `t` of the position (`Positions`);
//   2. classes: whether all taps of a pixel lie inside the image (`classify`);
//   3. values: pixels inside go through a loop without a single bounds test, the others tap by tap (`Taps`).
// Kinds of coordinates only know 1, kernels and paddings only 2 and 3. Gradients take the same three steps; that of the
// coordinates then reduces the gradient of each position in a fixed order (`Positions::reduce`).
#include "api.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#define STN_CAT_(a, b) a##b
#define STN_CAT(a, b) STN_CAT_(a, b)

namespace stn {
namespace STN_SET {
namespace {

#include "simd.h"
#include "pixels.h"
#include "interpolation.h"
#include "chunk.h"
#include "products.h"
#include "positions.h"
#include "classes.h"
#include "taps.h"
#include "inside.h"
#include "padded.h"
#include "channels.h"
#include "op.h"

template <class T, int D>
int run_mode(const Problem& p) {
    typedef typename Working<T>::type R;
    switch (p.mode) {
        case NEAREST: return Op<T, R, D, NEAREST>(p).run();
        case LINEAR: return Op<T, R, D, LINEAR>(p).run();
        default: return Op<T, R, D, CUBIC>(p).run();
    }
}

}  // namespace
}  // namespace STN_SET

int STN_CAT(STN_CAT(run_, STN_SET), STN_CAT(_, STN_TYPE))(const Problem& p) {
    return p.ndim == 2 ? STN_SET::run_mode<STN_SET::STN_TYPE, 2>(p) : STN_SET::run_mode<STN_SET::STN_TYPE, 3>(p);
}

}  // namespace stn
