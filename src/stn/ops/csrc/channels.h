// Many channels: LANES of them are one vector, and those of a pixel lie next to each other.
#pragma once
#include "chunk.h"
#include "pixels.h"

namespace stn::STN_SET {
namespace {

constexpr int NEXT = 32;  // pixels ahead in every plane: more planes than the processor's own prefetcher follows

// The first n of LANES numbers `step` apart, and back.
template <class T>
inline vfloat read_lanes(const T* p, i64 step, int n) {
    alignas(64) float v[LANES] = {};
    if (step == 1 && n == LANES)
        for (int q = 0; q < LANES; q++) v[q] = get(p[q]);
    else
        for (int q = 0; q < n; q++) v[q] = get(p[q * step]);
    return load<vfloat>(v);
}
inline vfloat read_lanes(const float* p, i64 step, int n) {
    return step == 1 && n == LANES ? load<vfloat>(p) : read_lanes<float>(p, step, n);
}
template <class T>
inline void write_lanes(T* p, i64 step, int n, vfloat value) {
    alignas(64) float v[LANES];
    store(v, value);
    if (step == 1 && n == LANES)
        for (int q = 0; q < LANES; q++) put(p[q], v[q]);
    else
        for (int q = 0; q < n; q++) put(p[q * step], v[q]);
}
inline void write_lanes(float* p, i64 step, int n, vfloat value) {
    if (step == 1 && n == LANES) store(p, value);
    else write_lanes<float>(p, step, n, value);
}

// Between planes and pixels: `count` pixels, at most LANES, of `channels` channels; those missing to full vectors are 0.
template <class T>
inline void gather_planes(const T* planes, i64 channel, i64 step, int count, int channels, float* to, i64 cell) {
    for (int ch = 0; ch < channels; ch += LANES) {
        vfloat v[LANES];
        for (int e = 0; e < LANES; e++) {
            if (ch + e < channels) prefetch(planes + (ch + e) * channel, NEXT * step * i64(sizeof(T)));
            v[e] = ch + e < channels ? read_lanes(planes + (ch + e) * channel, step, count) : vfloat{};
        }
        transpose(v);
        for (int q = 0; q < count; q++) store(to + q * cell + ch, v[q]);
    }
}
template <class T>
inline void scatter_planes(const float* from, i64 cell, int count, int channels, T* planes, i64 channel, i64 step) {
    for (int ch = 0; ch < channels; ch += LANES) {
        vfloat v[LANES];
        for (int q = 0; q < LANES; q++) v[q] = q < count ? load<vfloat>(from + q * cell + ch) : vfloat{};
        transpose(v);
        for (int e = 0; e < LANES; e++)
            if (ch + e < channels) {
                prefetch(planes + (ch + e) * channel, NEXT * step * i64(sizeof(T)));
                write_lanes(planes + (ch + e) * channel, step, count, v[e]);
            }
    }
}

// Linear, in two dimensions: the four pixels around a position, and their weights.
struct Corners {
    i64 right, down;
    vfloat w[4];

    Corners(i64 to_right, i64 to_below) : right(to_right), down(to_below) {}

    inline void weigh(float x, float y) {
        float x_ = 1 - x, y_ = 1 - y, one[4] = {x_ * y_, x * y_, x_ * y, x * y};
        for (int e = 0; e < 4; e++) w[e] = one[e] - vfloat{};
    }

    // `ahead`: from here to where a later row of the output reads; 0 in a copy, which lies in the cache.
    inline void blend(const float* at, int channels, float* to, i64 ahead = 0) const {
        const float* below = at + down;
        for (int ch = 0; ch < channels; ch += LANES) {
            if (ahead) prefetch(at + ch, ahead * 4);
            store(to + ch, w[0] * load<vfloat>(at + ch) + w[1] * load<vfloat>(at + right + ch) +
                               (w[2] * load<vfloat>(below + ch) + w[3] * load<vfloat>(below + right + ch)));
        }
    }

    // Products of g with the derivatives of the value, not yet added up over lanes.
    inline void slopes(const float* at, const float* g, int channels, float x, float y, vfloat& by_x, vfloat& by_y, i64 ahead = 0) const {
        const float* below = at + down;
        vfloat a = {}, b = {}, c = {}, d = {};
        for (int ch = 0; ch < channels; ch += LANES) {
            if (ahead) prefetch(at + ch, ahead * 4);
            vfloat one = load<vfloat>(g + ch);
            a += one * load<vfloat>(at + ch), b += one * load<vfloat>(at + right + ch);
            c += one * load<vfloat>(below + ch), d += one * load<vfloat>(below + right + ch);
        }
        by_x = (1 - y) * (b - a) + y * (d - c);
        by_y = (1 - x) * (c - a) + x * (d - b);
    }

    inline void spread(float* at, const float* g, int channels, i64 ahead = 0) const {
        float* below = at + down;
        for (int ch = 0; ch < channels; ch += LANES) {
            if (ahead) prefetch(at + ch, ahead * 4);
            vfloat one = load<vfloat>(g + ch);
            vfloat a = load<vfloat>(at + ch) + w[0] * one, b = load<vfloat>(at + right + ch) + w[1] * one;
            vfloat c = load<vfloat>(below + ch) + w[2] * one, d = load<vfloat>(below + right + ch) + w[3] * one;
            store(at + ch, a), store(at + right + ch, b), store(below + ch, c), store(below + right + ch, d);
        }
    }
};

}  // namespace
}  // namespace stn::STN_SET
