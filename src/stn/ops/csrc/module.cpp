// The door to Python: unpacks tensors into a Problem, releases the GIL, picks the instruction set.
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

// Tensors come by DLPack's C exchange interface: no headers of torch, and no Python for shapes and strides.

struct DLTensor {
    void* data;
    std::int32_t device_type, device_id, ndim;
    std::uint8_t code, bits;
    std::uint16_t lanes;
    i64 *shape, *strides;
    std::uint64_t byte_offset;

    char* begin() const { return static_cast<char*>(data) + byte_offset; }
};

struct Exchange {
    std::uint32_t major, minor;
    void* previous;
    void* allocate;
    void* take;
    void* give;
    int (*view)(void* object, DLTensor* view);  // borrowed, while the object lives
};
const Exchange* exchange = nullptr;

bool connect(nb::object tensor_type) {
    nb::object capsule = nb::getattr(tensor_type, "__dlpack_c_exchange_api__", nb::none());
    if (!PyCapsule_CheckExact(capsule.ptr())) return false;
    const void* found = PyCapsule_GetPointer(capsule.ptr(), PyCapsule_GetName(capsule.ptr()));
    exchange = static_cast<const Exchange*>(found);
    if (exchange && exchange->major != 1) exchange = nullptr;
    return exchange != nullptr;
}

DLTensor view(nb::handle tensor) {
    DLTensor v{};
    if (!exchange || exchange->view(tensor.ptr(), &v)) {
        if (PyErr_Occurred()) nb::raise_python_error();
        throw nb::type_error("not a tensor");
    }
    return v;
}

int type_of(const DLTensor& v) {
    enum { UNSIGNED = 1, FLOAT = 2, BFLOAT = 4 };
    if (v.code == FLOAT) return v.bits == 64 ? stn::F64 : v.bits == 32 ? stn::F32 : stn::F16;
    if (v.code == BFLOAT) return stn::BF16;
    if (v.code == UNSIGNED && v.bits == 8) return stn::U8;
    throw nb::type_error("no kernel for this type");
}

// The distance of consecutive pixels of (B, C, [D,] H, W), where it is the same for all of them; else -1.
i64 pixel_stride(const DLTensor& v) {
    bool found = false;
    i64 step = 1, expected = 0;
    for (int a = v.ndim - 1; a > 1; a--) {
        if (v.shape[a] == 1) continue;
        if (!found) found = true, step = expected = v.strides[a];
        else if (v.strides[a] != expected) return -1;
        expected *= v.shape[a];
    }
    return step;
}

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

// `out`: the output, or the gradient that came in; `result`: what is written, the output once more or a gradient. For a
// gradient of the image `image` only lends its shape and strides.
// False where the gradient of the image has to be in the working type.
bool run(int what, int mode, int padding, int kind, bool align_corners, int threads, nb::handle image_tensor,
         nb::handle coords_tensor, nb::handle basis_tensor, nb::handle fill_tensor, nb::handle out_tensor,
         nb::handle result_tensor) {
    DLTensor image = view(image_tensor), coords = view(coords_tensor), out = view(out_tensor), result = view(result_tensor);
    Problem p{};
    p.what = what, p.mode = mode, p.padding = padding, p.coords = kind, p.align_corners = align_corners;
    p.type = type_of(out);
    p.threads = forked() ? 1 : threads;
    int d = p.ndim = out.ndim - 2;
    p.batch = image.shape[0];
    p.channels = image.shape[1];
    p.image_batch = image.strides[0];
    p.image_channel = image.strides[1];
    for (int a = 0; a < 3; a++) {
        p.in[a] = a < d ? image.shape[1 + d - a] : 1;
        p.out[a] = a < d ? out.shape[1 + d - a] : 1;
        p.image_stride[a] = a < d ? image.strides[1 + d - a] : 0;
    }
    p.coords_data = coords.begin();
    if (kind == stn::GRID) {  // (B, *out, d)
        p.grid_batch = coords.strides[0];
        for (int a = 0; a < 3; a++) p.grid_stride[a] = a < d ? coords.strides[d - a] : 0;
        p.grid_axis = coords.strides[d + 1];
    }
    if (!basis_tensor.is_none()) {
        DLTensor basis = view(basis_tensor);
        p.basis = reinterpret_cast<const double*>(basis.begin());
        p.basis_size = basis.shape[1];
        p.basis_stride = basis.strides[1];
    }
    if (!fill_tensor.is_none()) p.fill = view(fill_tensor).begin();
    p.image = image.begin();
    p.output = out.begin();
    p.out_batch = out.strides[0];
    p.out_channel = out.strides[1];
    p.out_pixel = pixel_stride(out);
    if (what == stn::GRAD_COORDS) p.grad_coords = result.begin();
    if (what == stn::GRAD_IMAGE) p.grad_image = result.begin(), p.grad_as_image = result.bits == out.bits;
    size_t fresh = result.bits / 8;
    for (int a = 0; a < result.ndim; a++) fresh *= size_t(result.shape[a]);
    int failed;
    {
        nb::gil_scoped_release release;
        if (fresh >= (4 << 20)) large_pages(result.begin(), fresh);
        failed = chosen[p.type](p);
    }
    if (failed == 1) throw std::bad_alloc();
    return !failed;
}

}  // namespace

NB_MODULE(_native, m) {
    choose("");
    m.def("connect", &connect, "Whether this tensor type can be read.");
    m.def("run", &run, nb::arg("what"), nb::arg("mode"), nb::arg("padding"), nb::arg("kind"), nb::arg("align_corners"),
          nb::arg("threads"), nb::arg("image"), nb::arg("coords"), nb::arg("basis").none(), nb::arg("fill").none(),
          nb::arg("out"), nb::arg("result"));
    m.def("pixel_stride", [](nb::handle tensor) { return pixel_stride(view(tensor)); });
    m.def("choose", [](const std::string& limit) { choose(limit); return std::string(chosen_name); }, nb::arg("limit") = "");
    m.def("instruction_set", [] { return std::string(chosen_name); });
}
