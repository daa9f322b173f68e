// The door to Python: unpacks tensors into a Problem, refuses what would read or write outside of their memory, releases the
// GIL. Options come as the numbers that MODES, PADDINGS and COORDINATES give to their names.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <string>

#include "api.h"
#include "machine.h"
#include "override.h"
#include "process.h"

namespace stn {
void* xla_handler();
void bind_cpab(nanobind::module_&);
void bind_area(nanobind::module_&);
void bind_deformable(nanobind::module_&);
void bind_flow(nanobind::module_&);
void bind_linearized(nanobind::module_&);
}

namespace nb = nanobind;
using stn::i64;
using stn::Problem;

namespace {

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
constexpr const char* POLYNOMIALS = "stn.polynomials";

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

[[noreturn]] void refuse(const char* name, const std::string& what) { throw nb::value_error((std::string(name) + ": " + what).c_str()); }

std::string text(const i64* shape, int ndim) {
    std::string all = "(";
    for (int a = 0; a < ndim; a++) all += (a ? ", " : "") + std::to_string(shape[a]);
    return all + (ndim == 1 ? ",)" : ")");
}

int type_of(const DLTensor& v, const char* name) {
    enum { UNSIGNED = 1, FLOAT = 2, BFLOAT = 4 };
    if (v.code == FLOAT && v.bits == 64) return stn::F64;
    if (v.code == FLOAT && v.bits == 32) return stn::F32;
    if (v.code == FLOAT && v.bits == 16) return stn::F16;
    if (v.code == BFLOAT && v.bits == 16) return stn::BF16;
    if (v.code == UNSIGNED && v.bits == 8) return stn::U8;
    refuse(name, "expected a float type or uint8");
}

// A tensor in the memory of the processor, of `ndim` axes and at least one element.
const DLTensor& checked(const DLTensor& v, nb::handle tensor, const char* name, int ndim) {
    enum { CPU = 1, PINNED = 3 };
    if (v.device_type != CPU && v.device_type != PINNED) refuse(name, "expected a tensor on the CPU");
    if (v.ndim != ndim) refuse(name, "expected " + std::to_string(ndim) + " axes, got " + text(v.shape, v.ndim));
    for (int a = 0; a < ndim; a++)
        if (v.shape[a] < 1) refuse(name, "expected at least one element, got " + text(v.shape, ndim));
    // Where a storage was freed, or never was, torch adds the offset of a view to a null pointer: such addresses are low.
    auto address = reinterpret_cast<std::uintptr_t>(v.begin());
    bool nowhere = !address;
    if (address && address < (std::uint64_t(1) << 40)) nowhere = address == nb::cast<std::uint64_t>(tensor.attr("storage_offset")()) * (v.bits / 8);
    if (nowhere) refuse(name, "expected a tensor with memory of its own, got one without data");
    return v;
}
DLTensor view_of(nb::handle tensor, const char* name, int ndim) { return checked(view(tensor), tensor, name, ndim); }

void want_shape(const DLTensor& v, const char* name, const i64* shape, int ndim) {
    for (int a = 0; a < ndim; a++)
        if (v.shape[a] != shape[a]) refuse(name, "expected shape " + text(shape, ndim) + ", got " + text(v.shape, ndim));
}

void want_type(const DLTensor& v, const char* name, int type) {
    const char* names[] = {"float32", "float64", "bfloat16", "float16", "uint8"};
    if (type_of(v, name) != type) refuse(name, std::string("expected ") + names[type]);
}

void want_dense(const DLTensor& v, const char* name) {
    i64 expected = 1;
    for (int a = v.ndim - 1; a >= 0; a--) {
        if (v.shape[a] > 1 && v.strides[a] != expected) refuse(name, "expected a contiguous tensor");
        expected *= v.shape[a];
    }
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

// `out`: the output, or the gradient that came in; `result`: what is written, the output once more or a gradient. For a
// gradient of the image `image` only lends its shape and strides.
// `polynomials` (of `polynomials`, or none) are in place of a mode.
// False, and the result is not to be used, where the gradient of the image has to be in the working type, and where a recursive
// filter met numbers that are not finite.
bool run(int what, int mode, int padding, int kind, bool align_corners, int threads, nb::handle image_tensor,
         nb::handle coords_tensor, nb::handle basis_tensor, nb::handle fill_tensor, nb::handle out_tensor,
         nb::handle result_tensor, nb::handle polynomials, bool is_signal) {
    auto within = [](int value, int last, const char* name) {
        if (value < 0 || value > last) refuse(name, "expected one of the module's numbers, got " + std::to_string(value));
    };
    within(what, stn::GRAD_IMAGE, "what");
    within(mode, stn::INTEGER, "mode");
    within(padding, stn::CONSTANT, "padding");
    within(kind, stn::FIELD, "kind");
    const bool in_pixels = kind == stn::PIXELS;
    if (in_pixels) kind = stn::GRID;
    const DLTensor out = view(out_tensor);
    int axes = out.ndim, d = axes - 2;
    if (d != 2 && d != 3) refuse("out", "expected (B, C, [D,] H, W), got " + std::to_string(axes) + " axes");
    checked(out, out_tensor, "out", axes);
    const DLTensor image = view_of(image_tensor, "image", axes);
    const DLTensor coords = view_of(coords_tensor, "coords", kind == stn::GRID || kind == stn::FIELD ? axes : 3);
    const bool is_out = what == stn::FORWARD && result_tensor.is(out_tensor);
    const DLTensor result = is_out ? out : view_of(result_tensor, "result", what == stn::GRAD_COORDINATES ? coords.ndim : axes);

    Problem p{};
    p.what = what, p.mode = mode, p.padding = padding, p.kind = kind, p.align_corners = align_corners;
    p.in_pixels = in_pixels;
    p.shift = mode == stn::INTEGER ? 0.5 : 0;
    if (!polynomials.is_none()) {
        p.polynomials = static_cast<const stn::Polynomials*>(PyCapsule_GetPointer(polynomials.ptr(), POLYNOMIALS));
        if (!p.polynomials) nb::raise_python_error();
        p.shift = 0;
        p.is_signal = is_signal;
    }
    p.type = type_of(out, "out");
    p.threads = stn::forked() || threads < 1 ? 1 : threads;
    p.ndim = d;
    p.batch = image.shape[0];
    p.channels = image.shape[1];
    p.image_batch = image.strides[0];
    p.image_channel = image.strides[1];
    i64 pixels = 1;
    for (int a = 0; a < 3; a++) {
        p.in[a] = a < d ? image.shape[1 + d - a] : 1;
        p.out[a] = a < d ? out.shape[1 + d - a] : 1;
        p.image_stride[a] = a < d ? image.strides[1 + d - a] : 0;
        pixels *= p.out[a];
    }
    int working = p.type == stn::F64 ? stn::F64 : stn::F32;
    if (what != stn::FORWARD && p.type == stn::U8) refuse("out", "expected a float type, there is no gradient of uint8");
    if (what == stn::GRAD_COORDINATES && !p.polynomials && (mode == stn::NEAREST || mode == stn::INTEGER)) refuse("mode", "the gradient of the coordinates is 0 for the nearest pixel");
    if (what != stn::GRAD_IMAGE) want_type(image, "image", p.type);
    want_shape(out, "out", image.shape, 2);
    if (p.polynomials && working != p.type) refuse("out", "expected float32 or float64");
    if (p.is_signal && (d != 2 || p.in[1] != 1 || p.out[1] != 1)) refuse("is_signal", "expected images of one row");
    p.image = image.begin();
    p.output = out.begin();
    p.out_batch = out.strides[0];
    p.out_channel = out.strides[1];
    p.out_pixel = pixel_stride(out);
    if (p.out_pixel < 0) refuse("out", "expected the same distance between all consecutive pixels");

    p.coordinates = coords.begin();
    want_type(coords, "coords", kind == stn::BASIS ? int(stn::F64) : working);
    if (kind == stn::GRID) {  // (B, *out, d)
        i64 shape[5] = {p.batch};
        for (int a = 0; a < d; a++) shape[1 + a] = out.shape[2 + a];
        shape[d + 1] = d;
        want_shape(coords, "coords", shape, axes);
        p.grid_batch = coords.strides[0];
        for (int a = 0; a < 3; a++) p.grid_stride[a] = a < d ? coords.strides[d - a] : 0;
        p.grid_axis = coords.strides[d + 1];
    } else if (kind == stn::FIELD) {  // (B, *any, d)
        i64 shape[5] = {p.batch};
        for (int a = 0; a < 3; a++) p.field[a] = a < d ? coords.shape[d - a] : 1;
        for (int a = 0; a < d; a++) shape[1 + a] = coords.shape[1 + a];
        shape[d + 1] = d;
        want_shape(coords, "coords", shape, axes);
        want_dense(coords, "coords");
    } else {
        i64 shape[3] = {p.batch, kind == stn::AFFINE ? d : kind == stn::PROJECTIVE ? d + 1 : coords.shape[1], kind == stn::BASIS ? d : d + 1};
        want_shape(coords, "coords", shape, 3);
        want_dense(coords, "coords");
    }
    if (kind == stn::BASIS) {
        if (basis_tensor.is_none()) refuse("basis", "expected a tensor (pixels, K)");
        DLTensor basis = view_of(basis_tensor, "basis", 2);
        i64 shape[2] = {pixels, coords.shape[1]};
        want_type(basis, "basis", stn::F64);
        want_shape(basis, "basis", shape, 2);
        if (pixels > 1 && basis.strides[0] != 1) refuse("basis", "expected pixels next to each other in memory");
        p.basis = reinterpret_cast<const double*>(basis.begin());
        p.basis_size = basis.shape[1];
        p.basis_stride = basis.strides[1];
    }
    if (!fill_tensor.is_none()) {
        DLTensor fill = view_of(fill_tensor, "fill", 1);
        want_type(fill, "fill", working);
        want_shape(fill, "fill", &p.channels, 1);
        want_dense(fill, "fill");
        p.fill = fill.begin();
    }

    if (what == stn::GRAD_COORDINATES) {
        want_type(result, "result", type_of(coords, "coords"));
        want_shape(result, "result", coords.shape, coords.ndim);
        want_dense(result, "result");
        p.grad_coordinates = result.begin();
    } else if (what == stn::GRAD_IMAGE) {
        p.grad_as_image = type_of(result, "result") == p.type;
        if (!p.grad_as_image) want_type(result, "result", working);
        want_shape(result, "result", image.shape, axes);
        for (int a = 0; a < axes; a++)
            if (image.shape[a] > 1 && result.strides[a] != image.strides[a]) refuse("result", "expected the strides of the image");
        p.grad_image = result.begin();
    } else {
        want_type(result, "result", p.type);
        want_shape(result, "result", out.shape, axes);
        if (result.begin() != out.begin()) refuse("result", "expected the output");
    }
    size_t fresh = result.bits / 8;
    for (int a = 0; a < result.ndim; a++) fresh *= size_t(result.shape[a]);
    stn::Status status;
    {
        nb::gil_scoped_release release;
        stn::large_pages(result.begin(), fresh);
        status = p.polynomials ? stn::chosen_polynomials(p.type)(p) : stn::chosen(p.type)(p);
    }
    if (status == stn::NO_MEMORY) throw std::bad_alloc();
    return status == stn::DONE;
}

// A kernel for `run`: the polynomials of its taps, each from the constant on, and the recursive filters before it.
nb::capsule polynomials(const std::vector<std::vector<double>>& taps, const std::vector<double>& poles, int reach) {
    using stn::Polynomials;
    if (taps.size() < 3 || taps.size() > Polynomials::MOST_TAPS) refuse("taps", "expected 3 to 6 of them, got " + std::to_string(taps.size()));
    if (poles.size() > Polynomials::MOST_POLES) refuse("poles", "expected at most two, got " + std::to_string(poles.size()));
    for (double pole : poles)
        if (!(pole > -1 && pole < 0)) refuse("poles", "expected numbers between -1 and 0, got " + std::to_string(pole));
    if (reach < 0 || reach > 256) refuse("reach", "expected 0 to 256 pixels, got " + std::to_string(reach));
    auto* made = new Polynomials{};
    nb::capsule owner(made, POLYNOMIALS, [](void* p) noexcept { delete static_cast<Polynomials*>(p); });
    made->taps = int(taps.size());
    made->degree = int(taps[0].size()) - 1;
    if (made->degree < 0 || made->degree > Polynomials::MOST_DEGREE) refuse("taps", "expected polynomials of a degree up to 23, got " + std::to_string(made->degree));
    for (std::size_t tap = 0; tap < taps.size(); tap++) {
        if (taps[tap].size() != taps[0].size()) refuse("taps", "expected polynomials of the same degree");
        for (std::size_t power = 0; power < taps[tap].size(); power++) made->weight[power][tap] = taps[tap][power];
    }
    made->poles = int(poles.size());
    for (std::size_t k = 0; k < poles.size(); k++) made->pole[k] = poles[k];
    made->reach = reach;
    return owner;
}

std::string choose(const std::string& limit) {
    const char* name = stn::choose(limit.c_str());
    if (!name) refuse("limit", "expected the name of an instruction set, got '" + limit + "'");
    return name;
}

nb::dict named(std::initializer_list<std::pair<const char*, int>> numbers) {
    nb::dict all;
    for (const auto& [name, number] : numbers) all[name] = number;
    return all;
}

}  // namespace

NB_MODULE(_native, m) {
    stn::choose("");
    m.attr("FORWARD") = int(stn::FORWARD);
    m.attr("GRAD_COORDINATES") = int(stn::GRAD_COORDINATES);
    m.attr("GRAD_IMAGE") = int(stn::GRAD_IMAGE);
    m.attr("MODES") = named({{"nearest", stn::NEAREST}, {"bilinear", stn::LINEAR}, {"bicubic", stn::CUBIC}});
    m.attr("INTEGER") = int(stn::INTEGER);
    m.attr("PADDINGS") = named({{"zeros", stn::ZEROS}, {"border", stn::BORDER}, {"reflection", stn::REFLECTION}, {"circular", stn::CIRCULAR}, {"constant", stn::CONSTANT}});
    m.attr("COORDINATES") = named({{"affine", stn::AFFINE}, {"projective", stn::PROJECTIVE}, {"basis", stn::BASIS}, {"grid", stn::GRID}, {"pixels", stn::PIXELS}, {"field", stn::FIELD}});
    m.attr("KINK") = stn::KINK;
    nb::list sets;
    for (int set = 0; set < int(std::size(stn::INSTRUCTION_SETS)); set++)
        if (stn::is_built(set)) sets.append(stn::INSTRUCTION_SETS[set]);
    m.attr("INSTRUCTION_SETS") = nb::tuple(sets);
    m.def("connect", &connect, "Whether this tensor type can be read.");
    m.def("run", &run, nb::arg("what"), nb::arg("mode"), nb::arg("padding"), nb::arg("kind"), nb::arg("align_corners"),
          nb::arg("threads"), nb::arg("image"), nb::arg("coords"), nb::arg("basis").none(), nb::arg("fill").none(),
          nb::arg("out"), nb::arg("result"), nb::arg("polynomials").none() = nb::none(), nb::arg("is_signal") = false);
    m.def("polynomials", &polynomials, nb::arg("taps"), nb::arg("poles"), nb::arg("reach"),
          "An interpolation kernel for `run`: its taps' weights as polynomials in u = t - 1/2, poles of its prefilter.");
    m.def("pixel_stride", [](nb::handle tensor) { return pixel_stride(view(tensor)); });
    m.def("override", &stn::override_grid_sampler, nb::arg("library"), nb::arg("originals"),
          "Puts itself under torch's grid_sampler ops, switched off: what is missing for it, or nothing.");
    m.def("switch_override", [](bool on) { stn::switch_override(on); });
    m.def("override_calls", &stn::override_calls, "How many calls ran here, and how many torch's own kernels ran.");
    m.def("xla_handler", [] { return nb::capsule(stn::xla_handler()); }, "For `jax.ffi.register_ffi_target`.");
    stn::bind_cpab(m);
    stn::bind_area(m);
    stn::bind_deformable(m);
    stn::bind_flow(m);
    stn::bind_linearized(m);
    m.def("choose", &choose, nb::arg("limit") = "");
    m.def("instruction_set", [] { return std::string(stn::instruction_set()); });
}
