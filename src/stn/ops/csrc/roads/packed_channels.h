// Many channels in two dimensions, linear, of small images: padded copies whose pixels hold all channels of a share next to
// each other, so that a pixel's four taps are read as vectors of channels.
#pragma once
#include "../channels.h"
#include "../job.h"
#include "../padded.h"

namespace stn::STN_SET {
namespace {

template <class T, int D, int MODE>
struct PackedChannels {
    typedef Padded<float, LINEAR> Packed;
    static constexpr bool BUILT = D == 2 && MODE == LINEAR && std::is_same_v<Working<T>, float>;
    static constexpr int SHARE = 64;  // channels that are worked on at the same time, at most

    const Job<T, D, MODE>& job;
    const Problem& p = job.p;

    bool fits() const { return share() > 0; }

    Status forward() const {
        i64 share = this->share(), groups = (p.channels + share - 1) / share;
        job.parallel(p.batch * groups, [&](i64 task) {
            i64 b = task / groups, ch = task % groups * share;
            int n = int(p.channels - ch < share ? p.channels - ch : share), cell = int(full(n));
            Packed packed(p, 0, p.in[1], cell);
            pack(packed, static_cast<const T*>(p.image) + b * p.image_batch + ch * p.image_channel, n, ch);
            Positions<float, D> positions = job.positions(b);
            Chunk<float> c;
            Corners corners(cell, packed.p.image_stride[1]);
            alignas(64) float values[LANES * SHARE];
            T* out = static_cast<T*>(p.output) + b * p.out_batch + ch * p.out_channel;
            for (i64 chunk = 0; chunk < job.chunks; chunk++) {
                job.start(c, chunk);
                positions.fill(c);
                packed.locate(c);
                for (int k = 0; k < c.count; k += LANES) {
                    int some = c.count - k < LANES ? c.count - k : LANES;
                    for (int q = 0; q < some; q++) {
                        corners.weigh(c.t[0][k + q], c.t[1][k + q]);
                        corners.blend(packed.data + c.offset[k + q], cell, values + q * cell);
                    }
                    scatter_planes(values, cell, some, n, out + (c.first + k) * p.out_pixel, p.out_channel, p.out_pixel);
                }
            }
        });
        return DONE;
    }

    Status grad_coordinates() const {
        i64 share = this->share(), sums = job.positions(0).sums(), groups = (p.channels + share - 1) / share;
        i64 parts = sums ? groups : 1;  // a grid's gradient takes one share after the other
        double* total = job.allocate_sums(parts * sums);
        if (!total) return NO_MEMORY;
        job.parallel(p.batch * parts, [&](i64 task) {
            i64 b = task / parts;
            Positions<float, D> positions = job.positions(b);
            Chunk<float> c;
            alignas(64) float g[LANES * SHARE];
            alignas(64) Row<float> grad[3];
            for (i64 group = task % parts; group < groups; group += parts) {
                i64 ch = group * share;
                int n = int(p.channels - ch < share ? p.channels - ch : share), cell = int(full(n));
                Packed packed(p, 0, p.in[1], cell);
                pack(packed, static_cast<const T*>(p.image) + b * p.image_batch + ch * p.image_channel, n, ch);
                Corners corners(cell, packed.p.image_stride[1]);
                const T* out = static_cast<const T*>(p.output) + b * p.out_batch + ch * p.out_channel;
                for (i64 chunk = 0; chunk < job.chunks; chunk++) {
                    job.start(c, chunk);
                    positions.fill(c);
                    job.slopes_at(c, grad, [&](Row<float>* to) {
                        bool fine = packed.locate(c);
                        for (int k = 0; k < c.count; k += LANES) {
                            int some = c.count - k < LANES ? c.count - k : LANES;
                            gather_planes(out + (c.first + k) * p.out_pixel, p.out_channel, p.out_pixel, some, n, g, cell);
                            vfloat x[LANES] = {}, y[LANES] = {};
                            for (int q = 0; q < some; q++)
                                corners.slopes(packed.data + c.offset[k + q], g + q * cell, cell, c.t[0][k + q], c.t[1][k + q], x[q], y[q]);
                            store(to[0] + k, sums_of(x));
                            store(to[1] + k, sums_of(y));
                        }
                        if (!fine)
                            for (int k = 0; k < c.count; k++)
                                if (!is_finite<float, D>(c, k)) to[0][k] = to[1][k] = 0;
                    });
                    positions.reduce(c, grad, total + task * sums, group > 0 && !sums);
                }
            }
        });
        job.finish(total, parts, sums);
        return DONE;
    }

    Status grad_image() const {
        i64 share = this->share(), groups = (p.channels + share - 1) / share;
        job.parallel(p.batch * groups, [&](i64 task) {
            i64 b = task / groups, ch = task % groups * share;
            int n = int(p.channels - ch < share ? p.channels - ch : share), cell = int(full(n));
            Packed packed(p, 0, p.in[1], cell);
            memset(packed.data, 0, size_t(packed.plane) * sizeof(float));
            Positions<float, D> positions = job.positions(b);
            Chunk<float> c;
            Corners corners(cell, packed.p.image_stride[1]);
            alignas(64) float g[LANES * SHARE];
            const T* out = static_cast<const T*>(p.output) + b * p.out_batch + ch * p.out_channel;
            for (i64 chunk = 0; chunk < job.chunks; chunk++) {
                job.start(c, chunk);
                positions.fill(c);
                packed.locate(c);
                for (int k = 0; k < c.count; k += LANES) {
                    int some = c.count - k < LANES ? c.count - k : LANES;
                    gather_planes(out + (c.first + k) * p.out_pixel, p.out_channel, p.out_pixel, some, n, g, cell);
                    for (int q = 0; q < some; q++) {
                        if (!is_finite<float, D>(c, k + q)) continue;
                        corners.weigh(c.t[0][k + q], c.t[1][k + q]);
                        corners.spread(packed.data + c.offset[k + q], g + q * cell, cell);
                    }
                }
            }
            i64 at = b * p.image_batch + ch * p.image_channel;
            if (p.grad_as_image) give(packed, n, static_cast<T*>(p.grad_image) + at);
            else give(packed, n, static_cast<float*>(p.grad_image) + at);
        });
        return DONE;
    }

private:
    static i64 full(i64 channels) { return (channels + LANES - 1) / LANES * LANES; }

    // How many channels are packed together; 0 where this does not pay. By shapes alone, for sums over channels depend on it.
    i64 share() const {
        if (p.channels < 16 || p.image_stride[0] != 1 || 4 * p.channels < 3 * full(p.channels)) return 0;
        if (std::is_same_v<T, bf16> && p.what != GRAD_IMAGE) return 0;  // its pairs are cheaper to read than to transpose
        if (!can_be_padded(p) || p.in[0] > 4096 || p.in[1] > 4096 || p.in[0] * p.in[1] > 4 * job.pixels) return 0;
        // Half of the scratch leaves room in the second cache for what is read and written meanwhile.
        i64 bytes = Packed::bytes(p.in[0], p.in[1]), fit = SCRATCH / 2 / bytes;
        if (fit < 16) fit = SCRATCH / bytes < 16 ? SCRATCH / bytes : 16;
        fit = (fit < SHARE ? fit : SHARE) / LANES * LANES;
        if (!fit) return 0;
        i64 groups = (p.channels + fit - 1) / fit, finest = p.channels / 16;
        if (p.batch * groups < 8) groups = (8 + p.batch - 1) / p.batch;
        groups = groups < finest || fit < 16 ? groups : finest;
        i64 share = ((p.channels + groups - 1) / groups + LANES - 1) / LANES * LANES;
        return share < fit ? share : fit;
    }

    void pack(const Packed& packed, const T* image, int channels, i64 first_channel) const {
        constexpr int M = Packed::MARGIN;
        i64 cell = packed.p.image_stride[0], line = packed.p.image_stride[1], wide = p.in[0];
        alignas(64) float fill[SHARE] = {};
        for (int ch = 0; ch < channels; ch++) fill[ch] = background<float>(p, first_channel + ch);
        auto repeat = [&](float* to, const float* pixel, i64 count) {
            for (i64 x = 0; x < count; x++) memcpy(to + x * cell, pixel, size_t(cell) * sizeof(float));
        };
        bool border = p.padding == BORDER;
        for (i64 y = 0; y < p.in[1]; y++) {
            float* to = packed.data + (y + M) * line + M * cell;
            const T* from = image + y * p.image_stride[1];
            for (i64 x = 0; x < wide; x += LANES) {
                if (x + LANES > wide && wide > LANES) x = wide - LANES;
                gather_planes(from + x, p.image_channel, 1, int(wide - x < LANES ? wide - x : LANES), channels, to + x * cell, cell);
            }
            repeat(to - M * cell, border ? to : fill, M);
            repeat(to + wide * cell, border ? to + (wide - 1) * cell : fill, M);
        }
        for (int y = 0; y < 2 * M; y++) {
            i64 row = y < M ? y : packed.height - 1 - y + M, nearest = y < M ? M : packed.height - 1 - M;
            if (border) memcpy(packed.data + row * line, packed.data + nearest * line, size_t(line) * sizeof(float));
            else repeat(packed.data + row * line, fill, packed.width);
        }
    }

    template <class G>
    void give(const Packed& packed, int channels, G* image) const {
        constexpr int M = Packed::MARGIN;
        i64 cell = packed.p.image_stride[0], line = packed.p.image_stride[1], wide = p.in[0];
        auto add = [](float* to, const float* from, i64 count) {
            for (i64 e = 0; e < count; e++) to[e] += from[e];
        };
        if (p.padding == BORDER) {  // the margin shows border pixels
            for (int y = 0; y < M; y++) {
                add(packed.data + M * line, packed.data + y * line, line);
                add(packed.data + (packed.height - 1 - M) * line, packed.data + (packed.height - 1 - y) * line, line);
            }
            for (i64 y = M; y < packed.height - M; y++)
                for (int x = 0; x < M; x++) {
                    float* at = packed.data + y * line;
                    add(at + M * cell, at + x * cell, cell);
                    add(at + (packed.width - 1 - M) * cell, at + (packed.width - 1 - x) * cell, cell);
                }
        }
        for (i64 y = 0; y < p.in[1]; y++)
            for (i64 x = 0; x < wide; x += LANES) {
                if (x + LANES > wide && wide > LANES) x = wide - LANES;
                scatter_planes(packed.data + (y + M) * line + (x + M) * cell, cell, int(wide - x < LANES ? wide - x : LANES), channels,
                               image + y * p.image_stride[1] + x, p.image_channel, 1);
            }
    }
};

}  // namespace
}  // namespace stn::STN_SET
