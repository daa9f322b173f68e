// The door of deformable.cpp to Python: checks arrays, releases the GIL.
#include "deformable.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <utility>
#include <vector>

#include "door.h"

namespace stn {

Status deform_baseline(const Deformed&);
Status deform_v3(const Deformed&);
Status deform_v4(const Deformed&);

namespace {

namespace nb = nanobind;
template <int D> using Array = nb::ndarray<nb::ndim<D>, nb::c_contig, nb::device::cpu>;

// `result`: the output, or its gradient. The gradients of the others are made where `for_weights` is given.
void deform(Array<4> value, const std::vector<std::pair<i64, i64>>& sizes, Array<6> locations, Array<5> weights, Array<4> result,
            std::optional<Array<4>> for_value, std::optional<Array<6>> for_locations, std::optional<Array<5>> for_weights, int threads) {
    Deformed p{};
    const nb::dlpack::dtype type = value.dtype();
    want(type == nb::dtype<float>() || type == nb::dtype<double>(), "value: expected float32 or float64");
    p.type = type == nb::dtype<double>() ? F64 : F32;
    p.threads = forked() || threads < 1 ? 1 : threads;
    p.batch = i64(value.shape(0)), p.positions = i64(value.shape(1)), p.heads = i64(value.shape(2)), p.channels = i64(value.shape(3));
    p.queries = i64(locations.shape(1)), p.levels = i64(sizes.size()), p.points = i64(locations.shape(4));
    want(p.levels >= 1 && p.levels <= MOST_LEVELS, "sizes: expected 1 to 64 maps");
    i64 positions = 0;
    for (i64 level = 0; level < p.levels; level++) {
        auto [height, width] = sizes[size_t(level)];
        want(height >= 1 && width >= 1 && height <= p.positions && width <= p.positions, "sizes: expected those of the value");
        p.size[level][0] = height, p.size[level][1] = width, p.first[level] = positions;
        positions += height * width;
    }
    want(positions == p.positions, "sizes: expected those of the value");
    auto places = [&](auto& array) {
        return array.dtype() == type && i64(array.shape(0)) == p.batch && i64(array.shape(1)) == p.queries && i64(array.shape(2)) == p.heads &&
               i64(array.shape(3)) == p.levels && i64(array.shape(4)) == p.points;
    };
    auto values = [&](auto& array, i64 count) {
        return array.dtype() == type && i64(array.shape(0)) == p.batch && i64(array.shape(1)) == count && i64(array.shape(2)) == p.heads &&
               i64(array.shape(3)) == p.channels;
    };
    want(places(locations) && locations.shape(5) == 2, "locations: expected (B, Q, heads, levels, points, 2)");
    want(places(weights), "weights: expected (B, Q, heads, levels, points)");
    want(values(result, p.queries), "result: expected (B, Q, heads, C)");
    p.value = value.data(), p.locations = locations.data(), p.weights = weights.data();
    if (for_weights) {
        want(places(*for_weights) && for_locations && places(*for_locations) && for_locations->shape(5) == 2, "gradients: expected those shapes");
        want(for_value && values(*for_value, p.positions), "for_value: expected (B, S, heads, C)");
        p.gradient = result.data(), p.for_locations = for_locations->data(), p.for_weights = for_weights->data();
        p.for_value = for_value->data();
    } else {
        p.output = result.data();
    }
    nb::gil_scoped_release release;
    STN_CHOSEN(Deform, deform)(p);
}

}  // namespace

void bind_deformable(nanobind::module_& m) {
    m.def("deform", &deform, nb::arg("value"), nb::arg("sizes"), nb::arg("locations"), nb::arg("weights"), nb::arg("result"),
          nb::arg("for_value").none(), nb::arg("for_locations").none(), nb::arg("for_weights").none(), nb::arg("threads"),
          "Deformable attention's read, see deformable.h.");
}

}  // namespace stn
