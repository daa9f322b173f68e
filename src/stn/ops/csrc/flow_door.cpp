// The door of flow.cpp to Python: checks arrays, releases the GIL.
#include "flow.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <new>
#include <optional>

#include "door.h"

namespace stn {

Status follow_baseline(const Flow&);
Status follow_v3(const Flow&);
Status follow_v4(const Flow&);

namespace {

namespace nb = nanobind;
using Array = nb::ndarray<nb::c_contig, nb::device::cpu>;

// `result`: the displacement, or its gradient where `for_velocity` is given. False, and nothing to be used, where velocities are
// not finite, or too large.
bool follow(Array velocity, int steps, Array result, std::optional<Array> for_velocity, int threads) {
    Flow p{};
    const nb::dlpack::dtype type = velocity.dtype();
    want(type == nb::dtype<float>() || type == nb::dtype<double>(), "velocity: expected float32 or float64");
    const int axes = int(velocity.ndim());
    want((axes == 4 || axes == 5) && i64(velocity.shape(size_t(axes - 1))) == axes - 2, "velocity: expected (B, [D,] H, W, d)");
    want(steps >= 0 && steps <= MOST_STEPS, "steps: expected 0 to 30");
    p.type = type == nb::dtype<double>() ? F64 : F32;
    p.ndim = axes - 2, p.steps = steps;
    p.threads = forked() || threads < 1 ? 1 : threads;
    p.batch = i64(velocity.shape(0));
    i64 points = 1;
    for (int a = 0; a < 3; a++) {
        p.size[a] = a < p.ndim ? i64(velocity.shape(size_t(p.ndim - a))) : 1;
        want(p.size[a] >= 1 && p.size[a] <= (i64(1) << 28) / points, "velocity: expected 1 to 2^28 points");
        points *= p.size[a];
    }
    auto same = [&](const Array& array) {
        bool fine = array.dtype() == type && int(array.ndim()) == axes;
        for (int a = 0; fine && a < axes; a++) fine = array.shape(size_t(a)) == velocity.shape(size_t(a));
        return fine;
    };
    want(same(result), "result: expected the shape and type of the velocity");
    p.velocity = velocity.data();
    if (for_velocity) {
        want(same(*for_velocity), "for_velocity: expected the shape and type of the velocity");
        p.gradient = result.data(), p.for_velocity = for_velocity->data();
    } else {
        p.displacement = result.data();
    }
    Status status;
    {
        nb::gil_scoped_release release;
        status = STN_CHOSEN(Follow, follow)(p);
    }
    if (status == NO_MEMORY) throw std::bad_alloc();
    return status == DONE;
}

}  // namespace

void bind_flow(nanobind::module_& m) {
    m.def("follow", &follow, nb::arg("velocity"), nb::arg("steps"), nb::arg("result"), nb::arg("for_velocity").none(), nb::arg("threads"),
          "Velocities followed for one unit of time, see flow.h.");
}

}  // namespace stn
