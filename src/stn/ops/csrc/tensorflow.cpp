// The door for TensorFlow, a library of its own (_native.tensorflow.so): TensorFlow takes the ops that a library registers while
// it is loaded. The kernels stay in _native, next to it and loaded before.
//
// Ops come by the C interface for kernels (tensorflow/c/kernels.h, ops.h, tf_tensor.h, tf_status.h), whose functions are looked
// up in the library that is loaded: no headers, nothing to link, one binary for every version that has them.
#include <dlfcn.h>

#include <initializer_list>
#include <limits>
#include <string>
#include <type_traits>

#include "arrays.h"

namespace {

using stn::Array;
using stn::i64;

struct Any;  // whatever a handle of TensorFlow points to

struct Functions {
    Any* (*NewStatus)();
    void (*DeleteStatus)(Any*);
    int (*GetCode)(const Any*);
    void (*SetStatus)(Any*, int, const char*);
    Any* (*NewOpDefinitionBuilder)(const char*);
    void (*OpDefinitionBuilderAddAttr)(Any*, const char*);
    void (*OpDefinitionBuilderAddInput)(Any*, const char*);
    void (*OpDefinitionBuilderAddOutput)(Any*, const char*);
    void (*OpDefinitionBuilderSetShapeInferenceFunction)(Any*, void (*)(Any*, Any*));
    void (*ShapeInferenceContextSetUnknownShape)(Any*, Any*);
    void (*RegisterOpDefinition)(Any*, Any*);
    Any* (*NewKernelBuilder)(const char*, const char*, void* (*)(Any*), void (*)(void*, Any*), void (*)(void*));
    void (*RegisterKernelBuilder)(const char*, Any*, Any*);
    void (*OpKernelConstruction_GetAttrSize)(Any*, const char*, std::int32_t*, std::int32_t*, Any*);
    void (*OpKernelConstruction_GetAttrInt64List)(Any*, const char*, i64*, int, Any*);
    void (*OpKernelConstruction_Failure)(Any*, Any*);
    void (*GetInput)(Any*, int, Any**, Any*);
    Any* (*AllocateOutput)(Any*, int, int, const i64*, int, std::size_t, Any*);
    void (*OpKernelContext_Failure)(Any*, Any*);
    void* (*TensorData)(const Any*);
    int (*NumDims)(const Any*);
    i64 (*Dim)(const Any*, int);
    int (*TensorType)(const Any*);
    void (*DeleteTensor)(Any*);
} tf;
const char* (*run_arrays)(const stn::Options*, const stn::Arrays*);

enum { INVALID_ARGUMENT = 3, INT64 = 9 };
constexpr int TYPES[] = {1, 2, 14, 19, 4};  // TensorFlow's numbers of F32, F64, BF16, F16, U8
constexpr std::size_t SIZE[] = {4, 8, 2, 2, 1};
constexpr int AXES = 5;

int type_of(const Any* tensor) {
    for (int type = 0; type < stn::TYPES; type++)
        if (TYPES[type] == tf.TensorType(tensor)) return type;
    return -1;
}

class Status {
public:
    Status() : status_(tf.NewStatus()) {}
    Status(const Status&) = delete;
    ~Status() { tf.DeleteStatus(status_); }
    operator Any*() { return status_; }
    bool ok() const { return !tf.GetCode(status_); }
    void refuse(const char* why) { tf.SetStatus(status_, INVALID_ARGUMENT, why); }

private:
    Any* status_;
};

class Tensor {
public:
    Tensor() = default;
    Tensor(const Tensor&) = delete;
    ~Tensor() {
        if (tensor_) tf.DeleteTensor(tensor_);
    }
    Any** address() { return &tensor_; }
    Any* get() const { return tensor_; }

    // False where it has more axes than any array of ours.
    bool read(Array& array) {
        const int rank = tf.NumDims(tensor_);
        if (rank < 0 || rank > AXES) return false;
        for (int a = 0; a < rank; a++) shape_[a] = tf.Dim(tensor_, a);
        array = {type_of(tensor_), rank, shape_, tf.TensorData(tensor_)};
        return true;
    }

    // A list of n sizes, false where it is none.
    bool read_sizes(i64* sizes, int n) const {
        if (tf.TensorType(tensor_) != INT64 || tf.NumDims(tensor_) != 1 || tf.Dim(tensor_, 0) != n) return false;
        i64 room = std::numeric_limits<i64>::max() / 8;  // TensorFlow aborts where a product of sizes overflows
        for (int a = 0; a < n; a++) {
            sizes[a] = static_cast<const i64*>(tf.TensorData(tensor_))[a];
            if (sizes[a] < 0 || sizes[a] > room) return false;
            if (sizes[a] > 0) room /= sizes[a];
        }
        return true;
    }

private:
    Any* tensor_ = nullptr;
    i64 shape_[AXES];
};

void* create(Any* construction) {
    Status status;
    auto* options = new stn::Options();
    std::int32_t count = 0, total = 0;
    tf.OpKernelConstruction_GetAttrSize(construction, "options", &count, &total, status);
    if (status.ok() && count != stn::OPTIONS) status.refuse("options: expected as many as stn sends");
    if (status.ok()) tf.OpKernelConstruction_GetAttrInt64List(construction, "options", &options->what, stn::OPTIONS, status);
    if (!status.ok()) tf.OpKernelConstruction_Failure(construction, status);
    return options;
}

void destroy(void* options) { delete static_cast<stn::Options*>(options); }

// The result's type and shape. Returns null, or what is wrong.
const char* shape_of_result(int what, const Tensor* in, const Array* given, bool last, Array& result, i64* shape) {
    const Array& image = given[0];
    result.shape = shape;
    if (what == stn::GRAD_COORDINATES) {
        result.type = given[1].type, result.rank = given[1].rank;
        for (int a = 0; a < result.rank; a++) shape[a] = given[1].shape[a];
        return nullptr;
    }
    if (what == stn::GRAD_IMAGE) {  // shape, coordinates, gradient
        result.type = given[2].type == stn::F64 ? stn::F64 : stn::F32, result.rank = given[2].rank;
        return in[0].read_sizes(shape, result.rank) ? nullptr : "shape: expected that of an image";
    }
    result.type = image.type, result.rank = image.rank;
    i64 size[AXES];
    if (image.rank < 3 || !in[3].read_sizes(size, image.rank - 2)) return "size: expected that of the output";
    i64 room = std::numeric_limits<i64>::max() / 8;
    for (int a = 0; a < image.rank; a++) {
        const int axis = last ? a - 1 : a - 2;
        shape[a] = axis >= 0 && axis < image.rank - 2 ? size[axis] : image.shape[a];
        if (shape[a] > room) return "size: expected that of the output";
        if (shape[a] > 0) room /= shape[a];
    }
    return nullptr;
}

template <int WHAT>
void compute(void* kernel, Any* context) {
    stn::Options options = *static_cast<stn::Options*>(kernel);
    options.what = WHAT;
    constexpr int inputs = WHAT == stn::GRAD_IMAGE ? 3 : 4;
    Status status;
    Tensor in[inputs], out;
    Array given[inputs];
    for (int k = 0; k < inputs && status.ok(); k++) {
        tf.GetInput(context, k, in[k].address(), status);
        if (status.ok() && !in[k].read(given[k])) status.refuse("expected arrays of up to five axes");
    }
    Array result;
    i64 shape[AXES];
    if (status.ok()) {
        const char* wrong = shape_of_result(WHAT, in, given, options.channels_last, result, shape);
        if (wrong) status.refuse(wrong);
        else if (result.type < 0) status.refuse("image: expected a float type or uint8");
    }
    if (status.ok()) {
        std::size_t bytes = SIZE[result.type];
        for (int a = 0; a < result.rank; a++) bytes *= std::size_t(shape[a]);
        *out.address() = tf.AllocateOutput(context, 0, TYPES[result.type], shape, result.rank, bytes, status);
    }
    if (status.ok()) {
        result.data = tf.TensorData(out.get());
        const bool has_fill = WHAT != stn::GRAD_IMAGE && options.padding == stn::CONSTANT;
        const stn::Arrays arrays{WHAT == stn::GRAD_IMAGE ? given + 1 : given, (WHAT == stn::GRAD_COORDINATES ? 3 : 2) + has_fill, result};
        const char* wrong = run_arrays(&options, &arrays);
        if (wrong) status.refuse(wrong);
    }
    if (!status.ok()) tf.OpKernelContext_Failure(context, status);
}

void any_shape(Any* context, Any* status) { tf.ShapeInferenceContextSetUnknownShape(context, status); }

void add(const char* name, std::initializer_list<const char*> inputs, const char* output, void (*run)(void*, Any*)) {
    Status status;
    Any* op = tf.NewOpDefinitionBuilder(name);
    tf.OpDefinitionBuilderAddAttr(op, "T: {float, double, bfloat16, half, uint8}");
    tf.OpDefinitionBuilderAddAttr(op, "C: {float, double}");
    tf.OpDefinitionBuilderAddAttr(op, "options: list(int)");
    for (const char* input : inputs) tf.OpDefinitionBuilderAddInput(op, input);
    tf.OpDefinitionBuilderAddOutput(op, output);
    tf.OpDefinitionBuilderSetShapeInferenceFunction(op, any_shape);
    tf.RegisterOpDefinition(op, status);
    if (status.ok()) tf.RegisterKernelBuilder(name, tf.NewKernelBuilder(name, "CPU", create, run, destroy), status);
}

bool find_kernels() {
    Dl_info here;
    if (!dladdr(reinterpret_cast<void*>(&find_kernels), &here)) return false;
    std::string path = here.dli_fname;
    path = path.substr(0, path.rfind('/') + 1) + STN_NATIVE;
    void* native = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
    if (!native) return false;
    run_arrays = reinterpret_cast<decltype(run_arrays)>(dlsym(native, "stn_run_arrays"));
    return run_arrays;
}

bool find_tensorflow() {
    void* library = dlopen("libtensorflow_framework.so.2", RTLD_LAZY | RTLD_NOLOAD);
    bool found = library;
    auto find = [&](auto& function, const char* name) {
        function = found ? reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name)) : nullptr;
        found = found && function;
    };
#define STN_FIND(name) find(tf.name, "TF_" #name)
    STN_FIND(NewStatus);
    STN_FIND(DeleteStatus);
    STN_FIND(GetCode);
    STN_FIND(SetStatus);
    STN_FIND(NewOpDefinitionBuilder);
    STN_FIND(OpDefinitionBuilderAddAttr);
    STN_FIND(OpDefinitionBuilderAddInput);
    STN_FIND(OpDefinitionBuilderAddOutput);
    STN_FIND(OpDefinitionBuilderSetShapeInferenceFunction);
    STN_FIND(ShapeInferenceContextSetUnknownShape);
    STN_FIND(RegisterOpDefinition);
    STN_FIND(NewKernelBuilder);
    STN_FIND(RegisterKernelBuilder);
    STN_FIND(OpKernelConstruction_GetAttrSize);
    STN_FIND(OpKernelConstruction_GetAttrInt64List);
    STN_FIND(OpKernelConstruction_Failure);
    STN_FIND(GetInput);
    STN_FIND(AllocateOutput);
    STN_FIND(OpKernelContext_Failure);
    STN_FIND(TensorData);
    STN_FIND(NumDims);
    STN_FIND(Dim);
    STN_FIND(TensorType);
    STN_FIND(DeleteTensor);
#undef STN_FIND
    return found;
}

// Without the ops Python finds none in the library, and says so.
const bool started = [] {
    if (!find_kernels() || !find_tensorflow()) return false;
    add("StnWarp", {"image: T", "coordinates: C", "fill: C", "size: int64"}, "out: T", compute<stn::FORWARD>);
    add("StnWarpGradCoordinates", {"image: T", "coordinates: C", "gradient: T", "fill: C"}, "out: C", compute<stn::GRAD_COORDINATES>);
    add("StnWarpGradImage", {"shape: int64", "coordinates: C", "gradient: T"}, "out: C", compute<stn::GRAD_IMAGE>);
    return true;
}();

}  // namespace
