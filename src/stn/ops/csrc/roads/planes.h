// Plane by plane, whatever the layout: pixels inside go through loops over chunks, the others tap by tap. Fits always.
#pragma once
#include "../inside.h"
#include "../job.h"

namespace stn::STN_SET {
namespace {

template <class T, int D, int MODE>
struct Planes {
    typedef Working<T> R;
    static constexpr bool BUILT = true;

    const Job<T, D, MODE>& job;
    const Problem& p = job.p;

    bool fits() const { return true; }

    Status forward() const {
        job.for_chunks([&](const Positions<R, D>& positions, Chunk<R>& c, i64 b) {
            const T* image = static_cast<const T*>(p.image) + b * p.image_batch;
            T* out = static_cast<T*>(p.output) + b * p.out_batch;
            alignas(64) Row<R> buffer[GROUP];
            positions.fill(c);
            classify<R, D, MODE>(p, c, job.rows_contiguous, 0, p.in[D - 1]);
            for (i64 ch = 0; ch < p.channels; ch += GROUP) {
                int n = int(p.channels - ch < GROUP ? p.channels - ch : GROUP);
                const T* planes = image + ch * p.image_channel;
                auto to = job.values_of(c, out + ch * p.out_channel, buffer);
                if (c.inside_count) Inside<T, R, D, MODE>::forward(p, c, planes, n, to.data, to.apart);
                if (c.nothing_count)
                    for (int e = 0; e < n; e++) {
                        R* one = to.data + e * to.apart;
                        R fill = background<R>(p, ch + e);
                        for (int k = 0; k < c.count; k++) one[k] = c.nothing[k] ? fill : one[k];
                    }
                for (int q = 0; q < c.rest; q++) {
                    int k = c.others[q];
                    Taps<R, D, MODE> taps(p, c, k, false, 0, p.in[D - 1]);
                    for (int e = 0; e < n; e++) {
                        R total = p.fill || taps.fill_weight != taps.fill_weight ? taps.fill_weight * background<R>(p, ch + e) : 0;
                        for (int tap = 0; tap < taps.count; tap++) total += taps.weight[tap] * get(planes[e * p.image_channel + taps.offset[tap]]);
                        to.data[e * to.apart + k] = is_finite<R, D>(c, k) ? total : R(NAN);
                    }
                }
                job.write(c, out + ch * p.out_channel, n, buffer);
            }
        });
        return DONE;
    }

    Status grad_coordinates() const {
        return job.reduce_chunks([&](Chunk<R>& c, i64 b, Row<R>* grad) {
            const T* image = static_cast<const T*>(p.image) + b * p.image_batch;
            const T* out = static_cast<const T*>(p.output) + b * p.out_batch;
            alignas(64) Row<R> buffer[GROUP];
            classify<R, D, MODE>(p, c, job.rows_contiguous, 0, p.in[D - 1]);
            for (i64 ch = 0; ch < p.channels; ch += GROUP) {
                int n = int(p.channels - ch < GROUP ? p.channels - ch : GROUP);
                const T* planes = image + ch * p.image_channel;
                auto g = job.read_grad(c, out + ch * p.out_channel, n, buffer);
                // The loop for the pixels inside writes neighbours too.
                R kept[3][CHUNK];
                if (ch)
                    for (int q = 0; q < c.rest; q++)
                        for (int a = 0; a < D; a++) kept[a][q] = grad[a][c.others[q]];
                if (c.inside_count) Inside<T, R, D, MODE>::slopes(p, c, planes, n, g.data, g.apart, grad, ch > 0);
                for (int q = 0; q < c.rest; q++) {
                    int k = c.others[q];
                    R total[3] = {};
                    if (ch)
                        for (int a = 0; a < D; a++) total[a] = kept[a][q];
                    if (is_finite<R, D>(c, k)) {
                        Taps<R, D, MODE> taps(p, c, k, true, 0, p.in[D - 1]);
                        for (int e = 0; e < n; e++) {
                            R one = g.data[e * g.apart + k];
                            if (p.fill)
                                for (int a = 0; a < D; a++) total[a] += taps.fill_slope[a] * background<R>(p, ch + e) * one;
                            for (int tap = 0; tap < taps.count; tap++) {
                                R v = get(planes[e * p.image_channel + taps.offset[tap]]) * one;
                                for (int a = 0; a < D; a++) total[a] += taps.slope[a][tap] * v;
                            }
                        }
                    }
                    for (int a = 0; a < D; a++) grad[a][k] = total[a];
                }
            }
            if (c.nothing_count)
                for (int a = 0; a < D; a++)
                    for (int k = 0; k < c.count; k++) grad[a][k] = c.nothing[k] ? 0 : grad[a][k];
        });
    }

    Status grad_image() const {
        if (p.grad_as_image && !std::is_same_v<T, R>) return WORKING_TYPE;
        job.for_parts(GROUP, [&](Chunk<R>& c, const auto& part) {
            alignas(64) Row<R> buffer[GROUP];
            classify<R, D, MODE>(p, c, job.rows_contiguous, part.from, part.to);
            if (!c.inside_count && !c.rest) return;
            auto g = job.read_grad(c, part.out, part.channels, buffer);
            if (c.inside_count) spread_inside(c, part.channels, part.image, g.data, g.apart);
            for (int q = 0; q < c.rest; q++) {
                int k = c.others[q];
                if (!is_finite<R, D>(c, k)) continue;
                Taps<R, D, MODE> taps(p, c, k, false, part.from, part.to);
                for (int e = 0; e < part.channels; e++)
                    for (int tap = 0; tap < taps.count; tap++) part.image[e * p.image_channel + taps.offset[tap]] += taps.weight[tap] * g.data[e * g.apart + k];
            }
        });
        return DONE;
    }

private:
    void spread_inside(const Chunk<R>& c, int channels, R* image, const R* g, i64 apart) const {
        constexpr int K = Kernel<MODE>::K, NR = Rows<D, MODE>::N;
        Rows<D, MODE> rows(p);
        if constexpr (MODE == LINEAR) {
            alignas(64) R weights[NR][2 * CHUNK];
            for (int r = 0; r < NR; r++)
                for (int k = 0; k < c.count; k++) {
                    R x = c.t[0][k], y = c.t[1][k], z = c.t[D - 1][k];
                    R w = (r % 2 ? y : 1 - y) * (D > 2 ? (r / 2 ? z : 1 - z) : 1);
                    weights[r][2 * k] = w * (1 - x), weights[r][2 * k + 1] = w * x;
                }
            for (int ch = 0; ch < channels; ch++) {
                R* plane = image + ch * p.image_channel;
                const R* from = g + ch * apart;
                for (int k = 0; k < c.count; k += 16) prefetch(from + k, CHUNK * i64(sizeof(R)));
                job.stirred(c.count, [&](size_t k) {
                    if (!c.inside[k]) return;
                    R* to = plane + c.offset[k];
                    prefetch(to, c.ahead * i64(sizeof(R)));
                    for (int r = 0; r < NR; r++) add_pair(to + rows.at[r], from[k], weights[r] + 2 * k);
                });
            }
        } else {
            for (int k = 0; k < c.count; k++) {
                if (!c.inside[k]) continue;
                R w[3][K], dw[3][K];
                for (int a = 0; a < D; a++) axis_weights<MODE>(c.t[a][k], w[a], dw[a]);
                for (int ch = 0; ch < channels; ch++) {
                    R* to = image + ch * p.image_channel + c.offset[k];
                    for (int r = 0; r < NR; r++) {
                        R one = g[ch * apart + k] * w[1][r % K] * (D > 2 ? w[D - 1][r / K] : 1);
                        for (int e = 0; e < K; e++) to[rows.at[r] + e] += one * w[0][e];
                    }
                }
            }
        }
    }
};

}  // namespace
}  // namespace stn::STN_SET
