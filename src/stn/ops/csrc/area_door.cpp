// The door of area.cpp to Python: checks arrays, releases the GIL.
#include "area.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <new>
#include <optional>

#include "door.h"

namespace stn {

Status average_baseline(const Area&);
Status average_v3(const Area&);
Status average_v4(const Area&);

namespace {

namespace nb = nanobind;
using Numbers = nb::ndarray<nb::device::cpu>;

bool is_dense(const Numbers& array) {
    i64 step = 1;
    for (size_t a = array.ndim(); a-- > 0; step *= i64(array.shape(a)))
        if (array.shape(a) > 1 && array.stride(a) != step) return false;
    return true;
}

bool has_shape(const Numbers& array, std::initializer_list<i64> shape) {
    if (array.ndim() != shape.size()) return false;
    size_t a = 0;
    for (i64 n : shape)
        if (i64(array.shape(a++)) != n) return false;
    return true;
}

// `out`: the output, or the gradient that came in, (B, C, *out). The image gives its strides where its gradient is asked for.
void average(int what, int padding, bool is_grid, bool align_corners, bool is_signal, int last, int threads, Numbers image, Numbers coordinates,
             Numbers jacobian, std::optional<Numbers> fill, Numbers out, std::optional<Numbers> result, std::optional<Numbers> for_jacobian) {
    Area area{};
    Problem& p = area.problem;
    want(what >= FORWARD && what <= GRAD_IMAGE && padding >= ZEROS && padding <= CONSTANT, "what, padding: expected the module's numbers");
    want(last >= 0 && last < MOST_COPIES, "last: expected the number of a copy");
    const int axes = int(image.ndim()), d = axes - 2;
    want((d == 2 || d == 3) && int(out.ndim()) == axes, "image: expected (B, C, [D,] H, W), as the output");
    const bool wide = image.dtype() == nb::dtype<double>();
    auto dense = [&](const Numbers& array) { return array.dtype() == image.dtype() && is_dense(array); };
    want(wide || image.dtype() == nb::dtype<float>(), "image: expected float32 or float64");
    want(dense(coordinates) && dense(jacobian) && dense(out), "coordinates, jacobian, out: expected the type of the image, contiguous");
    p.what = what, p.ndim = d, p.mode = LINEAR, p.padding = padding, p.kind = is_grid ? GRID : AFFINE, p.type = wide ? F64 : F32;
    p.threads = forked() || threads < 1 ? 1 : threads;
    p.align_corners = align_corners, p.is_signal = is_signal;
    p.batch = i64(image.shape(0)), p.channels = i64(image.shape(1));
    p.image_batch = image.stride(0), p.image_channel = image.stride(1);
    i64 pixels = 1, numbers = p.channels == 1 ? 1 : 4;
    for (int a = 0; a < 3; a++) {
        p.in[a] = a < d ? i64(image.shape(size_t(axes - 1 - a))) : 1;
        p.image_stride[a] = a < d ? image.stride(size_t(axes - 1 - a)) : 0;
        p.out[a] = a < d ? i64(out.shape(size_t(axes - 1 - a))) : 1;
        pixels *= p.out[a], numbers *= p.in[a] + 4;
        want(p.in[a] >= 1 && p.out[a] >= 1 && numbers < MOST_NUMBERS, "image: expected at least one pixel, and fewer than fit into a copy");
    }
    want(p.batch >= 1 && p.channels >= 1 && i64(out.shape(0)) == p.batch && i64(out.shape(1)) == p.channels, "out: expected the batch and channels of the image");
    want(!is_signal || (d == 2 && p.in[1] == 1 && p.out[1] == 1), "is_signal: expected images of one row");
    p.out_pixel = 1, p.out_channel = pixels, p.out_batch = pixels * p.channels;
    i64 step = d;
    for (int a = 0; a < 3; a++) p.grid_stride[a] = a < d ? step : 0, step *= p.out[a];
    p.grid_batch = step, p.grid_axis = 1;
    auto is_coordinates = [&](const Numbers& array) { return is_grid ? has_shape(array, {p.batch, pixels, d}) : has_shape(array, {p.batch, d, d + 1}); };
    auto is_jacobian = [&](const Numbers& array) { return is_grid ? has_shape(array, {p.batch, pixels, d, d}) : has_shape(array, {p.batch, d, d}); };
    want(is_coordinates(coordinates) && is_jacobian(jacobian), "coordinates, jacobian: expected one for each image, in a grid for each pixel");
    p.coordinates = coordinates.data(), area.jacobian = jacobian.data(), area.last = last;
    p.image = image.data(), p.output = out.data();
    if (fill) {
        want(dense(*fill) && has_shape(*fill, {p.channels}), "fill: expected a number for each channel");
        p.fill = fill->data();
    }
    void* fresh = out.data();
    size_t bytes = out.nbytes();
    if (what == GRAD_COORDINATES) {
        want(result && for_jacobian && dense(*result) && dense(*for_jacobian) && is_coordinates(*result) && is_jacobian(*for_jacobian),
             "result, for_jacobian: expected the shapes of the coordinates and the Jacobian");
        p.grad_coordinates = result->data(), area.grad_jacobian = for_jacobian->data();
    } else if (what == GRAD_IMAGE) {
        p.grad_image = image.data();
        fresh = image.data(), bytes = image.nbytes();
    }
    Status status;
    {
        nb::gil_scoped_release release;
        if (what != GRAD_COORDINATES) large_pages(fresh, bytes);
        status = STN_CHOSEN(Average, average)(area);
    }
    if (status == NO_MEMORY) throw std::bad_alloc();
}

}  // namespace

void bind_area(nanobind::module_& m) {
    m.attr("MOST_NUMBERS") = MOST_NUMBERS;
    m.def("average", &average, nb::arg("what"), nb::arg("padding"), nb::arg("is_grid"), nb::arg("align_corners"), nb::arg("is_signal"), nb::arg("last"),
          nb::arg("threads"), nb::arg("image"), nb::arg("coordinates"), nb::arg("jacobian"), nb::arg("fill").none(), nb::arg("out"),
          nb::arg("result").none(), nb::arg("for_jacobian").none(), "A warp that averages each pixel over its area, see area.h.");
}

}  // namespace stn
