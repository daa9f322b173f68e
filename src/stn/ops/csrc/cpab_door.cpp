// The door of cpab.cpp to Python: checks arrays, releases the GIL.
#include "cpab.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <vector>

#include "door.h"

namespace stn {

Status follow_baseline(const Paths&);
Status follow_v3(const Paths&);
Status follow_v4(const Paths&);

namespace {

namespace nb = nanobind;
template <class T, int D> using Table = nb::ndarray<const T, nb::ndim<D>, nb::c_contig, nb::device::cpu>;
using Points = nb::ndarray<nb::ndim<3>, nb::device::cpu>;

int type_of(const Points& array) {
    if (array.dtype() == nb::dtype<double>()) return F64;
    want(array.dtype() == nb::dtype<float>(), "points: expected float32 or float64");
    return F32;
}

bool is_dense(const Points& array) {
    return array.stride(2) == 1 && array.stride(1) == i64(array.shape(2)) && (array.shape(0) == 1 || array.stride(0) == i64(array.shape(1) * array.shape(2)));
}

// `result`: the ends, or the gradient of the starts. The gradients are made where `gradient` is given.
void follow(std::vector<i64> tessellation, Table<double, 2> generators, Table<int, 2> slots, Table<int, 2> beyond, Table<int, 2> order,
            Table<double, 3> weights, Table<int, 3> outside, Table<double, 3> velocities, Points start, Points result,
            std::optional<Points> gradient, std::optional<nb::ndarray<double, nb::ndim<3>, nb::c_contig, nb::device::cpu>> for_velocities, int threads) {
    const size_t d = tessellation.size();
    want(d == 2 || d == 3, "tessellation: expected two or three numbers");
    Paths p{};
    p.ndim = int(d), p.type = type_of(start), p.threads = forked() || threads < 1 ? 1 : threads;
    i64 boxes = 1;
    for (size_t a = 0; a < 3; a++) {
        p.boxes[a] = a < d ? tessellation[d - 1 - a] : 1;
        want(p.boxes[a] >= 1 && p.boxes[a] <= (1 << 20), "tessellation: expected positive numbers");
        boxes *= p.boxes[a];
    }
    p.batch = i64(start.shape(0)), p.points = i64(start.shape(1));
    p.cells = i64(slots.shape(0)), p.vertices = i64(velocities.shape(1));
    const size_t cells = slots.shape(0), s = d + 1, sides = d == 2 ? 9 : 27;
    want(start.shape(2) == d && p.batch >= 1 && p.points >= 1, "points: expected (B, N, d)");
    want(p.cells >= boxes * (d == 2 ? 4 : 5) && p.cells < (1 << 26), "slots: expected those of the tessellation");
    want(generators.shape(1) == d && generators.shape(0) == size_t(p.vertices) + 2 * d, "generators: expected (vertices + 2 d, d)");
    want(slots.shape(1) == s && beyond.shape(0) == cells && beyond.shape(1) == s && order.shape(0) == cells && order.shape(1) == s,
         "slots, beyond, order: expected (cells, d + 1)");
    want(weights.shape(0) == cells && weights.shape(1) == s && weights.shape(2) == s, "weights: expected (cells, d + 1, d + 1)");
    want(i64(outside.shape(0)) == boxes && outside.shape(1) == sides && outside.shape(2) == 2, "outside: expected (boxes, 3^d, 2)");
    want(velocities.shape(0) == start.shape(0) && velocities.shape(2) == d, "velocities: expected (B, vertices, d)");
    for (size_t k = 0; k < cells * s; k++) {
        want(slots.data()[k] >= 0 && size_t(slots.data()[k]) < generators.shape(0), "slots: expected numbers of generators");
        want(beyond.data()[k] >= -1 && beyond.data()[k] < p.cells, "beyond: expected numbers of cells");
        for (size_t e = 0; e < s; e++) want(size_t(order.data()[k] >> 2 * e & 3) < s, "order: expected numbers of slots");
    }
    for (size_t k = 0; k < size_t(boxes) * sides * 2; k++) want(outside.data()[k] < p.cells, "outside: expected numbers of cells");
    auto same = [&](const Points& other) {
        return type_of(other) == p.type && is_dense(other) && other.shape(0) == start.shape(0) && other.shape(1) == start.shape(1) && other.shape(2) == d;
    };
    want(same(result), "result: expected the shape and type of the points, contiguous");
    p.generators = generators.data(), p.slots = slots.data(), p.beyond = beyond.data(), p.order = order.data();
    p.weights = weights.data(), p.outside = outside.data(), p.velocities = velocities.data();
    p.start = start.data(), p.start_batch = start.stride(0), p.start_point = start.stride(1), p.start_axis = start.stride(2);
    if (gradient) {
        want(same(*gradient), "gradient: expected the shape and type of the points, contiguous");
        want(for_velocities && for_velocities->shape(0) == start.shape(0) && i64(for_velocities->shape(1)) == p.vertices && for_velocities->shape(2) == d,
             "for_velocities: expected the shape of the velocities");
        p.gradient = gradient->data(), p.for_start = result.data(), p.for_velocities = for_velocities->data();
    } else {
        p.end = result.data();
    }
    Status status;
    {
        nb::gil_scoped_release release;
        large_pages(result.data(), result.nbytes());
        status = STN_CHOSEN(Follow, follow)(p);
    }
    if (status == NO_MEMORY) throw std::bad_alloc();
}

}  // namespace

void bind_cpab(nanobind::module_& m) {
    m.def("follow", &follow, nb::arg("tessellation"), nb::arg("generators"), nb::arg("slots"), nb::arg("beyond"), nb::arg("order"),
          nb::arg("weights"), nb::arg("outside"), nb::arg("velocities"), nb::arg("start"), nb::arg("result"), nb::arg("gradient").none(),
          nb::arg("for_velocities").none(), nb::arg("threads"), "Points along the velocities of a mesh, see cpab.h.");
}

}  // namespace stn
