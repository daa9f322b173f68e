// Images of two to four bytes a pixel, as decoders give them: LANES pixels are a vector.
#pragma once
#include "../border.h"
#include "../inside.h"
#include "../job.h"

namespace stn::STN_SET {
namespace {

template <class T, int D, int MODE>
struct InterleavedBytes {
    static constexpr bool BUILT = D == 2 && MODE == LINEAR && std::is_same_v<T, u8> && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;

    const Job<T, D, MODE>& job;
    const Problem& p = job.p;

    bool fits() const { return job.channels_last && p.out_channel == 1 && p.channels <= 4 && p.image_stride[0] == p.channels; }

    Status forward() const {
        if (p.channels == 2) read<2>();
        else if (p.channels == 3) read<3>();
        else read<4>();
        return DONE;
    }

private:
    template <int C>
    void read() const {
        job.for_chunks([&](const Positions<float, D>& positions, Chunk<float>& c, i64 b) {
            const u8* image = static_cast<const u8*>(p.image) + b * p.image_batch;
            positions.fill(c);
            classify<float, D, MODE>(p, c, true, 0, p.in[1]);
            for (int k = 0; k < c.count; k += LANES) {
                u8* to = static_cast<u8*>(p.output) + b * p.out_batch + (c.first + k) * p.out_pixel;
                int some = c.count - k < LANES ? c.count - k : LANES;
                if (!none(c.inside + k, LANES)) blend<C>(c, k, image, some, to);
                if (c.inside_count == c.count) continue;
                for (int q = k; q < k + some; q++, to += p.out_pixel) {
                    if (c.inside[q]) continue;
                    if (c.nothing_count && c.nothing[q])
                        for (int ch = 0; ch < C; ch++) put(to[ch], background<float>(p, ch));
                    else
                        BorderPixel<T, D, MODE>{p, c, q}.forward(image, to);
                }
            }
        });
    }

    template <int C>
    void blend(const Chunk<float>& c, int k, const u8* image, int some, u8* to) const {
        vfloat x = load<vfloat>(c.t[0] + k), y = load<vfloat>(c.t[1] + k), x_ = 1 - x, y_ = 1 - y;
        const u8* below = image + p.image_stride[1];
        const i64* o = c.offset + k;
        c.prefetch_later(image, o);
        // Two neighbours are 2 C bytes, of which these are the first four and the last four.
        vint left[2] = {words(image, o, Lanes()), words(below, o, Lanes())};
        vint right[2] = {words(image + 2 * C - 4, o, Lanes()), words(below + 2 * C - 4, o, Lanes())};
        vint pixels = {};
        for (int ch = 0; ch < C; ch++) {
            int l = 8 * ch, r = 8 * (4 - C + ch);
            vfloat a = mix(floats(left[0] >> l & 255), floats(left[1] >> l & 255), y_, y);
            vfloat b = mix(floats(right[0] >> r & 255), floats(right[1] >> r & 255), y_, y);
            pixels |= (vint(mix(a, b, x_, x) + 0x1.8p23f) & 255) << l;  // as `put`
        }
        alignas(64) int buffer[LANES];
        store(buffer, pixels);
        for (int q = 0; q < some; q++) memcpy(to + q * p.out_pixel, buffer + q, C);
    }
};

}  // namespace
}  // namespace stn::STN_SET
