// A chunk of output pixels, numbered row by row: where each is read, and how.
#pragma once
#include "simd.h"

namespace stn::STN_SET {
namespace {

constexpr int CHUNK = 128;       // pixels; scratch for a chunk stays in the first cache
constexpr int SLACK = 64;        // vector loops may write this far past the end of a chunk
constexpr double FAR = 1 << 30;  // positions beyond are all the same far outside

template <class R> using Row = R[CHUNK + SLACK];

template <class R>
struct Chunk {
    i64 first;  // number of the first pixel
    int count;
    i64 ahead;  // from a pixel's offset to about where the image is read a few output rows later, 0 for no prefetch
    bool sparse;  // pixels lie so far apart that each has cache lines of its own
    alignas(64) int i[3][CHUNK + SLACK];
    alignas(64) R t[3][CHUNK + SLACK];
    alignas(64) R u[3][CHUNK + SLACK];        // PROJECTIVE: the normalized position,
    alignas(64) R inverse[CHUNK + SLACK];     // and 1 / denominator, 0 where hidden
    alignas(64) i64 offset[CHUNK + SLACK];    // of the first tap, for pixels inside; else 0
    alignas(8) uint8_t inside[CHUNK + SLACK];
    alignas(8) uint8_t nothing[CHUNK + SLACK]; // the pixel reads nothing but the background
    int inside_count, nothing_count, rest;
    uint8_t others[CHUNK];                    // the remaining pixels: some of their taps are inside

    template <class T>
    STN_INLINE void prefetch_later(const T* image, const i64* offsets) const {
        if (sparse)
            for (int q = 0; q < LANES; q++) prefetch(image + offsets[q], ahead * i64(sizeof(T)));
        else if (ahead)
            for (int q = 0; q < LANES; q += 4) prefetch(image + offsets[q], ahead * i64(sizeof(T)));
    }
};

template <class R>
inline void split(R position, int base, int& i, R& t) {
    int q = int(position);
    q -= R(q) > position;
    t = position - R(q);
    i = base + q;
}

// `source` is what was given: it decides whether the fraction is a number, for in pixels it may be too large for the type.
template <class R>
inline void split_any(R position, R source, int& i, R& t) {
    R c = position > R(-FAR) ? position : R(-FAR);  // without a branch, and a NaN ends here too
    c = c < R(FAR) ? c : R(FAR);
    int q = int(c);
    q -= R(q) > c;
    t = (c - R(q)) + (source - source);
    i = q;
}

// Calls f(k, n, j, r, s) for runs of n pixels of one row, from chunk pixel k on, at output column j, row r, slice s.
template <class F>
inline void for_segments(const Problem& p, i64 first, int count, int longest, F f) {
    i64 row = first / p.out[0], j = first - row * p.out[0];
    i64 s = p.ndim == 3 ? row / p.out[1] : 0, r = row - s * p.out[1];
    for (int k = 0; k < count;) {
        i64 left = p.out[0] - j;
        int n = int(left < count - k ? left : count - k);
        n = n < longest ? n : longest;
        f(k, n, j, r, s);
        k += n;
        j += n;
        if (j == p.out[0]) {
            j = 0;
            if (++r == p.out[1]) r = 0, s++;
        }
    }
}


template <class R, int D>
inline bool is_finite(const Chunk<R>& c, int k) {
    R total = c.t[0][k];
    for (int a = 1; a < D; a++) total += c.t[a][k];
    return total == total;
}

}  // namespace
}  // namespace stn::STN_SET
