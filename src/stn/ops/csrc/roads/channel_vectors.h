// Channels next to each other in memory, float, in whole vectors: vectors straight from the image.
#pragma once
#include "../border.h"
#include "../channels.h"
#include "../job.h"

namespace stn::STN_SET {
namespace {

template <class T, int D, int MODE>
struct ChannelVectors {
    static constexpr bool BUILT = D == 2 && MODE == LINEAR && std::is_same_v<T, float>;

    const Job<T, D, MODE>& job;
    const Problem& p = job.p;

    bool fits() const { return job.channels_last && p.out_channel == 1 && p.channels % LANES == 0; }

    Status forward() const {
        job.for_chunks([&](const Positions<float, D>& positions, Chunk<float>& c, i64 b) {
            const float* image = static_cast<const float*>(p.image) + b * p.image_batch;
            float* out = static_cast<float*>(p.output) + b * p.out_batch;
            positions.fill(c);
            classify<float, D, MODE>(p, c, true, 0, p.in[D - 1]);
            Corners corners(p.image_stride[0], p.image_stride[1]);
            for (int k = 0; k < c.count; k++) {
                float* to = out + (c.first + k) * p.out_pixel;
                if (c.inside[k]) {
                    corners.weigh(c.t[0][k], c.t[1][k]);
                    corners.blend(image + c.offset[k], int(p.channels), to, c.ahead);
                } else if (c.nothing_count && c.nothing[k]) {
                    for (i64 ch = 0; ch < p.channels; ch++) to[ch] = background<float>(p, ch);
                } else {
                    BorderPixel<T, D, MODE>{p, c, k}.forward(image, to);
                }
            }
        });
        return DONE;
    }

    Status grad_coordinates() const {
        return job.reduce_chunks([&](Chunk<float>& c, i64 b, Row<float>* grad) {
            const float* image = static_cast<const float*>(p.image) + b * p.image_batch;
            const float* out = static_cast<const float*>(p.output) + b * p.out_batch;
            classify<float, D, MODE>(p, c, true, 0, p.in[D - 1]);
            Corners corners(p.image_stride[0], p.image_stride[1]);
            for (int k = 0; k < c.count; k += LANES) {
                int end = c.count - k < LANES ? c.count : k + LANES;
                vfloat x[LANES] = {}, y[LANES] = {};
                for (int q = k; q < end; q++)
                    if (c.inside[q])
                        corners.slopes(image + c.offset[q], out + (c.first + q) * p.out_pixel, int(p.channels), c.t[0][q], c.t[1][q], x[q - k], y[q - k], c.ahead);
                store(grad[0] + k, sums_of(x));
                store(grad[1] + k, sums_of(y));
                for (int q = k; q < end; q++)
                    if (!c.inside[q]) BorderPixel<T, D, MODE>{p, c, q}.slopes(image, out + (c.first + q) * p.out_pixel, grad);
            }
        });
    }

    Status grad_image() const {
        job.for_parts(64, [&](Chunk<float>& c, const auto& part) {
            classify<float, D, MODE>(p, c, true, part.from, part.to);
            Corners corners(p.image_stride[0], p.image_stride[1]);
            for (int k = 0; k < c.count; k++) {
                if (c.nothing_count && c.nothing[k]) continue;
                const float* g = part.out + (c.first + k) * p.out_pixel;
                if (c.inside[k]) {
                    corners.weigh(c.t[0][k], c.t[1][k]);
                    corners.spread(part.image + c.offset[k], g, part.channels, c.ahead);
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
