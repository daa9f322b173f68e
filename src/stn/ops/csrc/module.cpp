// The door to Python: unpacks integers into a Problem, releases the GIL, picks the instruction set.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstdlib>
#include <cstring>
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "api.h"

namespace nb = nanobind;
using stn::i64;
using stn::Problem;

namespace {

using Run = int (*)(const Problem&);
#define STN_TABLE(set) {stn::run_##set##_f32, stn::run_##set##_f64, stn::run_##set##_bf16, stn::run_##set##_f16, stn::run_##set##_u8}
const Run baseline[5] = STN_TABLE(baseline);
#if defined(STN_X86)
const Run v3[5] = STN_TABLE(v3), v4[5] = STN_TABLE(v4);
#endif
const Run* chosen = baseline;
const char* chosen_name = "baseline";

void choose(const std::string& limit) {
    chosen = baseline;
    chosen_name = "baseline";
#if defined(STN_X86)
    __builtin_cpu_init();
    if (limit != "baseline" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2")) {
        chosen = v3;
        chosen_name = "x86-64-v3";
        if (limit != "x86-64-v3" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512vl")) {
            chosen = v4;
            chosen_name = "x86-64-v4";
        }
    }
#endif
}

// The OpenMP pool does not survive a fork: the child would wait for threads that it does not have.
#if defined(__unix__) || defined(__APPLE__)
const pid_t home = getpid();
bool forked() { return getpid() != home; }
#else
bool forked() { return false; }
#endif

i64 at(const nb::tuple& t, size_t k) { return nb::cast<i64>(t[k]); }

void* pointer(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

// Fresh memory arrives page by page as it is written; large pages make that 500 times fewer interruptions.
void large_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t page = 1 << 21;
    std::uintptr_t from = (reinterpret_cast<std::uintptr_t>(data) + page - 1) / page * page;
    std::uintptr_t to = (reinterpret_cast<std::uintptr_t>(data) + bytes) / page * page;
    if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

// options: what, mode, padding, coords, type, align_corners, threads. Shapes and strides are those of the tensors,
// (B, C, [D,] H, W); out: pointer, batch, channel and pixel stride; basis: pointer, K, stride; fresh: bytes of new
// memory behind the result.
void run(nb::tuple options, std::uintptr_t image, nb::tuple shape, nb::tuple strides, nb::tuple size,
         std::uintptr_t coords, nb::tuple grid_strides, nb::tuple basis, std::uintptr_t fill, nb::tuple out,
         std::uintptr_t result, i64 fresh) {
    Problem p{};
    p.what = int(at(options, 0));
    p.mode = int(at(options, 1));
    p.padding = int(at(options, 2));
    p.coords = int(at(options, 3));
    p.type = int(at(options, 4));
    p.align_corners = at(options, 5) != 0;
    p.threads = forked() ? 1 : int(at(options, 6));
    int d = p.ndim = int(size.size());
    p.batch = at(shape, 0);
    p.channels = at(shape, 1);
    p.image_batch = at(strides, 0);
    p.image_channel = at(strides, 1);
    for (int a = 0; a < 3; a++) {
        p.in[a] = a < d ? at(shape, size_t(1 + d - a)) : 1;
        p.out[a] = a < d ? at(size, size_t(d - 1 - a)) : 1;
        p.image_stride[a] = a < d ? at(strides, size_t(1 + d - a)) : 0;
    }
    p.coords_data = pointer(coords);
    if (grid_strides.size()) {  // (B, *out, d)
        p.grid_batch = at(grid_strides, 0);
        for (int a = 0; a < 3; a++) p.grid_stride[a] = a < d ? at(grid_strides, size_t(d - a)) : 0;
        p.grid_axis = at(grid_strides, size_t(d + 1));
    }
    if (basis.size()) {
        p.basis = static_cast<const double*>(pointer(std::uintptr_t(at(basis, 0))));
        p.basis_size = at(basis, 1);
        p.basis_stride = at(basis, 2);
    }
    p.fill = pointer(fill);
    p.image = pointer(image);
    p.output = pointer(std::uintptr_t(at(out, 0)));
    p.out_batch = at(out, 1);
    p.out_channel = at(out, 2);
    p.out_pixel = at(out, 3);
    if (p.what == stn::GRAD_COORDS) p.grad_coords = pointer(result);
    if (p.what == stn::GRAD_IMAGE) p.grad_image = pointer(result);
    int failed;
    {
        nb::gil_scoped_release release;
        if (fresh >= (4 << 20)) large_pages(p.what == stn::FORWARD ? p.output : pointer(result), size_t(fresh));
        failed = chosen[p.type](p);
    }
    if (failed) throw std::bad_alloc();
}

}  // namespace

NB_MODULE(_native, m) {
    choose("");
    m.def("run", &run);
    m.def("choose", [](const std::string& limit) { choose(limit); return std::string(chosen_name); }, nb::arg("limit") = "");
    m.def("instruction_set", [] { return std::string(chosen_name); });
}
