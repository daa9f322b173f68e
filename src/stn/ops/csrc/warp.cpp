// Warps on the CPU, compiled once for each instruction set (STN_SET) and pixel type (STN_TYPE). Everything lives in a namespace
// of its own and of the C++ library only type traits are used: an inline function compiled for a newer processor must not end
// up in older code.
//
// NOTE [ How a warp goes ]
//
// An output image is a sequence of pixels, numbered row by row and worked through in chunks of 128 (chunk.h). For a chunk:
//   1. positions: for each pixel and axis the integer part `i` and the fraction `t` of where it is read, in pixels of the
//      image, from any kind of coordinates (positions.h; products.h for a basis);
//   2. classes: whether all taps of a pixel lie inside the image, none, or some (classes.h);
//   3. values: pixels inside go through a loop without a single bounds test (inside.h), pixels that read nothing are the
//      background, and those along the border go tap by tap, each with the padding applied to it (taps.h).
// Only 1 knows the kinds of coordinates, only 2 and 3 the interpolation and the padding.
//
// The gradient of the coordinates takes the same three steps, where the value is the slope of the image in the position times
// the gradient that came in, and reduces those in a fixed order (`Positions::reduce`). Where linear interpolation has a kink
// under a position of the chunk, 2 and 3 run a second time on its other side, and the mean counts (kinks.h). The gradient of
// the image takes the steps backwards: each part of it belongs to one task, which adds to its pixels in the output's order. So
// there are no atomic additions, and the bits do not depend on the number of threads.
//
// NOTE [ Roads ]
//
// A job (job.h) holds what all roads need: sizes, division into tasks, reading and writing of chunks. A road, one file in
// roads/, is a way to do the job that pays for some shapes and layouts. It says whether it is `BUILT` for a type, number of
// dimensions and interpolation, whether it `fits` a job, and has one or more of `forward`, `grad_coordinates` and
// `grad_image`. The first road that fits runs; which one, must follow from shapes and layouts alone, for the order of
// additions differs between them:
//
//   interleaved_bytes channels-last, uint8, 2 to 4       pixels are vectors, of which two loads read two neighbours with
//                     channels (linear, 2D)              all their channels; forward alone
//   packed_channels   16 channels or more, small image   the image is transposed into a padded copy whose pixels hold
//                     (linear, 2D)                       their channels next to each other; vectors are channels
//   padded_image      small image (2D)                   the image is copied with its padding around it: all pixels are
//                                                        inside, step 2 falls away
//   padded_tiles      gradient of an image (2D)          sums in a padded copy of the image or of a tile of it, whose
//                                                        margin is thrown away or added to the border
//   channel_vectors   channels-last, float, in whole     vectors of channels straight from the image
//                     vectors (linear, 2D)
//   channels_last     channels-last, all others          loops over the channels of a pixel
//   planes            all others                         steps 1 to 3 as above, on up to 8 planes at once
//
// What differs by instruction set is in simd/, all else is written in vectors of LANES floats (simd.h). module.cpp is the door
// to Python, dispatch.cpp picks the instruction set, api.h is what they and this file share.
#include "roads/channel_vectors.h"
#include "roads/channels_last.h"
#include "roads/interleaved_bytes.h"
#include "roads/packed_channels.h"
#include "roads/padded_image.h"
#include "roads/padded_tiles.h"
#include "roads/planes.h"

namespace stn {
namespace STN_SET {
namespace {

template <template <class, int, int> class Road, template <class, int, int> class... Rest, class T, int D, int MODE, class F>
Status first_that_fits(const Job<T, D, MODE>& job, F run) {
    typedef Road<T, D, MODE> First;
    if constexpr (First::BUILT) {
        First road{job};
        if (road.fits()) return run(road);
    }
    if constexpr (sizeof...(Rest) > 0) return first_that_fits<Rest...>(job, run);
    else return DONE;  // not reached: planes fit always
}

template <class T, int D, int MODE>
Status run_job(const Problem& p) {
    Job<T, D, MODE> job(p);
    if constexpr (!std::is_same_v<T, u8>) {
        if constexpr (MODE != NEAREST)  // whose slopes are 0
            if (p.what == GRAD_COORDINATES)
                return first_that_fits<PackedChannels, PaddedImage, ChannelVectors, ChannelsLast, Planes>(job, [](auto& road) { return road.grad_coordinates(); });
        if (p.what == GRAD_IMAGE)
            return first_that_fits<PackedChannels, PaddedTiles, ChannelVectors, ChannelsLast, Planes>(job, [](auto& road) { return road.grad_image(); });
    }
    return first_that_fits<InterleavedBytes, PackedChannels, PaddedImage, ChannelVectors, ChannelsLast, Planes>(job, [](auto& road) { return road.forward(); });
}

template <class T, int D>
Status run_mode(const Problem& p) {
    switch (p.mode) {
        case NEAREST:
        case INTEGER: return run_job<T, D, NEAREST>(p);
        case LINEAR: return run_job<T, D, LINEAR>(p);
        default: return run_job<T, D, CUBIC>(p);
    }
}

}  // namespace
}  // namespace STN_SET

#define STN_JOIN_(a, b, c, d) a##b##c##d
#define STN_JOIN(a, b, c, d) STN_JOIN_(a, b, c, d)

Status STN_JOIN(run_, STN_SET, _, STN_TYPE)(const Problem& p) {
    using namespace STN_SET;
    return p.ndim == 2 ? run_mode<STN_TYPE, 2>(p) : run_mode<STN_TYPE, 3>(p);
}

}  // namespace stn
