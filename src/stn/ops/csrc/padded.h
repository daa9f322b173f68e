// A small image, or a tile of one, copied with its padding around it: no pixel needs a bounds test, and whatever the type
// and layout of the image, the copy is dense and of the working type.
#pragma once
#include "pixels.h"
#include "taps.h"

namespace stn::STN_SET {
namespace {

constexpr i64 SCRATCH = 640 << 10;

inline void* scratch() {  // one a thread, kept
    static thread_local void* memory = nullptr;
    if (!memory && posix_memalign(&memory, 64, SCRATCH + 4096)) memory = nullptr;
    return memory;
}

// Reflections and repetitions of an image are no margin of a few pixels.
inline bool can_be_padded(const Problem& p) {
    return (p.padding == ZEROS || p.padding == BORDER || p.padding == CONSTANT) && scratch();
}

template <class R, int MODE>
struct Padded {
    static constexpr int K = Kernel<MODE>::K, MARGIN = MODE == CUBIC ? 4 : 2;
    Problem p;      // with the strides of the copy, for the loops that read it
    i64 width, height, plane, from, to, left, wide;
    R* data;

    // Rows from..to of the problem's image, `cell` numbers for each pixel; all columns, or `columns` from `start` on.
    Padded(const Problem& problem, i64 first, i64 last, int cell = 1, i64 start = 0, i64 columns = -1) : p(problem), from(first), to(last), left(start) {
        wide = columns < 0 ? problem.in[0] : columns;
        width = wide + 2 * MARGIN;
        height = to - from + 2 * MARGIN;
        plane = width * height * cell;
        p.image_stride[0] = cell;
        p.image_stride[1] = width * cell;
        p.image_channel = plane;
        data = static_cast<R*>(scratch());
    }

    static i64 bytes(i64 columns, i64 rows, int cell = 1) {
        return (columns + 2 * MARGIN) * (rows + 2 * MARGIN) * cell * i64(sizeof(R));
    }

    template <class T>
    void fill(const T* image, const Problem& source, int channels, i64 first_channel) {
        for (int ch = 0; ch < channels; ch++) {
            R outside = background<R>(source, first_channel + ch);
            const T* plane_from = image + ch * source.image_channel;
            for (i64 y = -MARGIN; y < to - from + MARGIN; y++) {
                R* row = data + ch * plane + (y + MARGIN) * width;
                i64 line = y < 0 ? 0 : y < to - from ? y : to - from - 1;
                if (line != y && source.padding != BORDER) {
                    for (i64 x = 0; x < width; x++) row[x] = outside;
                    continue;
                }
                const T* at = plane_from + line * source.image_stride[1];
                R* __restrict inner = row + MARGIN;
                if (source.image_stride[0] == 1)
                    for (i64 x = 0; x < wide; x++) inner[x] = get(at[x]);
                else
                    for (i64 x = 0; x < wide; x++) inner[x] = get(at[x * source.image_stride[0]]);
                R left = source.padding == BORDER ? inner[0] : outside;
                R right = source.padding == BORDER ? inner[wide - 1] : outside;
                for (int x = 0; x < MARGIN; x++) row[x] = left, inner[wide + x] = right;
            }
        }
    }

    // Offsets into the copy, for every pixel: those far outside read the margin. True if no position is NaN.
    STN_INLINE bool locate(Chunk<R>& c) const {
        constexpr int before = Kernel<MODE>::before, low = MODE == CUBIC ? -3 : -2, beyond = MODE == CUBIC ? 1 : 0;
        int last_x = int(wide) + beyond, last_y = int(to - from) + beyond, begin = int(left), top = int(from), n = c.count;
        int cell = int(p.image_stride[0]), line = int(p.image_stride[1]);
        const int *__restrict x = c.i[0], *__restrict y = c.i[1];
        i64* __restrict offset = c.offset;
        int bad = 0;
        for (int k = 0; k < n; k++) {
            int u = x[k] - begin, v = y[k] - top;
            u = u < low ? low : u;
            u = u > last_x ? last_x : u;
            v = v < low ? low : v;
            v = v > last_y ? last_y : v;
            offset[k] = (v + (MARGIN - before)) * line + (u + (MARGIN - before)) * cell;
            c.inside[k] = 1;
        }
        for (int k = 0; k < n; k++) {
            R total = c.t[0][k] + c.t[1][k];
            bad |= total != total;
        }
        for (int k = n; k < (n + LANES - 1) / LANES * LANES; k++) offset[k] = 0, c.inside[k] = 0;
        c.inside_count = n;
        c.nothing_count = c.rest = 0;
        c.ahead = 0, c.sparse = false;
        return !bad;
    }
};

}  // namespace
}  // namespace stn::STN_SET
