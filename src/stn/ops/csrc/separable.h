// Loops over the pixels of a chunk for kernels of K taps along each of `AXES` axes, whose weights are polynomials: every tap
// lies in the image, and the taps of a row are W numbers, one vector. Weights are evaluated for as many pixels at a time as
// there are W numbers in a register, and what the lanes of a pixel hold is added up for many pixels at once.
#pragma once
#include "chunk.h"

namespace stn::STN_SET {
namespace {

// The polynomials in the working type, of W numbers for each power, again and again in 16.
template <class R>
struct Powers {
    int degree;
    alignas(64) R weight[Polynomials::MOST_DEGREE + 1][16] = {};

    explicit Powers(const Polynomials& kernel) : degree(kernel.degree) {
        const int W = kernel.taps <= 4 ? 4 : 8;
        for (int d = 0; d <= degree; d++)
            for (int e = 0; e < 16; e++) weight[d][e] = e % W < kernel.taps ? R(kernel.weight[d][e % W]) : 0;
    }
};

// Lanes e of the result: lane FIRST + e / W of v.
template <int FIRST, int W, int... I>
inline vfloat repeat(vfloat v, Order<I...>) { return STN_SHUFFLE(v, v, (FIRST + I / W)...); }

template <class R, int AXES, int K>
struct Separable {
    static constexpr int W = K <= 4 ? 4 : 8, NR = AXES == 1 ? 1 : AXES == 2 ? K : K * K;
    typedef R vec __attribute__((vector_size(W * sizeof(R))));
    typedef std::conditional_t<sizeof(R) == 8, i64, int> Bits;
    typedef Bits bits __attribute__((vector_size(W * sizeof(R))));
    typedef R Table[(CHUNK + SLACK) * W];

    const Powers<R>& powers;
    const Chunk<R>& c;
    const i64* step;  // of the image, by axis
    alignas(64) Table w[AXES], dw[AXES];

    Separable(const Powers<R>& polynomials, const Chunk<R>& chunk, const i64* steps, bool slopes) : powers(polynomials), c(chunk), step(steps) {
        if (slopes) weigh<true>();
        else weigh<false>();
    }

    // Without the lanes that are no taps: their weights are 0, what they meet need not be finite.
    static inline vec taps(vec v) {
        if constexpr (K == W) return v;
        bits mask;
        for (int e = 0; e < W; e++) mask[e] = e < K ? Bits(-1) : 0;
        return vec(bits(v) & mask);
    }

    STN_SHARED void forward(const R* image, i64 channel, int channels, R* values, i64 apart) const {
        alignas(64) Table total;
        for (int ch = 0; ch < channels; ch++) {
            const R* plane = image + ch * channel;
            for (int k = 0; k < c.count; k++) {
                const R* from = plane + c.offset[k];
                vec sum = {};
                if constexpr (AXES == 1) {
                    sum = load<vec>(from);
                } else if constexpr (AXES == 2) {
                    for (int r = 0; r < K; r++) sum += w[1][k * W + r] * load<vec>(from + r * step[1]);
                } else {
                    for (int s = 0; s < K; s++) {
                        vec part = {};
                        for (int r = 0; r < K; r++) part += w[1][k * W + r] * load<vec>(from + s * step[2] + r * step[1]);
                        sum += w[2][k * W + s] * part;
                    }
                }
                store(total + k * W, taps(sum * load<vec>(w[0] + k * W)));
            }
            add_up(total, values + ch * apart, false);
        }
    }

    // grad[a][k] = d/d position of the sum over channels of g * value
    STN_SHARED void slopes(const R* image, i64 channel, int channels, const R* g, i64 apart, Row<R>* grad, bool more) const {
        alignas(64) Table total[AXES];
        for (int k = 0; k < c.count; k++) {
            vec dot[NR] = {};
            for (int ch = 0; ch < channels; ch++) {
                const R* from = image + ch * channel + c.offset[k];
                R one = g[ch * apart + k];
                for (int r = 0; r < NR; r++) dot[r] += one * load<vec>(from + (AXES > 2 ? r / K * step[2] : 0) + r % K * step[1]);
            }
            for (int a = 0; a < AXES; a++) {
                vec sum = {};
                if constexpr (AXES == 1) {
                    sum = dot[0];
                } else {
                    const R* y = (a == 1 ? dw[1] : w[1]) + k * W;
                    for (int s = 0; s < NR / K; s++) {
                        vec part = {};
                        for (int r = 0; r < K; r++) part += y[r] * dot[s * K + r];
                        if constexpr (AXES > 2) sum += (a == 2 ? dw[2] : w[2])[k * W + s] * part;
                        else sum = part;
                    }
                }
                store(total[a] + k * W, taps(sum * load<vec>((a == 0 ? dw[0] : w[0]) + k * W)));
            }
        }
        for (int a = 0; a < AXES; a++) add_up(total[a], grad[a], more);
    }

    // Adds g times the weights to rows (or slices) from..to, pixels in the order that is given.
    STN_SHARED void spread(R* image, i64 channel, int channels, const R* g, i64 apart, const uint8_t* order, i64 from, i64 to) const {
        constexpr int before = (K - 1) / 2, slow = AXES == 1 ? 1 : K;
        for (int e = 0; e < c.count; e++) {
            int k = order[e];
            R number = c.t[0][k];
            for (int a = 1; a < AXES; a++) number += c.t[a][k];
            if (number != number) continue;
            i64 first = AXES == 1 ? 0 : i64(c.i[AXES - 1][k]) - before, begin = AXES == 1 ? 0 : from - first, end = AXES == 1 ? 1 : to - first;
            if (begin >= slow || end <= 0) continue;
            vec row[NR];
            for (int r = 0; r < NR; r++) {
                vec one = load<vec>(w[0] + k * W);
                if constexpr (AXES > 1) one *= w[1][k * W + r % K];
                if constexpr (AXES > 2) one *= w[2][k * W + r / K];
                row[r] = one;
            }
            R* at = image + c.offset[k];
            if (begin <= 0 && end >= slow) {
                for (int ch = 0; ch < channels; ch++) {
                    R* plane = at + ch * channel;
                    R one = g[ch * apart + k];
                    for (int r = 0; r < NR; r++) add(plane + (AXES > 2 ? r / K * step[2] : 0) + r % K * step[1], one * row[r]);
                }
            } else {
                for (int ch = 0; ch < channels; ch++)
                    for (int r = 0; r < NR; r++) {
                        i64 s = AXES > 2 ? r / K : r;
                        if (s < begin || s >= end) continue;
                        add(at + ch * channel + (AXES > 2 ? r / K * step[2] : 0) + r % K * step[1], g[ch * apart + k] * row[r]);
                    }
            }
        }
    }

private:
    static inline void add(R* to, vec v) { store(to, load<vec>(to) + taps(v)); }

    template <bool SLOPES>
    STN_SHARED void weigh() {
        for (int a = 0; a < AXES; a++) {
            if constexpr (sizeof(R) == 4 && LANES % W == 0) {
                for (int k = 0; k < c.count; k += LANES) weigh_lanes<SLOPES>(a, k, load<vfloat>(c.t[a] + k) - 0.5f, std::make_integer_sequence<int, W>());
            } else {
                for (int k = 0; k < c.count; k++) {
                    R u = c.t[a][k] - R(0.5);
                    vec value = load<vec>(powers.weight[powers.degree]), slope = {};
                    for (int d = powers.degree - 1; d >= 0; d--) {
                        if (SLOPES) slope = slope * u + value;
                        value = value * u + load<vec>(powers.weight[d]);
                    }
                    store(w[a] + k * W, value);
                    if (SLOPES) store(dw[a] + k * W, slope);
                }
            }
        }
    }

    // Of LANES pixels, in W vectors.
    template <bool SLOPES, int... Q>
    STN_INLINE void weigh_lanes(int a, int k, vfloat all, Order<Q...>) {
        const vfloat u[W] = {repeat<Q * (LANES / W), W>(all, Lanes())...};
        vfloat value[W], slope[W];
        for (int q = 0; q < W; q++) value[q] = load<vfloat>(powers.weight[powers.degree]), slope[q] = vfloat{};
        for (int d = powers.degree - 1; d >= 0; d--) {
            vfloat one = load<vfloat>(powers.weight[d]);
            for (int q = 0; q < W; q++) {
                if (SLOPES) slope[q] = slope[q] * u[q] + value[q];
                value[q] = value[q] * u[q] + one;
            }
        }
        for (int q = 0; q < W; q++) {
            store(w[a] + k * W + q * LANES, value[q]);
            if (SLOPES) store(dw[a] + k * W + q * LANES, slope[q]);
        }
    }

    // The lanes of each pixel.
    inline void add_up(const Table& total, R* to, bool more) const {
        int k = 0;
        if constexpr (sizeof(R) == 4)
            for (; k + LANES <= c.count; k += LANES) {
                vfloat v[W];
                for (int q = 0; q < W; q++) v[q] = load<vfloat>(total + k * W + q * LANES);
                for (int n = W / 2; n; n /= 2)
                    for (int q = 0; q < n; q++) v[q] = evens(v[2 * q], v[2 * q + 1]) + odds(v[2 * q], v[2 * q + 1]);
                store(to + k, more ? load<vfloat>(to + k) + v[0] : v[0]);
            }
        for (; k < c.count; k++) {
            R v[W];
            for (int e = 0; e < W; e++) v[e] = total[k * W + e];
            for (int n = W / 2; n; n /= 2)
                for (int q = 0; q < n; q++) v[q] = v[2 * q] + v[2 * q + 1];
            to[k] = more ? to[k] + v[0] : v[0];
        }
    }
};

}  // namespace
}  // namespace stn::STN_SET
