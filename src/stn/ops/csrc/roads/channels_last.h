// Channels next to each other in memory, of any number and type: loops over them, pixel by pixel.
#pragma once
#include "../border.h"
#include "../job.h"

namespace stn::STN_SET {
namespace {

// The taps of pixels inside, of which each has the same offsets.
template <class T, int D, int MODE>
struct InsideTaps {
    typedef Working<T> R;
    static constexpr int K = Kernel<MODE>::K, N = Taps<R, D, MODE>::N;
    i64 at[N];
    R w[N], slope[D][N];

    explicit InsideTaps(const Problem& p) {
        for (int e = 0; e < N; e++) {
            at[e] = e % K * p.image_stride[0] + e / K % K * p.image_stride[1];
            if (D > 2) at[e] += e / (K * K) * p.image_stride[2];
        }
    }

    inline void weigh(const Chunk<R>& c, int k) {
        R one[3][K], by[3][K];
        for (int a = 0; a < D; a++) axis_weights<MODE>(c.t[a][k], one[a], by[a]);
        for (int e = 0; e < N; e++) {
            int q[3] = {e % K, e / K % K, e / (K * K)};
            w[e] = 1;
            for (int a = 0; a < D; a++) w[e] *= one[a][q[a]];
            for (int a = 0; a < D; a++) {
                slope[a][e] = by[a][q[a]];
                for (int o = 0; o < D; o++)
                    if (o != a) slope[a][e] *= one[o][q[o]];
            }
        }
    }

    // C channels, or as many as there are.
    template <int C>
    inline void blend(const T* __restrict from, i64 channels, T* __restrict to) const {
        if constexpr (MODE == NEAREST) {
            memcpy(to, from, size_t(C ? C : channels) * sizeof(T));
            return;
        }
        for (i64 ch = 0; ch < (C ? C : channels); ch++) {
            R total = w[0] * get(from[ch]);
            for (int e = 1; e < N; e++) total += w[e] * get(from[at[e] + ch]);
            put(to[ch], total);
        }
    }

    template <int C>
    inline void dot(const T* __restrict from, i64 channels, const T* __restrict g, R* grad) const {
        R sum[N] = {};
        for (int e = 0; e < N; e++) {
            R one = 0;
#pragma omp simd reduction(+ : one)
            for (i64 ch = 0; ch < (C ? C : channels); ch++) one += get(g[ch]) * get(from[at[e] + ch]);
            sum[e] = one;
        }
        for (int a = 0; a < D; a++) {
            grad[a] = 0;
            for (int e = 0; e < N; e++) grad[a] += slope[a][e] * sum[e];
        }
    }

    template <int C>
    inline void spread(R* image, i64 channels, const T* g) const {
        for (int e = 0; e < N; e++) {
            R* __restrict to = image + at[e];
            const T* __restrict from = g;
            for (i64 ch = 0; ch < (C ? C : channels); ch++) to[ch] += w[e] * get(from[ch]);
        }
    }
};

template <class T, int D, int MODE>
struct ChannelsLast {
    typedef Working<T> R;
    static constexpr bool BUILT = true;
    static constexpr bool LOOPS = MODE != CUBIC;  // whose 16 or 64 taps go one by one

    const Job<T, D, MODE>& job;
    const Problem& p = job.p;

    bool fits() const { return job.channels_last && (p.what == GRAD_IMAGE || p.out_channel == 1); }

    Status forward() const {
        job.for_chunks([&](const Positions<R, D>& positions, Chunk<R>& c, i64 b) {
            const T* image = static_cast<const T*>(p.image) + b * p.image_batch;
            T* out = static_cast<T*>(p.output) + b * p.out_batch;
            positions.fill(c);
            classify<R, D, MODE>(p, c, LOOPS, 0, p.in[D - 1]);
            InsideTaps<T, D, MODE> taps(p);
            for (int k = 0; k < c.count; k++) {
                T* to = out + (c.first + k) * p.out_pixel;
                if (LOOPS && c.inside[k]) {
                    taps.weigh(c, k);
                    const T* from = image + c.offset[k];
                    prefetch(from, c.ahead * i64(sizeof(T)));
                    if (p.channels == 3) taps.template blend<3>(from, 3, to);
                    else if (p.channels == 4) taps.template blend<4>(from, 4, to);
                    else taps.template blend<0>(from, p.channels, to);
                } else if (c.nothing_count && c.nothing[k]) {
                    for (i64 ch = 0; ch < p.channels; ch++) put(to[ch], background<R>(p, ch));
                } else {
                    BorderPixel<T, D, MODE>{p, c, k}.forward(image, to);
                }
            }
        });
        return DONE;
    }

    Status grad_coordinates() const {
        return job.reduce_chunks([&](Chunk<R>& c, i64 b, Row<R>* grad) {
            const T* image = static_cast<const T*>(p.image) + b * p.image_batch;
            const T* out = static_cast<const T*>(p.output) + b * p.out_batch;
            classify<R, D, MODE>(p, c, LOOPS, 0, p.in[D - 1]);
            InsideTaps<T, D, MODE> taps(p);
            for (int k = 0; k < c.count; k++) {
                const T* g = out + (c.first + k) * p.out_pixel;
                if (LOOPS && c.inside[k]) {
                    R slope[3];
                    taps.weigh(c, k);
                    const T* from = image + c.offset[k];
                    prefetch(from, c.ahead * i64(sizeof(T)));
                    if (p.channels == 3) taps.template dot<3>(from, 3, g, slope);
                    else taps.template dot<0>(from, p.channels, g, slope);
                    for (int a = 0; a < D; a++) grad[a][k] = slope[a];
                } else if (c.nothing_count && c.nothing[k]) {
                    for (int a = 0; a < D; a++) grad[a][k] = 0;
                } else {
                    BorderPixel<T, D, MODE>{p, c, k}.slopes(image, g, grad);
                }
            }
        });
    }

    Status grad_image() const {
        if (p.grad_as_image && !std::is_same_v<T, R>) return WORKING_TYPE;
        job.for_parts(64, [&](Chunk<R>& c, const auto& part) {
            classify<R, D, MODE>(p, c, LOOPS && p.out_channel == 1, part.from, part.to);
            InsideTaps<T, D, MODE> taps(p);
            for (int k = 0; k < c.count; k++) {
                if (c.nothing_count && c.nothing[k]) continue;
                const T* g = part.out + (c.first + k) * p.out_pixel;
                if (LOOPS && c.inside[k]) {
                    taps.weigh(c, k);
                    if (part.channels == 3) taps.template spread<3>(part.image + c.offset[k], 3, g);
                    else taps.template spread<0>(part.image + c.offset[k], part.channels, g);
                } else {
                    BorderPixel<T, D, MODE>{p, c, k}.spread(part.channels, part.image, g, part.from, part.to);
                }
            }
        });
        return DONE;
    }
};

}  // namespace
}  // namespace stn::STN_SET
