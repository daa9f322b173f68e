// Classes of pixels: all taps inside the image, none, or some. `from` and `to` bound the slowest axis: a gradient's owner
// only looks after its own part of the image.
#pragma once
#include "chunk.h"
#include "interpolation.h"

namespace stn::STN_SET {
namespace {

template <class R, int D, int MODE>
STN_SHARED void classify(const Problem& p, Chunk<R>& c, bool contiguous, i64 from, i64 to) {
    constexpr int K = Kernel<MODE>::K, before = Kernel<MODE>::before;
    int low[D];
    unsigned range[D], near[D];  // how many integer parts there are with all taps inside, with some
    bool any = contiguous;
    for (int a = 0; a < D; a++) {
        i64 begin = a == D - 1 ? from : 0, end = a == D - 1 ? to : p.in[a];
        i64 fit = end - begin - K + 1;
        low[a] = int(begin) + before;
        range[a] = fit > 0 ? unsigned(fit) : 0;
        near[a] = unsigned(end - begin + K - 1);
        any &= fit > 0;
    }
    int n = c.count, padded = (n + LANES - 1) / LANES * LANES;
    const int *__restrict x = c.i[0], *__restrict y = c.i[1], *__restrict z = c.i[D - 1];
    uint8_t *__restrict inside = c.inside, *__restrict nothing = c.nothing;
    c.inside_count = c.nothing_count = c.rest = 0;
    if (any) {
        i64 base = 0;
        for (int a = 0; a < D; a++) base += -before * p.image_stride[a];
        i64* __restrict offset = c.offset;
        i64 sx = p.image_stride[0], sy = p.image_stride[1], sz = p.image_stride[2];
        int found = 0;
        for (int k = 0; k < n; k++) {
            bool in = unsigned(x[k] - low[0]) < range[0];
            in &= unsigned(y[k] - low[1]) < range[1];
            if (D > 2) in &= unsigned(z[k] - low[D - 1]) < range[D - 1];
            inside[k] = in;
            found += in;
        }
        for (int k = 0; k < n; k++) {
            i64 at = base + x[k] * sx;
            at += y[k] * sy;
            if (D > 2) at += z[k] * sz;
            offset[k] = inside[k] ? at : 0;
        }
        for (int k = n; k < padded; k++) inside[k] = 0, offset[k] = 0;
        c.inside_count = found;
    } else {
        for (int k = 0; k < padded; k++) inside[k] = 0, c.offset[k] = 0;
    }
    if (c.inside_count == n) return;
    for (int k = n; k < padded; k++) nothing[k] = 0;
    if (p.padding == ZEROS || p.padding == CONSTANT) {
        bool unowned = p.what == GRAD_IMAGE;  // a NaN gives nothing to the image, but is what the output has to be
        int found = 0;
        for (int k = 0; k < n; k++) {
            bool some = unsigned(x[k] - low[0] + (K - 1)) < near[0];
            some &= unsigned(y[k] - low[1] + (K - 1)) < near[1];
            if (D > 2) some &= unsigned(z[k] - low[D - 1] + (K - 1)) < near[D - 1];
            R total = c.t[0][k];
            total += c.t[1][k];
            if (D > 2) total += c.t[D - 1][k];
            bool counts = some | !(unowned | (total == total));
            nothing[k] = !counts;
            found += nothing[k];
        }
        c.nothing_count = found;
    } else if (p.what == GRAD_IMAGE && (from > 0 || to < p.in[D - 1])) {
        // Another part owns what has all taps within the image, but none here; padding does not come in.
        const int* last = c.i[D - 1];
        int all = int(p.in[D - 1]) - K, first = int(from) - K, end = int(to), found = 0;
        for (int k = 0; k < n; k++) {
            int begin = last[k] - before;
            nothing[k] = (begin >= 0) & (begin <= all) & ((begin <= first) | (begin >= end));
            found += nothing[k];
        }
        c.nothing_count = found;
    } else {
        for (int k = 0; k < n; k++) nothing[k] = 0;
    }
    if (c.inside_count + c.nothing_count == n) return;
    for (int k = 0; k < n; k += 8) {
        if ((load<uint64_t>(inside + k) | load<uint64_t>(nothing + k)) == 0x0101010101010101u) continue;
        for (int q = k; q < k + 8 && q < n; q++)
            if (!inside[q] && !nothing[q]) c.others[c.rest++] = uint8_t(q);
    }
}

}  // namespace
}  // namespace stn::STN_SET
