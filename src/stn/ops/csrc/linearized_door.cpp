// The door of linearized.cpp to Python: checks arrays, releases the GIL.
#include "linearized.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <cmath>
#include <new>
#include <optional>

#include "door.h"

namespace stn {

Status linearize_baseline(const Linearized&);
Status linearize_v3(const Linearized&);
Status linearize_v4(const Linearized&);

namespace {

namespace nb = nanobind;
using Array = nb::ndarray<nb::c_contig, nb::device::cpu>;

void finish(Linearized& p, int threads) {
    p.threads = forked() || threads < 1 ? 1 : threads;
    Status status;
    {
        nb::gil_scoped_release release;
        status = STN_CHOSEN(Linearize, linearize)(p);
    }
    if (status == NO_MEMORY) throw std::bad_alloc();
}

// The gradient of the grid.
void linearize(Array image, Array grid, Array gradient, std::optional<Array> fill, int padding, bool align_corners, int samples, double spread,
               std::uint64_t seed, Array result, int threads) {
    Linearized p{};
    const nb::dlpack::dtype type = image.dtype();
    want(type == nb::dtype<float>() || type == nb::dtype<double>(), "image: expected float32 or float64");
    const int axes = int(image.ndim()), d = axes - 2;
    want(d == 2 || d == 3, "image: expected (B, C, [D,] H, W)");
    want(padding == ZEROS || padding == BORDER || padding == CONSTANT, "padding: expected zeros, border or constant");
    want(samples > d && samples < 1 << 20, "samples: expected more than dimensions");
    want(spread > 0 && std::isfinite(spread), "spread: expected a finite number above 0");
    p.type = type == nb::dtype<double>() ? F64 : F32;
    p.ndim = d, p.padding = padding, p.align_corners = align_corners, p.samples = samples, p.spread = spread, p.seed = seed;
    p.batch = i64(image.shape(0)), p.channels = i64(image.shape(1));
    want(p.channels >= 1, "image: expected a channel");
    i64 cells = 1;
    for (int a = 0; a < 3; a++) {
        p.in[a] = a < d ? i64(image.shape(size_t(1 + d - a))) : 1;
        want(p.in[a] >= 1 && p.in[a] + 2 <= (i64(1) << 30) / cells, "image: expected 1 to 2^30 pixels");
        cells *= p.in[a] + 2;
    }
    want(grid.ndim() == 3 && grid.dtype() == type && i64(grid.shape(0)) == p.batch && i64(grid.shape(2)) == d, "grid: expected (B, pixels, d)");
    p.pixels = i64(grid.shape(1));
    want(gradient.ndim() == 3 && gradient.dtype() == type && i64(gradient.shape(0)) == p.batch && i64(gradient.shape(1)) == p.channels &&
             i64(gradient.shape(2)) == p.pixels, "gradient: expected (B, C, pixels)");
    want(result.ndim() == 3 && result.dtype() == type && i64(result.shape(0)) == p.batch && i64(result.shape(1)) == p.pixels &&
             i64(result.shape(2)) == d, "result: expected (B, pixels, d)");
    if (fill) {
        want(fill->ndim() == 1 && fill->dtype() == type && i64(fill->shape(0)) == p.channels, "fill: expected a number for each channel");
        p.fill = fill->data();
    }
    p.image = image.data(), p.grid = grid.data(), p.gradient = gradient.data(), p.result = result.data();
    finish(p, threads);
}

// What `linearize` draws.
void noise(Array result, std::uint64_t seed) {
    Linearized p{};
    want(result.dtype() == nb::dtype<float>() || result.dtype() == nb::dtype<double>(), "result: expected float32 or float64");
    want(result.ndim() == 4 && (result.shape(1) == 2 || result.shape(1) == 3), "result: expected (samples, d, B, pixels)");
    p.type = result.dtype() == nb::dtype<double>() ? F64 : F32;
    p.samples = int(result.shape(0)), p.ndim = int(result.shape(1)), p.batch = i64(result.shape(2)), p.pixels = i64(result.shape(3));
    p.in[0] = p.in[1] = p.in[2] = 1, p.spread = 1, p.seed = seed;
    p.noise = result.data();
    finish(p, 1);
}

}  // namespace

void bind_linearized(nanobind::module_& m) {
    m.def("linearize", &linearize, nb::arg("image"), nb::arg("grid"), nb::arg("gradient"), nb::arg("fill").none(), nb::arg("padding"),
          nb::arg("align_corners"), nb::arg("samples"), nb::arg("spread"), nb::arg("seed"), nb::arg("result"), nb::arg("threads"),
          "Linearized multi-sampling's gradient of positions, see linearized.h.");
    m.def("noise", &noise, nb::arg("result"), nb::arg("seed"), "The random numbers that `linearize` draws.");
}

}  // namespace stn
