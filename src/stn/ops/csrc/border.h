// A pixel whose channels lie next to each other, tap by tap: for pixels along the border.
#pragma once
#include "pixels.h"
#include "taps.h"

namespace stn::STN_SET {
namespace {

template <class T, int D, int MODE>
struct BorderPixel {
    typedef Working<T> R;

    const Problem& p;
    const Chunk<R>& c;
    int k;

    void forward(const T* image, T* out) const {
        Taps<R, D, MODE> taps(p, c, k, false, 0, p.in[D - 1]);
        bool finite = is_finite<R, D>(c, k);
        i64 ch = 0;
        constexpr int V = 16;
        for (; ch + V <= p.channels; ch += V) {
            R total[V];
            for (int e = 0; e < V; e++) total[e] = p.fill ? taps.fill_weight * background<R>(p, ch + e) : 0;
            for (int tap = 0; tap < taps.count; tap++) {
                const T* from = image + taps.offset[tap] + ch;
                for (int e = 0; e < V; e++) total[e] += taps.weight[tap] * get(from[e]);
            }
            for (int e = 0; e < V; e++) put(out[ch + e], finite ? total[e] : R(NAN));
        }
        for (; ch < p.channels; ch++) {
            R total = p.fill ? taps.fill_weight * background<R>(p, ch) : 0;
            for (int tap = 0; tap < taps.count; tap++) total += taps.weight[tap] * get(image[taps.offset[tap] + ch]);
            put(out[ch], finite ? total : R(NAN));
        }
    }

    void slopes(const T* image, const T* g, Row<R>* grad) const {
        for (int a = 0; a < D; a++) grad[a][k] = 0;
        if (!is_finite<R, D>(c, k)) return;
        Taps<R, D, MODE> taps(p, c, k, true, 0, p.in[D - 1]);
        if (p.fill) {
            R dot = 0;
            for (i64 ch = 0; ch < p.channels; ch++) dot += get(g[ch]) * background<R>(p, ch);
            for (int a = 0; a < D; a++) grad[a][k] = taps.fill_slope[a] * dot;
        }
        for (int tap = 0; tap < taps.count; tap++) {
            const T* from = image + taps.offset[tap];
            R dot = 0;
#pragma omp simd reduction(+ : dot)
            for (i64 ch = 0; ch < p.channels; ch++) dot += get(g[ch]) * get(from[ch]);
            for (int a = 0; a < D; a++) grad[a][k] += taps.slope[a][tap] * dot;
        }
    }

    // To rows (or slices) from..to of the image; the gradient's channels may lie `p.out_channel` apart.
    void spread(int channels, R* image, const T* g, i64 from, i64 to) const {
        if (!is_finite<R, D>(c, k)) return;
        Taps<R, D, MODE> taps(p, c, k, false, from, to);
        if (p.out_channel == 1) {
            for (int tap = 0; tap < taps.count; tap++) {
                R* __restrict at = image + taps.offset[tap];
                R w = taps.weight[tap];
                for (int ch = 0; ch < channels; ch++) at[ch] += w * get(g[ch]);
            }
            return;
        }
        for (int tap = 0; tap < taps.count; tap++) {
            R* at = image + taps.offset[tap];
            for (int ch = 0; ch < channels; ch++) at[ch] += taps.weight[tap] * get(g[ch * p.out_channel]);
        }
    }
};

}  // namespace
}  // namespace stn::STN_SET
