// The taps of one pixel, wherever they lie, with the padding applied to each.
#pragma once
#include "chunk.h"
#include "interpolation.h"

namespace stn::STN_SET {
namespace {

// The pixel that stands for an integer position, or -1 for the background.
inline i64 pad(i64 k, i64 n, int padding, bool align_corners) {
    if (k >= 0 && k < n) return k;
    if (padding == ZEROS || padding == CONSTANT) return -1;
    if (padding == BORDER) return k < 0 ? 0 : n - 1;
    if (padding == CIRCULAR) return (k % n + n) % n;
    i64 period = align_corners ? (n > 1 ? 2 * (n - 1) : 1) : 2 * n;
    i64 m = (k % period + period) % period;
    if (align_corners) {
        m = m < period - m ? m : period - m;
        return m < n - 1 ? m : n - 1;
    }
    return m < n ? m : period - 1 - m;
}

template <class R>
inline R background(const Problem& p, i64 channel) { return p.fill ? static_cast<const R*>(p.fill)[channel] : 0; }

template <class R, int D, int MODE>
struct Taps {
    static constexpr int K = Kernel<MODE>::K;
    static constexpr int N = D == 2 ? K * K : K * K * K;
    int count = 0;
    i64 offset[N];
    R weight[N], slope[D][N];
    R fill_weight = 0, fill_slope[D] = {};

    STN_SHARED Taps(const Problem& p, const Chunk<R>& c, int k, bool slopes, i64 from, i64 to) {
        i64 at[3][K];
        R w[3][K], dw[3][K];
        for (int a = 0; a < D; a++) {
            axis_weights<MODE>(c.t[a][k], w[a], dw[a]);
            for (int e = 0; e < K; e++) {
                i64 pixel = pad(i64(c.i[a][k]) - Kernel<MODE>::before + e, p.in[a], p.padding, p.align_corners);
                if (a == D - 1 && (pixel < from || pixel >= to)) pixel = -1;
                at[a][e] = pixel < 0 ? -1 : pixel * p.image_stride[a];
            }
        }
        for (int e = 0; e < N; e++) {
            int q[3] = {e % K, e / K % K, e / (K * K)};
            R product = 1;
            i64 where = 0;
            bool in = true;
            for (int a = 0; a < D; a++) {
                product *= w[a][q[a]];
                in &= at[a][q[a]] >= 0;
                where += at[a][q[a]];
            }
            if (in) {
                offset[count] = where;
                weight[count] = product;
            } else {
                fill_weight += product;
            }
            if (slopes)
                for (int a = 0; a < D; a++) {
                    R one = dw[a][q[a]];
                    for (int o = 0; o < D; o++)
                        if (o != a) one *= w[o][q[o]];
                    if (in) slope[a][count] = one;
                    else fill_slope[a] += one;
                }
            count += in;
        }
        if (fill_weight != fill_weight) count = 0;
    }
};

}  // namespace
}  // namespace stn::STN_SET
