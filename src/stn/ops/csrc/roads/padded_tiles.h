// The gradient of an image in two dimensions: a padded copy takes the whole image, or a tile of one, whose margin is thrown
// away or added to the border. With three channels or more a pixel of the copy is a vector of four.
#pragma once
#include "../channels.h"
#include "../inside.h"
#include "../job.h"
#include "../padded.h"

namespace stn::STN_SET {
namespace {

template <class T, int D, int MODE>
struct PaddedTiles {
    typedef Working<T> R;
    typedef Padded<R, MODE> Tile;
    static constexpr bool BUILT = D == 2 && MODE != NEAREST;

    const Job<T, D, MODE>& job;
    const Problem& p = job.p;

    // Outside of a tile that is not the whole image only an affine warp finds the pixels that may touch it.
    bool fits() const {
        if (!can_be_padded(p) || job.channels_last) return false;
        if (p.in[0] > (1 << 20) || p.in[1] > (1 << 20) || p.in[0] * p.in[1] > 16 * job.pixels) return false;
        return p.kind == AFFINE || is_whole();
    }

    Status grad_image() const {
        i64 columns = is_whole() ? p.in[0] : even(p.in[0], 2 * SIZE), rows = is_whole() ? p.in[1] : even(p.in[1], SIZE);
        i64 across = (p.in[0] + columns - 1) / columns, parts = across * ((p.in[1] + rows - 1) / rows);
        i64 share = SCRATCH / Tile::bytes(columns, rows);
        share = share >= 8 ? 8 : share >= 4 ? 4 : share;
        i64 groups = (p.channels + share - 1) / share;
        job.parallel(p.batch * groups * parts, [&](i64 task) {
            i64 part = task % parts, ch = task / parts % groups * share, b = task / parts / groups;
            int n = int(p.channels - ch < share ? p.channels - ch : share);
            i64 left = part % across * columns, top = part / across * rows;
            i64 right = left + columns < p.in[0] ? left + columns : p.in[0], bottom = top + rows < p.in[1] ? top + rows : p.in[1];
            Tile tile(p, top, bottom, n < 3 ? 1 : 4, left, right - left);
            memset(tile.data, 0, size_t(tile.plane * (n < 3 ? n : (n + 3) / 4)) * sizeof(R));
            Positions<R, D> positions = job.positions(b);
            Chunk<R> c;
            const T* out = static_cast<const T*>(p.output) + b * p.out_batch + ch * p.out_channel;
            if (parts == 1) {
                for (i64 chunk = 0; chunk < job.chunks; chunk++) {
                    job.start(c, chunk);
                    spread(positions, tile, c, n, out);
                }
            } else {
                bool border = p.padding == BORDER;
                double low[2] = {double(left - Tile::K / 2), double(top - Tile::K / 2)};
                double high[2] = {double(right + Kernel<MODE>::before), double(bottom + Kernel<MODE>::before)};
                if (border && !left) low[0] = -HUGE_VAL;
                if (border && !top) low[1] = -HUGE_VAL;
                if (border && right == p.in[0]) high[0] = HUGE_VAL;
                if (border && bottom == p.in[1]) high[1] = HUGE_VAL;
                for (i64 r = 0; r < p.out[1]; r++) {
                    i64 from, to;
                    positions.columns(r, low, high, from, to);
                    for (; from < to; from += c.count) {
                        c.first = r * p.out[0] + from;
                        c.count = int(to - from < CHUNK ? to - from : CHUNK);
                        spread(positions, tile, c, n, out);
                    }
                }
            }
            i64 at = b * p.image_batch + ch * p.image_channel;
            for (int e = 0; e < n; e += n < 3 ? 1 : 4) {
                if (p.grad_as_image) give(tile, e, n, static_cast<T*>(p.grad_image) + at);
                else give(tile, e, n, static_cast<R*>(p.grad_image) + at);
            }
        });
        return DONE;
    }

private:
    static constexpr i64 SIZE = sizeof(R) == 4 ? 128 : 88;

    bool is_whole() const { return Tile::bytes(p.in[0], p.in[1]) * (p.channels < 3 ? p.channels : 4) <= SCRATCH; }

    static i64 even(i64 n, i64 most) {
        i64 parts = (n + most - 1) / most;
        return (n + parts - 1) / parts;
    }

    void spread(const Positions<R, D>& positions, const Tile& tile, Chunk<R>& c, int channels, const T* out) const {
        alignas(64) Row<R> buffer[GROUP];
        positions.fill(c);
        bool fine = tile.locate(c);
        auto g = job.read_grad(c, out, channels, buffer, false);
        if (g.data != buffer[0])  // read out of order: the processor does not see the next row of the output coming
            for (int e = 0; e < channels; e++)
                for (int k = 0; k < c.count; k += 16) prefetch(g.data + e * g.apart + k, p.out[0] * i64(sizeof(R)));
        if (!fine) {  // positions that are not numbers give nothing
            if (g.data != buffer[0])
                for (int e = 0; e < channels; e++) memcpy(buffer[e], g.data + e * g.apart, size_t(c.count) * sizeof(R));
            g = {buffer[0], CHUNK + SLACK};
            for (int k = 0; k < c.count; k++)
                if (!is_finite<R, D>(c, k)) {
                    for (int a = 0; a < D; a++) c.t[a][k] = 0;
                    for (int e = 0; e < channels; e++) buffer[e][k] = 0;
                }
        }
        alignas(64) R corners[4 * (CHUNK + SLACK)];
        if (MODE == LINEAR)
            for (int k = 0; k < c.count; k++) {
                R x = c.t[0][k], y = c.t[1][k], x_ = 1 - x, y_ = 1 - y;
                corners[4 * k] = x_ * y_, corners[4 * k + 1] = x * y_, corners[4 * k + 2] = x_ * y, corners[4 * k + 3] = x * y;
            }
        if (channels >= 3) {
            for (int e = 0; e < channels; e += 4) spread_four(tile, c, tile.data + e / 4 * tile.plane, channels - e, g.data + e * g.apart, g.apart, corners);
        } else {
            for (int e = 0; e < channels; e++) spread_one(tile, c, tile.data + e * tile.plane, g.data + e * g.apart, corners);
        }
    }

    void spread_one(const Tile& tile, const Chunk<R>& c, R* data, const R* g, const R* corners) const {
        if constexpr (MODE == LINEAR) {
            i64 line = tile.p.image_stride[1];
            job.stirred(c.count, [&](size_t k) {
                R *at = data + c.offset[k], *below = at + line;
                add_pair(at, g[k], corners + 4 * k);
                add_pair(below, g[k], corners + 4 * k + 2);
            });
        } else {
            for (int k = 0; k < c.count; k++) {
                R w[4], dw[4], v[4];
                axis_weights<CUBIC>(c.t[0][k], w, dw);
                axis_weights<CUBIC>(c.t[1][k], v, dw);
                R* at = data + c.offset[k];
                for (int r = 0; r < 4; r++)
                    for (int e = 0; e < 4; e++) at[r * tile.width + e] += g[k] * v[r] * w[e];
            }
        }
    }

    // Four channels, or three and one that nobody will read.
    void spread_four(const Tile& tile, const Chunk<R>& c, R* data, int channels, const R* g, i64 apart, const R* corners) const {
        typedef R vec __attribute__((vector_size(4 * sizeof(R))));
        const R *g1 = g + (channels > 1 ? 1 : 0) * apart, *g2 = g + (channels > 2 ? 2 : 0) * apart, *g3 = g + (channels > 3 ? 3 : 0) * apart;
        i64 line = tile.p.image_stride[1];
        job.stirred(c.count, [&](size_t k) {
            vec one = {g[k], g1[k], g2[k], g3[k]};
            R* at = data + c.offset[k];
            if constexpr (MODE == LINEAR) {
                const R* w = corners + 4 * k;
                R* below = at + line;
                vec a = load<vec>(at) + w[0] * one, b = load<vec>(at + 4) + w[1] * one;
                vec d = load<vec>(below) + w[2] * one, e = load<vec>(below + 4) + w[3] * one;
                store(at, a), store(at + 4, b), store(below, d), store(below + 4, e);
            } else {
                vec w, v, slopes;
                InsideCubic<R, R, D>::weights(c.t[0][k], w, slopes);
                InsideCubic<R, R, D>::weights(c.t[1][k], v, slopes);
                for (int r = 0; r < 4; r++) {
                    vec weighted = v[r] * one;
                    for (int e = 0; e < 4; e++) store(at + r * line + 4 * e, load<vec>(at + r * line + 4 * e) + w[e] * weighted);
                }
            }
        });
    }

    // Adds margins to the border where the padding wants it, and copies channels `first`.. of the tile to the image.
    template <class G>
    void give(const Tile& tile, int first, int channels, G* image) const {
        constexpr int M = Tile::MARGIN;
        i64 cell = tile.p.image_stride[0], line = tile.p.image_stride[1], rows = tile.to - tile.from;
        R* data = tile.data + first / cell * tile.plane;
        if (p.padding == BORDER) {
            auto add = [](R* to, const R* from, i64 count) {
                for (i64 e = 0; e < count; e++) to[e] += from[e];
            };
            for (int y = 0; y < M; y++) {
                if (tile.from == 0) add(data + M * line, data + y * line, line);
                if (tile.to == p.in[1]) add(data + (M + rows - 1) * line, data + (tile.height - 1 - y) * line, line);
            }
            for (i64 y = M; y < M + rows; y++)
                for (int x = 0; x < M; x++) {
                    R* at = data + y * line;
                    if (tile.left == 0) add(at + M * cell, at + x * cell, cell);
                    if (tile.left + tile.wide == p.in[0]) add(at + (M + tile.wide - 1) * cell, at + (tile.width - 1 - x) * cell, cell);
                }
        }
        int some = cell == 1 ? 1 : channels - first < 4 ? channels - first : 4;
        i64 by = p.image_stride[0];
        for (i64 y = 0; y < rows; y++) {
            const R* from = data + (y + M) * line + M * cell;
            G* to = image + first * p.image_channel + (tile.from + y) * p.image_stride[1] + tile.left * by;
            i64 x = 0;
            if (by == 1 && cell == 1)
                for (; x < tile.wide; x++) put(to[x], from[x]);
            if constexpr (std::is_same_v<R, float>)
                for (; by == 1 && cell == 4 && x + LANES <= tile.wide; x += LANES) {
                    vfloat v[4], w[4];
                    for (int e = 0; e < 4; e++) v[e] = load<vfloat>(from + 4 * x + e * LANES);
                    for (int e = 0; e < 4; e += 2) w[e] = evens(v[e], v[e + 1]), w[e + 1] = odds(v[e], v[e + 1]);
                    v[0] = evens(w[0], w[2]), v[1] = evens(w[1], w[3]), v[2] = odds(w[0], w[2]), v[3] = odds(w[1], w[3]);
                    for (int e = 0; e < some; e++) write_lanes(to + x + e * p.image_channel, 1, LANES, v[e]);
                }
            for (; x < tile.wide; x++)
                for (int e = 0; e < some; e++) put(to[x * by + e * p.image_channel], from[x * cell + e]);
        }
    }
};

}  // namespace
}  // namespace stn::STN_SET
