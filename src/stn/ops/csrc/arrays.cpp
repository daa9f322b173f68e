#include "arrays.h"

#include <cstring>

#include "process.h"

namespace stn {
namespace {

constexpr std::size_t SIZE[] = {4, 8, 2, 2, 1};

bool has_shape(const Array& array, const i64* shape, int rank) {
    return array.rank == rank && !std::memcmp(array.shape, shape, sizeof(i64) * std::size_t(rank));
}

i64 count(const Array& array) {
    i64 n = 1;
    for (int a = 0; a < array.rank; a++) n *= array.shape[a];
    return n;
}

// Where the pixels of an image lie.
struct Layout {
    i64 size[3], stride[3], batch, channel;

    Layout(const Array& image, bool channels_last) {
        const int d = image.rank - 2;
        const i64 channels = image.shape[channels_last ? d + 1 : 1];
        i64 step = channels_last ? channels : 1;
        for (int a = 0; a < 3; a++) {
            size[a] = a < d ? image.shape[(channels_last ? d : d + 1) - a] : 1;
            stride[a] = a < d ? step : 0;
            step *= size[a];
        }
        channel = channels_last ? 1 : step;
        batch = channels_last ? step : step * channels;
    }
};

bool within(i64 value, i64 last) { return value >= 0 && value <= last; }

}  // namespace

const char* run_arrays(const Options& o, const Arrays& arrays) {
    if (!within(o.what, GRAD_IMAGE) || !within(o.kind, GRID) || o.kind == BASIS || !within(o.mode, CUBIC) ||
        !within(o.padding, CONSTANT) || !within(o.align_corners, 1) || !within(o.channels_last, 1))
        return "options: expected the numbers of the native module";
    const bool last = o.channels_last, has_fill = o.padding == CONSTANT && o.what != GRAD_IMAGE;
    if (o.what == GRAD_COORDINATES && o.mode == NEAREST) return "mode: the gradient of the coordinates is 0 for the nearest pixel";
    const int plain = o.what == GRAD_COORDINATES ? 3 : 2;
    if (arrays.count != plain + has_fill) return "expected an array of another number";
    const Array* given = arrays.given;
    const Array& result = arrays.result;
    const Array& image = o.what == GRAD_IMAGE ? result : given[0];
    const Array& coordinates = given[o.what == GRAD_IMAGE ? 0 : 1];
    const Array& out = o.what == FORWARD ? result : given[o.what == GRAD_IMAGE ? 1 : 2];

    const int rank = out.rank, d = rank - 2, type = out.type, working = type == F64 ? F64 : F32;
    if (d != 2 && d != 3) return "image: expected one of two or three dimensions with a batch and channels";
    if (!within(type, o.what == FORWARD ? U8 : F16)) return "image: expected float32, float64, bfloat16, float16 or, without gradients, uint8";
    if (image.rank != rank) return "image: expected as many axes as the output has";
    if (image.type != type && !(o.what == GRAD_IMAGE && image.type == working)) return "image: expected the type of the output";
    if (coordinates.type != working) return "coordinates: expected float32, or float64 for an image of float64";
    const int channel_axis = last ? d + 1 : 1;
    if (image.shape[0] != out.shape[0] || image.shape[channel_axis] != out.shape[channel_axis]) return "output: expected the batch and channels of the image";

    const Layout in(image, last), to(out, last);
    i64 shape[5] = {out.shape[0]};
    if (o.kind == GRID) {
        for (int a = 0; a < d; a++) shape[1 + a] = to.size[d - 1 - a];
        shape[d + 1] = d;
    } else {
        shape[1] = o.kind == AFFINE ? d : d + 1, shape[2] = d + 1;
    }
    if (!has_shape(coordinates, shape, o.kind == GRID ? rank : 3)) return "coordinates: expected one for each image, and for each pixel of the output in a grid";
    if (o.what == GRAD_COORDINATES && (result.type != working || !has_shape(result, coordinates.shape, coordinates.rank)))
        return "gradient: expected the shape and type of the coordinates";
    const i64 channels = out.shape[channel_axis];
    if (has_fill && (given[plain].type != working || !has_shape(given[plain], &channels, 1))) return "fill: expected a number for each channel";

    const std::size_t bytes = std::size_t(count(result)) * SIZE[result.type];
    if (!bytes) return nullptr;
    if (!result.data) return "result: expected memory";
    if (!count(out)) {
        std::memset(result.data, 0, bytes);
        return nullptr;
    }
    if (!count(image)) return "image: expected at least one pixel";
    for (int k = 0; k < arrays.count; k++)
        if (!given[k].data) return "expected arrays in memory";

    Problem p{};
    p.what = int(o.what), p.kind = int(o.kind), p.mode = int(o.mode), p.padding = int(o.padding), p.align_corners = o.align_corners;
    p.ndim = d, p.type = type, p.threads = forked() || o.threads < 1 ? 1 : int(o.threads < 1024 ? o.threads : 1024);
    p.batch = out.shape[0], p.channels = channels;
    for (int a = 0; a < 3; a++) p.in[a] = in.size[a], p.out[a] = to.size[a], p.image_stride[a] = in.stride[a];
    p.image_batch = in.batch, p.image_channel = in.channel;
    p.out_batch = to.batch, p.out_channel = to.channel, p.out_pixel = to.stride[0];
    i64 step = d;
    for (int a = 0; a < 3; a++) {
        p.grid_stride[a] = a < d ? step : 0;
        step *= p.out[a];
    }
    p.grid_batch = step, p.grid_axis = 1;
    p.coordinates = coordinates.data, p.image = image.data, p.output = out.data;
    if (has_fill) p.fill = given[plain].data;
    if (o.what == GRAD_COORDINATES) p.grad_coordinates = result.data;
    if (o.what == GRAD_IMAGE) p.grad_image = result.data, p.grad_as_image = result.type == type;
    large_pages(result.data, bytes);
    const Status status = chosen(type)(p);
    return status == DONE ? nullptr : status == NO_MEMORY ? "out of memory" : "gradient: expected the working type, in which sums are exact enough";
}

}  // namespace stn

// For _native.tensorflow.so, which finds it by this name.
STN_EXPORT const char* stn_run_arrays(const stn::Options* options, const stn::Arrays* arrays) { return stn::run_arrays(*options, *arrays); }
