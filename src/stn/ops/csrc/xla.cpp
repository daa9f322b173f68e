// The door for JAX: a handler of XLA's foreign functions.
//
// No headers of XLA: these are the few structs of its C interface that a handler touches, as they are in
// xla/ffi/api/c_api.h since 0.0 (jaxlib 0.4.31). Each begins with its size, and fields have only been added at the end.
#include "arrays.h"

#include <cstddef>

namespace {

using stn::i64;

struct Extension {
    std::size_t size;
    int type;
    Extension* next;
};
struct Version {
    std::size_t size;
    Extension* extension;
    int major, minor;
};
struct Error;
struct ErrorArguments {
    std::size_t size;
    Extension* extension;
    const char* message;
    int code;
};
struct Api {
    std::size_t size;
    Extension* extension;
    Version version;
    const void* internal;
    Error* (*create_error)(ErrorArguments*);
};
struct Buffer {
    std::size_t size;
    Extension* extension;
    int type;
    void* data;
    i64 rank;
    i64* shape;
};
struct Numbers {
    int type;
    std::size_t count;
    void* data;
};
struct List {
    std::size_t size;
    Extension* extension;
    i64 count;
    int* types;
    void** items;
};
struct Attributes {
    std::size_t size;
    Extension* extension;
    i64 count;
    int* types;
    void** names;
    void** items;
};
struct Frame {
    std::size_t size;
    Extension* extension;
    const Api* api;
    void* context;
    int stage;
    List arguments, results;
    Attributes attributes;
};
struct Metadata {
    std::size_t size;
    Version version;
    std::uint32_t traits;
};
struct MetadataExtension {
    Extension base;
    Metadata* metadata;
};

enum { METADATA = 1, BUFFER = 1, NUMBERS = 1, EXECUTE = 3, INT64 = 5, INVALID_ARGUMENT = 3 };

Error* fail(const Frame* frame, const char* message) {
    ErrorArguments arguments{sizeof(ErrorArguments), nullptr, message, INVALID_ARGUMENT};
    return frame->api->create_error(&arguments);
}

int type_of(int xla) {
    switch (xla) {
        case 11: return stn::F32;
        case 12: return stn::F64;
        case 16: return stn::BF16;
        case 10: return stn::F16;
        case 6: return stn::U8;
        default: return -1;
    }
}

// False where it has more axes than any array of ours.
bool read(const void* item, stn::Array& array) {
    const Buffer& buffer = *static_cast<const Buffer*>(item);
    array = {type_of(buffer.type), int(buffer.rank), buffer.shape, buffer.data};
    return buffer.rank >= 0 && buffer.rank <= 5;
}

Error* handle(Frame* frame) {
    if (frame->extension && frame->extension->type == METADATA) {
        // What is used here is the same in all of 0.x, so that the runtime's own version is right; the first ones passed none.
        Version& version = reinterpret_cast<MetadataExtension*>(frame->extension)->metadata->version;
        version.major = 0, version.minor = frame->api && frame->api->version.major == 0 ? frame->api->version.minor : 1;
        return nullptr;
    }
    if (frame->stage != EXECUTE) return nullptr;
    if (frame->attributes.count != 1 || frame->attributes.types[0] != NUMBERS) return fail(frame, "stn: expected an array of options");
    const Numbers& numbers = *static_cast<Numbers*>(frame->attributes.items[0]);
    if (numbers.count != stn::OPTIONS || numbers.type != INT64) return fail(frame, "stn: expected options in int64");
    if (frame->results.count != 1 || frame->arguments.count < 0 || frame->arguments.count > 4) return fail(frame, "stn: expected two to four arrays and one result");
    stn::Array given[4];
    stn::Arrays arrays{given, int(frame->arguments.count), {}};
    bool readable = frame->results.types[0] == BUFFER && read(frame->results.items[0], arrays.result);
    for (int k = 0; k < arrays.count; k++) readable = readable && frame->arguments.types[k] == BUFFER && read(frame->arguments.items[k], given[k]);
    if (!readable) return fail(frame, "stn: expected arrays of up to five axes");
    const char* wrong = stn::run_arrays(*static_cast<const stn::Options*>(numbers.data), arrays);
    return wrong ? fail(frame, wrong) : nullptr;
}

}  // namespace

namespace stn {
void* xla_handler() { return reinterpret_cast<void*>(&handle); }
}  // namespace stn
