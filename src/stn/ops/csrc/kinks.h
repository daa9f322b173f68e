// The kinks of linear interpolation: its slope in a position jumps where that lies on a pixel's centre.
#pragma once
#include "chunk.h"

namespace stn::STN_SET {
namespace {

// How far from a centre, in pixels, a position may lie by rounding alone, on an axis of n pixels.
template <class R>
inline R kink_width(i64 n) {
    R width = R(KINK) * R(sizeof(R) == 4 ? 0x1p-23 : 0x1p-52) * R(n);
    return width < R(0.5) ? width : R(0.5);
}

// Moves the positions that lie on a kink to its other side, along each axis, and says whether there are any. What lies far
// outside stays: it is as good as constant.
template <class R, int D>
STN_SHARED bool cross_kinks(const Problem& p, Chunk<R>& c) {
    int n = c.count, found = 0;
    for (int a = 0; a < D; a++) {
        R low = kink_width<R>(p.in[a]), high = 1 - low;
        const R* __restrict t = c.t[a];
        for (int k = 0; k < n; k++) found |= (t[k] <= low) | (t[k] >= high);
    }
    if (!found) return false;
    constexpr int far = int(FAR);
    for (int a = 0; a < D; a++) {
        R low = kink_width<R>(p.in[a]), high = 1 - low;
        int* __restrict i = c.i[a];
        R* __restrict t = c.t[a];
        for (int k = 0; k < n; k++) {
            bool within = (i[k] > -far) & (i[k] < far), left = within & (t[k] <= low), right = within & !left & (t[k] >= high);
            i[k] += int(right) - int(left);
            t[k] = left ? R(1) : right ? R(0) : t[k];
        }
    }
    return true;
}

template <class R, int D>
STN_SHARED void average(const Chunk<R>& c, Row<R>* grad, const Row<R>* other) {
    for (int a = 0; a < D; a++)
        for (int k = 0; k < c.count; k++) {
            R one = grad[a][k], two = other[a][k];
            grad[a][k] = two - two == 0 ? R(0.5) * one + R(0.5) * two : one;
        }
}

}  // namespace
}  // namespace stn::STN_SET
