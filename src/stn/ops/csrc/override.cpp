// torch's four ops below `grid_sample`, grid_sampler_2d, grid_sampler_3d and their backwards, run here: for every caller of a
// process, in eager, traced, scripted and exported programs.
//
// NOTE [ How a call gets here ]
//
// torch's dispatcher looks up the kernel of an op by a key, CPU for tensors in memory. Autograd, autocast, functorch and tracers
// have keys above it and stay as they are. Kernels are registered through the C functions that torch keeps stable for
// extensions (torch/csrc/stable/c/shim.h), without any header of torch: arguments come as an array of 64-bit words, in which
// a tensor is a handle, and so does the result. What is not for us goes to torch's own kernels, below the dispatcher: these are
// C++ functions, whose symbols Python names (_torch.py).
//
// A registration stays for the life of the process, and `on` decides who runs. To undo it while another thread is in one of
// its kernels would free what that thread is about to read.
#include "override.h"

#include <array>
#include <atomic>
#include <cstring>
#include <tuple>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#include "process.h"

namespace stn {
namespace {

using Word = std::uint64_t;
using Object = void*;  // a handle: of a tensor, an at::Tensor on the heap
using Kernel = void (*)(Word*, Word, Word);

// All but the first few return 0, or not 0 after an exception.
struct Torch {
    std::int32_t (*dtype_float32)();
    std::int32_t (*dtype_float64)();
    std::int32_t (*dtype_bfloat16)();
    std::int32_t (*dtype_float16)();
    int (*library_init)(const char*, const char*, const char*, std::uint32_t, Object*);
    int (*library_impl)(Object, const char*, Kernel);
    int (*num_threads)(std::uint32_t*);
    int (*list_item)(Object, std::size_t, Word*);
    int (*delete_list)(Object);
    int (*new_tensor)(Object*);
    int (*delete_tensor)(Object);
    int (*empty_strided)(i64, const i64*, const i64*, std::int32_t, std::int32_t, std::int32_t, Object*);
    int (*copy)(Object, Object, std::int32_t);
    int (*dim)(Object, i64*);
    int (*sizes)(Object, i64**);
    int (*strides)(Object, i64**);
    int (*data)(Object, void**);
    int (*offset)(Object, i64*);
    int (*dtype)(Object, std::int32_t*);
    int (*device)(Object, std::int32_t*);
} torch;

// Returned as at::Tensor is: into memory of the caller.
struct Returned {
    void* implementation;
    Returned(const Returned&) = delete;
    ~Returned() {}
};
static_assert(sizeof(Returned) == sizeof(void*), "a tensor is a pointer");
using Two = std::tuple<Returned, Returned>;
using Forward = Returned (*)(const void* image, const void* grid, i64 mode, i64 padding, bool align_corners);
using Backward = Two (*)(const void* grad, const void* image, const void* grid, i64, i64, bool, std::array<bool, 2>);

struct Originals {
    Forward forward[2];  // 2D, 3D
    Backward backward[2];
} originals;

std::atomic<bool> on{false};
std::atomic<i64> ours{0}, theirs{0};

struct Failed {};
inline void check(int status) {
    if (status) throw Failed();
}

class Tensor {
public:
    Tensor() = default;
    explicit Tensor(Object object) : object_(object) {}
    Tensor(const Tensor&) = delete;
    Tensor(Tensor&& other) : object_(other.release()) {}
    Tensor& operator=(Tensor&& other) {
        std::swap(object_, other.object_);
        return *this;
    }
    ~Tensor() {
        if (object_) torch.delete_tensor(object_);
    }

    // Of torch's making.
    static Tensor undefined() {
        Object object;
        check(torch.new_tensor(&object));
        return Tensor(object);
    }
    static Tensor of(const Returned& returned) {
        Tensor tensor = undefined();
        *static_cast<void**>(tensor.object_) = returned.implementation;
        return tensor;
    }

    Object get() const { return object_; }
    Object release() {
        Object object = object_;
        object_ = nullptr;
        return object;
    }

private:
    Object object_ = nullptr;
};

struct View {
    int ndim, type;  // type: -1 for those that have no kernels
    const i64 *shape, *strides;
    char* data;

    bool has_shape(const i64* wanted) const { return !std::memcmp(shape, wanted, sizeof(i64) * std::size_t(ndim)); }

    i64 count() const {
        i64 n = 1;
        for (int a = 0; a < ndim; a++) n *= shape[a];
        return n;
    }

    bool is_dense() const {
        i64 expected = 1;
        for (int a = ndim - 1; a >= 0; a--) {
            if (shape[a] > 1 && strides[a] != expected) return false;
            expected *= shape[a];
        }
        return true;
    }

    // Of (B, C, [D,] H, W).
    bool is_channels_last() const { return shape[1] > 1 && strides[1] == 1 && !is_dense(); }
    bool has_one_pixel_stride() const {
        i64 step = 0, expected = -1;
        for (int a = ndim - 1; a > 1; a--) {
            if (shape[a] == 1) continue;
            if (expected < 0) step = expected = strides[a];
            else if (strides[a] != expected) return false;
            expected *= shape[a];
        }
        return step >= 0;
    }
    i64 pixel_stride() const {
        for (int a = ndim - 1; a > 1; a--)
            if (shape[a] > 1) return strides[a];
        return 1;
    }

    // Of the elements that lie between the first and the last.
    i64 extent() const {
        i64 last = 0;
        for (int a = 0; a < ndim; a++) last += (shape[a] - 1) * strides[a];
        return last + 1;
    }
};

constexpr std::size_t SIZE[] = {4, 8, 2, 2};  // of F32, F64, BF16, F16

int type_of(std::int32_t dtype) {
    static const std::int32_t types[] = {torch.dtype_float32(), torch.dtype_float64(), torch.dtype_bfloat16(), torch.dtype_float16()};
    for (int type = 0; type < 4; type++)
        if (types[type] == dtype) return type;
    return -1;
}
std::int32_t dtype_of(int type) {
    return type == F32 ? torch.dtype_float32() : type == F64 ? torch.dtype_float64() : type == BF16 ? torch.dtype_bfloat16() : torch.dtype_float16();
}
int working(int type) { return type == F64 ? F64 : F32; }

// False for what has no numbers in memory, or none that we could read.
bool view(const Tensor& tensor, View& v) {
    i64 ndim, offset, *shape, *strides;
    std::int32_t dtype, device;
    void* data;
    check(torch.dim(tensor.get(), &ndim));
    if (ndim < 4 || ndim > 5) return false;
    check(torch.sizes(tensor.get(), &shape));
    check(torch.strides(tensor.get(), &strides));
    check(torch.dtype(tensor.get(), &dtype));
    check(torch.device(tensor.get(), &device));
    v = {int(ndim), type_of(dtype), shape, strides, nullptr};
    if (device != 0 || v.type < 0) return false;
    for (int a = 0; a < v.ndim; a++)
        if (shape[a] < 1) return false;
    check(torch.offset(tensor.get(), &offset));
    check(torch.data(tensor.get(), &data));
    v.data = static_cast<char*>(data);
    // Where a storage was freed torch adds the offset of a view to a null pointer.
    return reinterpret_cast<std::uintptr_t>(data) != std::uintptr_t(offset) * SIZE[v.type];
}

Tensor empty(const i64* shape, int ndim, int type, View& v) {
    i64 strides[5], expected = 1;
    for (int a = ndim - 1; a >= 0; a--) strides[a] = expected, expected *= shape[a];
    Object object;
    check(torch.empty_strided(ndim, shape, strides, dtype_of(type), 0, 0, &object));
    Tensor tensor(object);
    if (!view(tensor, v)) throw Failed();
    large_pages(v.data, std::size_t(expected) * SIZE[type]);
    return tensor;
}

// `v` then looks at the copy, which the caller keeps.
Tensor copy(const Tensor& tensor, int type, View& v) {
    Tensor to = empty(v.shape, v.ndim, type, v);
    check(torch.copy(to.get(), tensor.get(), 0));
    return to;
}

struct Call {
    View image, grid;
    Tensor image_copy, grid_copy;  // of what the kernels do not read as it is
    int d, mode, padding;
    bool align_corners;
    int threads;

    // Whether ours is faster than torch's, as `python -m benchmarks.accelerate` measures: many small images are as slow as one
    // of them. Half precision is a matter of being right.
    bool pays(bool is_backward) const {
        const i64 batch = image.shape[0], channels = image.shape[1], pixels = grid.count() / d / batch, work = pixels * channels;
        if (image.type == BF16 || image.type == F16) return true;
        if (mode == NEAREST) return false;  // and ties are settled by torch's rounding of positions
        if (d == 3) return pixels >= 200 && work >= (is_backward ? 512 : 200);
        if (mode == CUBIC) return padding == REFLECTION ? pixels >= 144 && channels >= 3 : work >= 192;
        if (padding == REFLECTION || pixels < 200 || work * channels < 3600) return false;
        // Without a padded copy (roads/padded_image.h) few channels do not pay, nor do many pixels beyond a border.
        const bool is_padded = image.count() <= 8 * work * batch && (batch >= 8 || work <= 16384);
        return is_padded || channels >= (padding == ZEROS ? 3 : 16);
    }
};

int threads() {
    if (forked()) return 1;
#ifdef _OPENMP
    if (omp_in_parallel()) return 1;
#endif
    std::uint32_t n = 1;
    check(torch.num_threads(&n));
    return int(n);
}

template <class Bits>
bool all_finite(const Bits* from, i64 n, Bits exponent) {
    Bits found = 0;
    for (i64 k = 0; k < n; k++) found |= Bits(0) - Bits((from[k] & exponent) == exponent);
    return !found;
}

template <class Bits>
bool all_finite(const Bits* from, i64 n, Bits exponent, int threads) {
    constexpr i64 PART = 1 << 15;
    i64 parts = (n + PART - 1) / PART;
    threads = int(parts / 4 < threads ? parts / 4 : threads);
    if (threads < 2) return all_finite(from, n, exponent);
    int bad = 0;
#pragma omp parallel for reduction(| : bad) num_threads(threads)
    for (i64 part = 0; part < parts; part++) bad |= !all_finite(from + part * PART, part + 1 < parts ? PART : n - part * PART, exponent);
    return !bad;
}

bool is_finite(const View& grid, int threads) {
    i64 n = grid.extent();
    if (grid.type == F64) return all_finite(reinterpret_cast<const std::uint64_t*>(grid.data), n, std::uint64_t(0x7ff) << 52, threads);
    return all_finite(reinterpret_cast<const std::uint32_t*>(grid.data), n, std::uint32_t(0xff) << 23, threads);
}

// As torch does: what is no position lies on the border, in a reflection on the first pixel's.
template <class R>
void tame(R* numbers, i64 n, bool border) {
    for (i64 k = 0; k < n; k++)
        if (!(numbers[k] - numbers[k] == 0)) numbers[k] = !border ? R(-1) : numbers[k] > 0 ? R(1e30) : R(-1e30);
}

// False where the call is torch's.
bool takes(Call& c, bool is_backward, const Tensor& image, const Tensor& grid, int d, i64 mode, i64 padding, bool align_corners) {
    if (!on.load(std::memory_order_relaxed)) return false;
    const int modes[] = {LINEAR, NEAREST, CUBIC}, paddings[] = {ZEROS, BORDER, REFLECTION};
    if (mode < 0 || mode > (d == 2 ? 2 : 1) || padding < 0 || padding > 2) return false;
    if (!view(image, c.image) || !view(grid, c.grid)) return false;
    c.d = d, c.mode = modes[mode], c.padding = paddings[padding], c.align_corners = align_corners;
    bool matches = c.image.ndim == d + 2 && c.grid.ndim == d + 2 && c.grid.shape[d + 1] == d && c.image.shape[0] == c.grid.shape[0];
    return matches && c.image.type == c.grid.type && c.pays(is_backward);
}

// The grid as the kernels read it.
void prepare(Call& c, const Tensor& image, const Tensor& grid) {
    c.threads = threads();
    bool wide = c.image.type == F32 || c.image.type == F64;
    if (c.image.is_channels_last() && (c.mode == CUBIC || (c.mode == LINEAR && !wide))) c.image_copy = copy(image, c.image.type, c.image);
    if (!wide) c.grid_copy = copy(grid, F32, c.grid);
    // Beyond a background nothing is to be done: torch's values are NaN, too.
    if (c.padding == ZEROS || c.mode == CUBIC) return;
    if (c.grid.extent() > 2 * c.grid.count()) c.grid_copy = copy(grid, c.grid.type, c.grid);
    if (is_finite(c.grid, c.threads)) return;
    if (!c.grid_copy.get()) c.grid_copy = copy(grid, c.grid.type, c.grid);
    if (c.grid.type == F64) tame(reinterpret_cast<double*>(c.grid.data), c.grid.count(), c.padding == BORDER);
    else tame(reinterpret_cast<float*>(c.grid.data), c.grid.count(), c.padding == BORDER);
}

Problem problem(const Call& c, int what, const View& out) {
    Problem p{};
    p.what = what, p.mode = c.mode, p.padding = c.padding, p.kind = GRID, p.align_corners = c.align_corners;
    p.type = c.image.type, p.ndim = c.d, p.threads = c.threads;
    p.batch = c.image.shape[0], p.channels = c.image.shape[1];
    p.image_batch = c.image.strides[0], p.image_channel = c.image.strides[1];
    for (int a = 0; a < 3; a++) {
        p.in[a] = a < c.d ? c.image.shape[1 + c.d - a] : 1;
        p.out[a] = a < c.d ? c.grid.shape[c.d - a] : 1;
        p.image_stride[a] = a < c.d ? c.image.strides[1 + c.d - a] : 0;
        p.grid_stride[a] = a < c.d ? c.grid.strides[c.d - a] : 0;
    }
    p.grid_batch = c.grid.strides[0], p.grid_axis = c.grid.strides[c.d + 1];
    p.image = c.image.data, p.coordinates = c.grid.data, p.output = out.data;
    p.out_batch = out.strides[0], p.out_channel = out.strides[1], p.out_pixel = out.pixel_stride();
    return p;
}

bool run(const Problem& p) {
    Status status = chosen(p.type)(p);
    if (status == NO_MEMORY) throw Failed();
    return status == DONE;
}

void out_shape(const Call& c, i64* shape) {
    shape[0] = c.image.shape[0], shape[1] = c.image.shape[1];
    for (int a = 0; a < c.d; a++) shape[2 + a] = c.grid.shape[1 + a];
}

// Words: image, grid, mode, padding, align_corners.
template <int D>
void forward(Word* words, Word, Word) {
    Tensor image(reinterpret_cast<Object>(words[0])), grid(reinterpret_cast<Object>(words[1])), out;
    i64 mode = i64(words[2]), padding = i64(words[3]);
    bool align_corners = words[4] & 0xff;
    try {
        Call c;
        if (takes(c, false, image, grid, D, mode, padding, align_corners)) {
            prepare(c, image, grid);
            i64 shape[5];
            out_shape(c, shape);
            View v;
            Tensor made = empty(shape, D + 2, c.image.type, v);
            run(problem(c, FORWARD, v));
            out = std::move(made);
        }
    } catch (const Failed&) {  // torch says what it is
    }
    (out.get() ? ours : theirs).fetch_add(1, std::memory_order_relaxed);
    if (!out.get()) out = Tensor::of(originals.forward[D - 2](image.get(), grid.get(), mode, padding, align_corners));
    words[0] = reinterpret_cast<Word>(out.release());
}

// False where the call is torch's.
bool differentiate(Call& c, const Tensor& grad, bool for_image, bool for_grid, Tensor& grad_image, Tensor& grad_grid) {
    const int type = c.image.type;
    View g;
    i64 shape[5];
    out_shape(c, shape);
    if (!view(grad, g) || g.ndim != c.d + 2 || g.type != type || !g.has_shape(shape)) return false;
    Tensor grad_copy;
    if (!g.has_one_pixel_stride()) grad_copy = copy(grad, type, g);
    if (for_image) {
        View v;
        grad_image = empty(c.image.shape, c.d + 2, type, v);
        Problem p = problem(c, GRAD_IMAGE, g);
        p.image_batch = v.strides[0], p.image_channel = v.strides[1];
        for (int a = 0; a < c.d; a++) p.image_stride[a] = v.strides[1 + c.d - a];
        p.grad_image = v.data, p.grad_as_image = true;
        if (!run(p)) {
            Tensor sums = empty(c.image.shape, c.d + 2, working(type), v);
            p.grad_image = v.data, p.grad_as_image = false;
            run(p);
            check(torch.copy(grad_image.get(), sums.get(), 0));
        }
    } else {
        grad_image = Tensor::undefined();
    }
    View v;
    grad_grid = empty(c.grid.shape, c.d + 2, working(type), v);  // torch returns one in any case
    if (for_grid && c.mode != NEAREST) {
        Problem p = problem(c, GRAD_COORDINATES, g);
        p.grad_coordinates = v.data;
        run(p);
    } else {
        std::memset(v.data, 0, std::size_t(v.count()) * SIZE[v.type]);
    }
    if (v.type != type) {
        Tensor rounded = copy(grad_grid, type, v);
        grad_grid = std::move(rounded);
    }
    return true;
}

// Words: grad, image, grid, mode, padding, align_corners, the list of two that says which gradients are wanted.
template <int D>
void backward(Word* words, Word, Word) {
    Tensor grad(reinterpret_cast<Object>(words[0])), image(reinterpret_cast<Object>(words[1])), grid(reinterpret_cast<Object>(words[2]));
    i64 mode = i64(words[3]), padding = i64(words[4]);
    bool align_corners = words[5] & 0xff;
    Object list = reinterpret_cast<Object>(words[6]);
    Word first = 0, second = 0;
    torch.list_item(list, 0, &first);
    torch.list_item(list, 1, &second);
    torch.delete_list(list);
    bool for_image = first & 0xff, for_grid = second & 0xff, done = false;
    Tensor grad_image, grad_grid;
    try {
        Call c;
        if (takes(c, true, image, grid, D, mode, padding, align_corners)) {
            prepare(c, image, grid);
            done = differentiate(c, grad, for_image, for_grid, grad_image, grad_grid);
        }
    } catch (const Failed&) {  // torch says what it is
    }
    (done ? ours : theirs).fetch_add(1, std::memory_order_relaxed);
    if (!done) {
        Two both = originals.backward[D - 2](grad.get(), image.get(), grid.get(), mode, padding, align_corners, {for_image, for_grid});
        grad_image = Tensor::of(std::get<0>(both));
        grad_grid = Tensor::of(std::get<1>(both));
    }
    words[0] = reinterpret_cast<Word>(grad_image.release());
    words[1] = reinterpret_cast<Word>(grad_grid.release());
}

}  // namespace

#if defined(__linux__)
std::string override_grid_sampler(const std::string& library, const std::vector<std::string>& symbols) {
    void* file = dlopen(library.c_str(), RTLD_NOW | RTLD_NOLOAD);
    if (!file) return std::string("a library that is loaded: ") + library;
    std::string missing;
    auto find = [&](auto& function, const char* name) {
        void* found = dlsym(file, name);
        if (!found && missing.empty()) missing = name;
        std::memcpy(&function, &found, sizeof(found));
    };
    find(torch.dtype_float32, "aoti_torch_dtype_float32");
    find(torch.dtype_float64, "aoti_torch_dtype_float64");
    find(torch.dtype_bfloat16, "aoti_torch_dtype_bfloat16");
    find(torch.dtype_float16, "aoti_torch_dtype_float16");
    find(torch.library_init, "aoti_torch_library_init_impl");
    find(torch.library_impl, "aoti_torch_library_impl");
    find(torch.num_threads, "torch_get_num_threads");
    find(torch.list_item, "torch_list_get_item");
    find(torch.delete_list, "torch_delete_list");
    find(torch.new_tensor, "aoti_torch_new_uninitialized_tensor");
    find(torch.delete_tensor, "aoti_torch_delete_tensor_object");
    find(torch.empty_strided, "aoti_torch_empty_strided");
    find(torch.copy, "aoti_torch_copy_");
    find(torch.dim, "aoti_torch_get_dim");
    find(torch.sizes, "aoti_torch_get_sizes");
    find(torch.strides, "aoti_torch_get_strides");
    find(torch.data, "aoti_torch_get_data_ptr");
    find(torch.offset, "aoti_torch_get_storage_offset");
    find(torch.dtype, "aoti_torch_get_dtype");
    find(torch.device, "aoti_torch_get_device_type");
    find(originals.forward[0], symbols.at(0).c_str());
    find(originals.forward[1], symbols.at(1).c_str());
    find(originals.backward[0], symbols.at(2).c_str());
    find(originals.backward[1], symbols.at(3).c_str());
    if (!missing.empty()) return missing;
    Object registration;  // stays
    const std::pair<const char*, Kernel> kernels[] = {
        {"grid_sampler_2d", forward<2>},
        {"grid_sampler_3d", forward<3>},
        {"grid_sampler_2d_backward", backward<2>},
        {"grid_sampler_3d_backward", backward<3>},
    };
    if (torch.library_init("aten", "CPU", __FILE__, __LINE__, &registration)) return "a library of kernels for aten";
    for (const auto& [name, kernel] : kernels)
        if (torch.library_impl(registration, name, kernel)) return std::string("the op ") + name;
    return "";
}
#else
std::string override_grid_sampler(const std::string&, const std::vector<std::string>&) { return "Linux"; }
#endif

void switch_override(bool now) { on = now; }

std::pair<i64, i64> override_calls() { return {ours, theirs}; }

}  // namespace stn
