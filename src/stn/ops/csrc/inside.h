// Pixels whose taps all lie inside the image, rows contiguous: loops without bounds tests, specialized where it pays.
#pragma once
#include "chunk.h"
#include "interpolation.h"
#include "pixels.h"

namespace stn::STN_SET {
namespace {

inline bool none(const uint8_t* inside, int n) {
    bool some = false;
    for (int k = 0; k < n; k++) some |= inside[k];
    return !some;
}

// Offsets of the rows that the taps of a pixel touch, from its first tap.
template <int D, int MODE>
struct Rows {
    static constexpr int K = Kernel<MODE>::K;
    static constexpr int N = D == 2 ? K : K * K;
    i64 at[N];
    explicit Rows(const Problem& p) {
        for (int r = 0; r < N; r++) at[r] = (r % K) * p.image_stride[1] + (D > 2 ? r / K * p.image_stride[2] : 0);
    }
};

// `values[c * apart + k]` for the pixels inside, for `channels` planes; g alike.
template <class T, class R, int D, int MODE>
struct Inside {
    static constexpr int K = Kernel<MODE>::K, NR = Rows<D, MODE>::N;

    static void forward(const Problem& p, const Chunk<R>& c, const T* image, int channels, R* values, i64 apart) {
        Rows<D, MODE> rows(p);
        for (int k = 0; k < c.count; k++) {
            if (!c.inside[k]) continue;
            R w[3][K], dw[3][K];
            for (int a = 0; a < D; a++) axis_weights<MODE>(c.t[a][k], w[a], dw[a]);
            R row_weight[NR];
            for (int r = 0; r < NR; r++) row_weight[r] = w[1][r % K] * (D > 2 ? w[D - 1][r / K] : 1);
            for (int ch = 0; ch < channels; ch++) {
                const T* from = image + ch * p.image_channel + c.offset[k];
                R sum[K] = {};
                for (int r = 0; r < NR; r++)
                    for (int e = 0; e < K; e++) sum[e] += row_weight[r] * get(from[rows.at[r] + e]);
                R total = 0;
                for (int e = 0; e < K; e++) total += sum[e] * w[0][e];
                values[ch * apart + k] = total;
            }
        }
    }

    // grad[a][k] = d/d position of the sum over channels of g * value
    static void slopes(const Problem& p, const Chunk<R>& c, const T* image, int channels, const R* g, i64 apart, Row<R>* grad, bool more) {
        Rows<D, MODE> rows(p);
        for (int k = 0; k < c.count; k++) {
            if (!c.inside[k]) continue;
            R w[3][K], dw[3][K];
            for (int a = 0; a < D; a++) axis_weights<MODE>(c.t[a][k], w[a], dw[a]);
            R dot[NR][K] = {};
            for (int ch = 0; ch < channels; ch++) {
                const T* from = image + ch * p.image_channel + c.offset[k];
                R one = g[ch * apart + k];
                for (int r = 0; r < NR; r++)
                    for (int e = 0; e < K; e++) dot[r][e] += one * get(from[rows.at[r] + e]);
            }
            for (int a = 0; a < D; a++) {
                R total = 0;
                for (int r = 0; r < NR; r++) {
                    R row = 0;
                    for (int e = 0; e < K; e++) row += dot[r][e] * (a == 0 ? dw[0][e] : w[0][e]);
                    R factor = a == 1 ? dw[1][r % K] : w[1][r % K];
                    if (D > 2) factor *= a == 2 ? dw[D - 1][r / K] : w[D - 1][r / K];
                    total += factor * row;
                }
                grad[a][k] = more ? grad[a][k] + total : total;
            }
        }
    }
};

// Nearest: a copy. Pixels elsewhere have the offset 0 and are written again.
template <class T, class R, int D>
struct Inside<T, R, D, NEAREST> {
    static void forward(const Problem& p, const Chunk<R>& c, const T* image, int channels, R* values, i64 apart) {
        for (int ch = 0; ch < channels; ch++) {
            const T* from = image + ch * p.image_channel;
            for (int k = 0; k < c.count; k += LANES) {
                c.prefetch_later(from, c.offset + k);
                for (int q = k; q < k + LANES; q++) values[ch * apart + q] = get(from[c.offset[q]]);
            }
        }
    }
};

// The derivative by each axis of the value between corners.
template <int D>
inline void linear_slopes(const Chunk<float>& c, int k, const vfloat* left, const vfloat* right, vfloat* total) {
    constexpr int NR = 1 << (D - 1);
    vfloat x = load<vfloat>(c.t[0] + k), y = load<vfloat>(c.t[1] + k), z = load<vfloat>(c.t[D - 1] + k);
    vfloat x_ = 1 - x, y_ = 1 - y, z_ = 1 - z;
    if (D == 2) {
        total[0] = mix(right[0] - left[0], right[1] - left[1], y_, y);
        total[D - 1] = mix(left[1] - left[0], right[1] - right[0], x_, x);
    } else {
        constexpr int B = NR - 2, C = NR - 1;
        total[0] = mix(mix(right[0] - left[0], right[1] - left[1], y_, y), mix(right[B] - left[B], right[C] - left[C], y_, y), z_, z);
        vfloat m[NR];
        for (int r = 0; r < NR; r++) m[r] = mix(left[r], right[r], x_, x);
        total[1] = mix(m[1] - m[0], m[C] - m[B], z_, z);
        total[D - 1] = mix(m[B] - m[0], m[C] - m[1], y_, y);
    }
}

// The pairs at LANES offsets, left ones and right ones apart.
template <class T>
struct Pairs {
    vfloat left, right;
    inline Pairs(const T* p, const i64* o);
};
template <>
inline Pairs<bf16>::Pairs(const bf16* p, const i64* o) {
    vint both = words(p, o, Lanes());
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    left = vfloat(both << 16), right = vfloat(both & int(0xffff0000));
#else
    right = vfloat(both << 16), left = vfloat(both & int(0xffff0000));
#endif
}

template <>
inline Pairs<u8>::Pairs(const u8* p, const i64* o) {
    vint both = halves(p, o, Lanes());
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    left = floats(both & 255), right = floats(both >> 8);
#else
    right = floats(both & 255), left = floats(both >> 8);
#endif
}

template <class T, int D>
struct InsidePairs {
    static constexpr int NR = Rows<D, LINEAR>::N;

    static void forward(const Problem& p, const Chunk<float>& c, const T* image, int channels, float* values, i64 apart) {
        Rows<D, LINEAR> rows(p);
        for (int k = 0; k < c.count; k += LANES) {
            if (c.inside_count != c.count && none(c.inside + k, LANES)) continue;
            vfloat x = load<vfloat>(c.t[0] + k), y = load<vfloat>(c.t[1] + k), z = load<vfloat>(c.t[D - 1] + k);
            vfloat x_ = 1 - x, y_ = 1 - y, z_ = 1 - z;
            for (int ch = 0; ch < channels; ch++) {
                const T* from = image + ch * p.image_channel;
                const i64* o = c.offset + k;
                STN_REREAD(o);
                c.prefetch_later(from, o);
                Pairs<T> a(from, o), b(from + rows.at[1], o);
                vfloat left = mix(a.left, b.left, y_, y), right = mix(a.right, b.right, y_, y);
                if (D > 2) {
                    Pairs<T> e(from + rows.at[NR - 2], o), f(from + rows.at[NR - 1], o);
                    left = mix(left, mix(e.left, f.left, y_, y), z_, z);
                    right = mix(right, mix(e.right, f.right, y_, y), z_, z);
                }
                store(values + ch * apart + k, mix(left, right, x_, x));
            }
        }
    }

    static void slopes(const Problem& p, const Chunk<float>& c, const T* image, int channels, const float* g, i64 apart, Row<float>* grad, bool more) {
        Rows<D, LINEAR> rows(p);
        for (int k = 0; k < c.count; k += LANES) {
            if (c.inside_count != c.count && none(c.inside + k, LANES)) continue;
            vfloat left[NR] = {}, right[NR] = {}, total[D];
            const i64* o = c.offset + k;
            for (int ch = 0; ch < channels; ch++) {
                const T* from = image + ch * p.image_channel;
                STN_REREAD(o);
                c.prefetch_later(from, o);
                vfloat one = load<vfloat>(g + ch * apart + k);
                for (int r = 0; r < NR; r++) {
                    Pairs<T> a(from + rows.at[r], o);
                    left[r] += one * a.left;
                    right[r] += one * a.right;
                }
            }
            linear_slopes<D>(c, k, left, right, total);
            for (int a = 0; a < D; a++) store(grad[a] + k, more ? load<vfloat>(grad[a] + k) + total[a] : total[a]);
        }
    }
};
template <int D> struct Inside<bf16, float, D, LINEAR> : InsidePairs<bf16, D> {};
template <int D> struct Inside<u8, float, D, LINEAR> : InsidePairs<u8, D> {};

template <int D>
struct Inside<float, float, D, LINEAR> {
    static constexpr int NR = Rows<D, LINEAR>::N;

    static void forward(const Problem& p, const Chunk<float>& c, const float* image, int channels, float* values, i64 apart) {
        Rows<D, LINEAR> rows(p);
        for (int k = 0; k < c.count; k += LANES) {
            if (c.inside_count != c.count && none(c.inside + k, LANES)) continue;
            vfloat x = load<vfloat>(c.t[0] + k), y = load<vfloat>(c.t[1] + k), z = load<vfloat>(c.t[D - 1] + k);
            vfloat y0 = twice_low(y), y1 = twice_high(y), z0 = twice_low(z), z1 = twice_high(z);
            vfloat x_ = 1 - x, y0_ = 1 - y0, y1_ = 1 - y1, z0_ = 1 - z0, z1_ = 1 - z1;
            for (int ch = 0; ch < channels; ch++) {
                const float* from = image + ch * p.image_channel;
                const i64* o = c.offset + k;
                STN_REREAD(o);
                c.prefetch_later(from, o);
                vfloat a0 = mix(pairs(from, o), pairs(from + rows.at[1], o), y0_, y0);
                vfloat a1 = mix(pairs(from, o + LANES / 2), pairs(from + rows.at[1], o + LANES / 2), y1_, y1);
                if (D > 2) {
                    const float *c2 = from + rows.at[NR - 2], *c3 = from + rows.at[NR - 1];
                    a0 = mix(a0, mix(pairs(c2, o), pairs(c3, o), y0_, y0), z0_, z0);
                    a1 = mix(a1, mix(pairs(c2, o + LANES / 2), pairs(c3, o + LANES / 2), y1_, y1), z1_, z1);
                }
                store(values + ch * apart + k, mix(evens(a0, a1), odds(a0, a1), x_, x));
            }
        }
    }

    static void slopes(const Problem& p, const Chunk<float>& c, const float* image, int channels, const float* g, i64 apart, Row<float>* grad, bool more) {
        Rows<D, LINEAR> rows(p);
        for (int k = 0; k < c.count; k += LANES) {
            if (c.inside_count != c.count && none(c.inside + k, LANES)) continue;
            vfloat dot[NR][2] = {};
            const i64* o = c.offset + k;
            for (int ch = 0; ch < channels; ch++) {
                const float* from = image + ch * p.image_channel;
                STN_REREAD(o);
                c.prefetch_later(from, o);
                vfloat one = load<vfloat>(g + ch * apart + k), g0 = twice_low(one), g1 = twice_high(one);
                for (int r = 0; r < NR; r++) {
                    dot[r][0] += g0 * pairs(from + rows.at[r], o);
                    dot[r][1] += g1 * pairs(from + rows.at[r], o + LANES / 2);
                }
            }
            vfloat left[NR], right[NR], total[D];
            for (int r = 0; r < NR; r++) left[r] = evens(dot[r][0], dot[r][1]), right[r] = odds(dot[r][0], dot[r][1]);
            linear_slopes<D>(c, k, left, right, total);
            for (int a = 0; a < D; a++) store(grad[a] + k, more ? load<vfloat>(grad[a] + k) + total[a] : total[a]);
        }
    }
};

// float, double and uint8, cubic: four pixels of a row are one vector.
template <class T, class R, int D>
struct InsideCubic {
    static constexpr int NR = Rows<D, CUBIC>::N;
    typedef R vec __attribute__((vector_size(4 * sizeof(R))));

    static inline void weights(R t, vec& w, vec& dw) {
        const auto& c = CUBIC_POLYNOMIAL;
        const vec c0 = {R(c[0][0]), R(c[1][0]), R(c[2][0]), R(c[3][0])}, c1 = {R(c[0][1]), R(c[1][1]), R(c[2][1]), R(c[3][1])};
        const vec c2 = {R(c[0][2]), R(c[1][2]), R(c[2][2]), R(c[3][2])}, c3 = {R(c[0][3]), R(c[1][3]), R(c[2][3]), R(c[3][3])};
        w = ((c3 * t + c2) * t + c1) * t + c0;
        dw = (3 * c3 * t + 2 * c2) * t + c1;
    }
    static inline vec four(const T* p) {
        if constexpr (std::is_same_v<T, u8>) {
            typedef int ints __attribute__((vector_size(16)));  // GCC takes vectors of four bytes apart
            const ints shifts = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? ints{0, 8, 16, 24} : ints{24, 16, 8, 0};
            int all = load<int>(p);
            return __builtin_convertvector(ints{all, all, all, all} >> shifts & 255, vec);
        } else {
            return load<vec>(p);
        }
    }
    static inline R sum(vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }

    static void forward(const Problem& p, const Chunk<R>& c, const T* image, int channels, R* values, i64 apart) {
        Rows<D, CUBIC> rows(p);
        for (int k = 0; k < c.count; k++) {
            if (!c.inside[k]) continue;
            vec w[3], dw;
            for (int a = 0; a < D; a++) weights(c.t[a][k], w[a], dw);
            for (int ch = 0; ch < channels; ch++) {
                const T* from = image + ch * p.image_channel + c.offset[k];
                vec total = {};
                if (D == 2) {
                    for (int r = 0; r < 4; r++) total += w[1][r] * four(from + rows.at[r]);
                } else {
                    for (int s = 0; s < 4; s++) {
                        vec plane = {};
                        for (int r = 0; r < 4; r++) plane += w[1][r] * four(from + rows.at[(s * 4 + r) % NR]);
                        total += w[D - 1][s] * plane;
                    }
                }
                values[ch * apart + k] = sum(total * w[0]);
            }
        }
    }

    static void slopes(const Problem& p, const Chunk<R>& c, const T* image, int channels, const R* g, i64 apart, Row<R>* grad, bool more) {
        Rows<D, CUBIC> rows(p);
        for (int k = 0; k < c.count; k++) {
            if (!c.inside[k]) continue;
            vec w[3], dw[3], dot[NR] = {};
            for (int a = 0; a < D; a++) weights(c.t[a][k], w[a], dw[a]);
            for (int ch = 0; ch < channels; ch++) {
                const T* from = image + ch * p.image_channel + c.offset[k];
                for (int r = 0; r < NR; r++) dot[r] += g[ch * apart + k] * four(from + rows.at[r]);
            }
            for (int a = 0; a < D; a++) {
                vec wy = a == 1 ? dw[1] : w[1], wz = D > 2 ? (a == 2 ? dw[D - 1] : w[D - 1]) : w[0], total = {};
                for (int s = 0; s < NR / 4; s++) {
                    vec plane = {};
                    for (int r = 0; r < 4; r++) plane += wy[r] * dot[s * 4 + r];
                    total += D > 2 ? wz[s] * plane : plane;
                }
                R one = sum(total * (a == 0 ? dw[0] : w[0]));
                grad[a][k] = more ? grad[a][k] + one : one;
            }
        }
    }
};
template <int D> struct Inside<float, float, D, CUBIC> : InsideCubic<float, float, D> {};
template <int D> struct Inside<double, double, D, CUBIC> : InsideCubic<double, double, D> {};
template <int D> struct Inside<u8, float, D, CUBIC> : InsideCubic<u8, float, D> {};

}  // namespace
}  // namespace stn::STN_SET
