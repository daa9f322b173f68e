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

// Whether any position of the chunk may lie on a kink; only ever wrong with yes.
template <class R, int D>
inline bool meets_kinks(const Problem& p, const Chunk<R>& c) {
    const R *__restrict x = c.t[0], *__restrict y = c.t[1], *__restrict z = c.t[D - 1];
    R most_x = 0, most_y = 0, most_z = 0;
#pragma omp simd reduction(max : most_x, most_y, most_z)
    for (int k = 0; k < c.count; k++) {
        R u = x[k] - R(0.5), v = y[k] - R(0.5);
        u = u < 0 ? -u : u;
        v = v < 0 ? -v : v;
        most_x = u > most_x ? u : most_x;
        most_y = v > most_y ? v : most_y;
        if (D > 2) {
            R w = z[k] - R(0.5);
            w = w < 0 ? -w : w;
            most_z = w > most_z ? w : most_z;
        }
    }
    R most[3] = {most_x, most_y, most_z};  // of their distances from half-way between two centres
    bool found = false;
    for (int a = 0; a < D; a++) found |= most[a] >= R(0.5) - R(1.5) * kink_width<R>(p.in[a]);
    return found;
}

// Moves the positions that lie on a kink to its other side, along each axis. What lies far outside stays: it is as good as
// constant.
template <class R, int D>
STN_SHARED void cross_kinks(const Problem& p, Chunk<R>& c) {
    constexpr int far = int(FAR);
    const int n = c.count;
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
}

template <class R, int D>
STN_SHARED void average(const Chunk<R>& c, Row<R>* grad, const Row<R>* other) {
    const int n = c.count;
    for (int a = 0; a < D; a++)
        for (int k = 0; k < n; k++) {
            R one = grad[a][k], two = other[a][k];
            grad[a][k] = two - two == 0 ? R(0.5) * one + R(0.5) * two : one;
        }
}

}  // namespace
}  // namespace stn::STN_SET
