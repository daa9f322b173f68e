// The gradient of positions by linearized multi-sampling, compiled once for each instruction set (STN_SET).
//
// Of each output pixel the image is read at random positions around the one that counts, and the slope of the plane of least
// squares through what is read, times the gradient of the output, is the gradient of the position. All of that is linear in
// what is read: the product with the gradient that came in, one number for all channels of a reading, is all that is kept. The
// positions come in pairs, u and -u, so that the sum of a pair's is 0, and what was read in the middle counts for an odd number
// of samples alone.
//
// Four channels at a time lie next to each other in a copy of the image with its padding around it: a pixel and its right
// neighbour are one vector, no position has a bounds test, and the rows are blended before both halves.
//
// What is drawn is a sum of four uniform numbers, of standard deviation 1, from hashes of the seed and the pixel's number; so it
// does not depend on who draws it.
#include "linearized.h"

#include "chunk.h"
#include "pages.h"
#include "tasks.h"

namespace stn::STN_SET {
namespace {

template <class R, int D>
struct Slopes {
    static constexpr int S = 4, ROWS = 1 << (D - 1), PRODUCTS = D * (D + 1) / 2;
    typedef R Pair __attribute__((vector_size(2 * S * sizeof(R))));
    typedef std::make_integer_sequence<int, 2 * S> Both;

    const Linearized& p;
    i64 margin, size[3], apart[3], cells;  // of the copy
    double scale[3], centre[3];            // pixels of the copy = normalized * scale + centre
    double offset[3];                      // normalized, of a position whose random number is 1

    explicit Slopes(const Linearized& problem) : p(problem), margin(problem.padding == BORDER ? 0 : 1), cells(1) {
        for (int a = 0; a < 3; a++) {
            const double n = double(p.in[a]);
            size[a] = p.in[a] + (a < D ? 2 * margin : 0);
            apart[a] = size[a] > 1 ? cells : 0;
            cells *= size[a];
            scale[a] = p.align_corners ? (n - 1) / 2 : n / 2;
            centre[a] = (n - 1) / 2 + double(margin);
            const double span = p.align_corners ? n - 1 : n;
            offset[a] = p.spread * 2 / (span > 1 ? span : 1);
        }
    }

    Status run() const {
        const i64 chunks = (p.pixels + CHUNK - 1) / CHUNK, groups = (p.channels + S - 1) / S;
        if (!p.image) {
            for (i64 b = 0; b < p.batch; b++)
                for (i64 chunk = 0; chunk < chunks; chunk++) write_noise(b, chunk * CHUNK);
            return DONE;
        }
        const bool together = p.batch < p.threads;
        Status status = DONE;
        auto image = [&](i64 b, int threads) {
            void* memory = nullptr;
            const size_t bytes = size_t(cells + 2) * S * sizeof(R);
            if (posix_memalign(&memory, 64, bytes)) {
                __atomic_store_n(reinterpret_cast<int*>(&status), int(NO_MEMORY), __ATOMIC_RELAXED);
                return;
            }
            large_pages(memory, bytes);
            R* copy = static_cast<R*>(memory);
            for (i64 group = 0; group < groups; group++) {
                fill(b, group * S, copy, threads);
                for_tasks(chunks, double(p.pixels) * p.samples * 16, 65536, threads, [&](i64 chunk) { slopes(b, group * S, chunk * CHUNK, copy); });
            }
            free(memory);
        };
        if (together)
            for (i64 b = 0; b < p.batch; b++) image(b, p.threads);
        else
            for_tasks(p.batch, double(p.batch) * double(p.pixels) * p.samples * 16, 65536, p.threads, [&](i64 b) { image(b, 1); });
        return status;
    }

private:
    int count(i64 first) const { return int(p.pixels - first < CHUNK ? p.pixels - first : CHUNK); }

    R background(i64 channel) const { return p.fill && channel < p.channels ? static_cast<const R*>(p.fill)[channel] : R(0); }

    // Channels from `channel` on, next to each other, with the padding around them.
    void fill(i64 b, i64 channel, R* copy, int threads) const {
        const i64 width = p.in[0], plane = p.in[0] * p.in[1] * p.in[2];
        const R* image = static_cast<const R*>(p.image) + (b * p.channels + channel) * plane;
        R outside[S];
        for (int k = 0; k < S; k++) outside[k] = background(channel + k);
        const int some = int(p.channels - channel < S ? p.channels - channel : S);
        for_tasks(size[1] * size[2], double(cells) * S, 65536, threads, [&](i64 line) {
            const i64 y = line % size[1] - margin, z = line / size[1] - (D > 2 ? margin : 0);
            R* __restrict to = copy + line * size[0] * S;
            auto pad = [&](i64 from, i64 end) {
                for (i64 x = from; x < end; x++)
                    for (int k = 0; k < S; k++) to[x * S + k] = outside[k];
            };
            if (y < 0 || y >= p.in[1] || z < 0 || z >= p.in[2]) return pad(0, size[0]);
            pad(0, margin);
            pad(size[0] - margin, size[0]);
            to += margin * S;
            const R* row = image + (z * p.in[1] + y) * width;
            const R *__restrict first = row, *__restrict second = row + (some > 1 ? plane : 0);
            const R *__restrict third = row + (some > 2 ? 2 * plane : 0), *__restrict fourth = row + (some > 3 ? 3 * plane : 0);
            for (i64 x = 0; x < width; x++) {  // lanes without a channel meet a gradient of 0
                to[x * S] = first[x];
                to[x * S + 1] = second[x];
                to[x * S + 2] = third[x];
                to[x * S + 3] = fourth[x];
            }
        });
        for (i64 e = cells * S; e < (cells + 2) * S; e++) copy[e] = 0;
    }

    static std::uint64_t stirred(std::uint64_t x) {
        x += 0x9e3779b97f4a7c15u;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
        return x ^ (x >> 31);
    }

    // Random numbers of mean 0 and standard deviation 1 for the pixels of a chunk.
    void draw(i64 b, i64 first, int pair, R* __restrict u, int axis) const {
        std::uint64_t key = stirred(p.seed);
        key = stirred(key ^ std::uint64_t(b * p.pixels + first));
        key = stirred(key ^ std::uint64_t(pair * 4 + axis));
        const std::uint32_t low = std::uint32_t(key), high = std::uint32_t(key >> 32);
        const R by = R(1 / 147.80054127098603);  // the square root of 4 * (256 * 256 - 1) / 12
        for (int q = 0; q < CHUNK; q++) {
            std::uint32_t x = low + std::uint32_t(q) * 0x9e3779b9u;
            x = (x ^ (x >> 16)) * 0x7feb352du;
            x = (x ^ (x >> 15) ^ high) * 0x846ca68bu;
            x ^= x >> 16;
            const int sum = int((x & 255) + (x >> 8 & 255) + (x >> 16 & 255) + (x >> 24));
            u[q] = R(sum - 510) * by;
        }
    }

    void write_noise(i64 b, i64 first) const {
        R* noise = static_cast<R*>(p.noise);
        alignas(64) R u[CHUNK];
        for (int sample = 0; sample < p.samples; sample++)
            for (int a = 0; a < D; a++) {
                draw(b, first, sample / 2, u, a);
                R* to = noise + ((sample * D + a) * p.batch + b) * p.pixels + first;
                for (int q = 0, n = count(first); q < n; q++) to[q] = sample & 1 ? -u[q] : u[q];
            }
    }

    template <int... I>
    static STN_INLINE Pair sides(R x, Order<I...>) { return Pair{(I < S ? R(1) : R(0))...} + x * Pair{(I < S ? R(-1) : R(1))...}; }
    template <int... I>
    static STN_INLINE Pair fold(Pair v, Order<I...>) { return v + STN_SHUFFLE(v, v, (I ^ S)...); }

    // What the gradient sees of the readings at positions in pixels of the copy. `g`: both halves of a pair for each pixel.
    STN_SHARED void see(const R* copy, const R (*position)[CHUNK], const R* g, int n, R* __restrict seen) const {
        alignas(64) R t[D][CHUNK], weight[ROWS][CHUNK], product[(CHUNK + 1) * S];
        alignas(64) int point[CHUNK];
        for (int a = 0; a < D; a++) {
            const R* __restrict from = position[a];
            R* __restrict share = t[a];
            const R last = R(size[a] - 1);
            const int most = int(size[a]) > 1 ? int(size[a]) - 2 : 0, by = int(apart[a]);
#pragma omp simd
            for (int q = 0; q < CHUNK; q++) {
                R at = from[q] > 0 ? from[q] : R(0);
                at = at < last ? at : last;
                int i = int(at);
                i = i < most ? i : most;
                share[q] = at - R(i);
                point[q] = (a ? point[q] : 0) + by * i;
            }
        }
#pragma omp simd
        for (int q = 0; q < CHUNK; q++) {
            const R y = t[1][q], z = t[D - 1][q];
            weight[0][q] = D > 2 ? (1 - y) * (1 - z) : 1 - y;
            weight[1][q] = D > 2 ? y * (1 - z) : y;
            if (D > 2) weight[ROWS - 2][q] = (1 - y) * z, weight[ROWS - 1][q] = y * z;
        }
        const i64 below = apart[1] * S, behind = apart[2] * S;
        for (int q = 0; q < n; q++) {
            const R* at = copy + i64(point[q]) * S;
            Pair v = weight[0][q] * load<Pair>(at) + weight[1][q] * load<Pair>(at + below);
            if constexpr (D > 2) v += weight[ROWS - 2][q] * load<Pair>(at + behind) + weight[ROWS - 1][q] * load<Pair>(at + behind + below);
            v = fold(v * sides(t[0][q], Both()) * load<Pair>(g + q * 2 * S), Both());
            memcpy(product + q * S, &v, S * sizeof(R));
        }
#pragma omp simd
        for (int q = 0; q < CHUNK; q++) seen[q] = (product[q * S] + product[q * S + 1]) + (product[q * S + 2] + product[q * S + 3]);
    }

    void slopes(i64 b, i64 channel, i64 first, const R* copy) const {
        const int n = count(first);
        alignas(64) R at[D][CHUNK] = {}, moved[D][CHUNK], u[D][CHUNK], seen[2][CHUNK] = {}, centred[CHUNK] = {}, g[CHUNK * 2 * S];
        alignas(64) R middle[D][CHUNK] = {}, both[D][CHUNK] = {}, sum[CHUNK] = {}, second[PRODUCTS][CHUNK] = {}, fine[CHUNK];
        const R* grid = static_cast<const R*>(p.grid) + (b * p.pixels + first) * D;
        for (int q = 0; q < n; q++) {
            R lost = 0;
            for (int a = 0; a < D; a++) lost += grid[q * D + a] - grid[q * D + a];
            fine[q] = lost == 0;
            for (int a = 0; a < D; a++) at[a][q] = lost == 0 ? grid[q * D + a] * R(scale[a]) + R(centre[a]) : R(0);
        }
        for (int k = 0; k < S; k++) {
            const R* __restrict from = static_cast<const R*>(p.gradient) + (b * p.channels + channel + k) * p.pixels + first;
            const bool any = channel + k < p.channels;
            for (int q = 0; q < n; q++) g[q * 2 * S + k] = g[q * 2 * S + S + k] = any ? from[q] : R(0);
        }
        const bool odd = p.samples & 1;  // then what is seen counts from what is seen in the middle, and else from pair to pair
        if (odd) see(copy, at, g, n, centred);
        for (int sample = 0; sample < p.samples; sample += 2) {
            const bool single = sample + 1 == p.samples;
            for (int a = 0; a < D; a++) draw(b, first, sample / 2, u[a], a);
            for (int back = 0; back < (single ? 1 : 2); back++) {
                for (int a = 0; a < D; a++) {
                    const R by = R(offset[a] * scale[a]) * (back ? R(-1) : R(1));
                    for (int q = 0; q < CHUNK; q++) moved[a][q] = at[a][q] + by * u[a][q];
                }
                see(copy, moved, g, n, seen[back]);
                if (odd)
                    for (int q = 0; q < CHUNK; q++) sum[q] += seen[back][q] - centred[q];
            }
            const R* other = single ? centred : seen[1];
            for (int q = 0; q < CHUNK; q++) seen[0][q] -= other[q];
            int e = 0;
            for (int a = 0; a < D; a++) {
                for (int q = 0; q < CHUNK; q++) both[a][q] += seen[0][q] * u[a][q];
                if (single)
                    for (int q = 0; q < CHUNK; q++) middle[a][q] = u[a][q];
                for (int s = a; s < D; s++, e++) {
                    const R times = single ? R(1) : R(2);
                    for (int q = 0; q < CHUNK; q++) second[e][q] += times * (u[a][q] * u[s][q]);
                }
            }
        }
        R* result = static_cast<R*>(p.result) + (b * p.pixels + first) * D;
        const R share = R(1) / R(p.samples + 1), ridge = R(1e-4) * R(p.samples);
        alignas(64) R found[D][CHUNK];
        for (int q = 0; q < CHUNK; q++) {
            R m[PRODUCTS], right[D];
            int e = 0;
            for (int a = 0; a < D; a++) {
                right[a] = both[a][q] - middle[a][q] * share * sum[q];
                for (int s = a; s < D; s++, e++) m[e] = second[e][q] - middle[a][q] * middle[s][q] * share + (a == s ? ridge : R(0));
            }
            if (D == 2) {
                const R determinant = m[0] * m[2] - m[1] * m[1];
                found[0][q] = (m[2] * right[0] - m[1] * right[1]) / determinant;
                found[1][q] = (m[0] * right[1] - m[1] * right[0]) / determinant;
            } else {
                const R xx = m[0], xy = m[1], xz = m[2], yy = m[PRODUCTS - 3], yz = m[PRODUCTS - 2], zz = m[PRODUCTS - 1];
                const R a = yy * zz - yz * yz, c = xz * yz - xy * zz, d = xy * yz - xz * yy;
                const R determinant = xx * a + xy * c + xz * d;
                const R f = xx * zz - xz * xz, h = xy * xz - xx * yz, k = xx * yy - xy * xy, last = right[D - 1];
                found[0][q] = (a * right[0] + c * right[1] + d * last) / determinant;
                found[1][q] = (c * right[0] + f * right[1] + h * last) / determinant;
                found[D - 1][q] = (d * right[0] + h * right[1] + k * last) / determinant;
            }
        }
        for (int a = 0; a < D; a++) {
            const R by = R(1 / offset[a]);
            for (int q = 0; q < n; q++) result[q * D + a] = (channel ? result[q * D + a] : R(0)) + (fine[q] != 0 ? found[a][q] * by : R(0));
        }
    }
};

}  // namespace
}  // namespace stn::STN_SET

namespace stn {

#define STN_JOIN(name, set) name##_##set
#define STN_NAME(name, set) STN_JOIN(name, set)

Status STN_NAME(linearize, STN_SET)(const Linearized& p) {
    if (p.type == F32) return p.ndim == 2 ? STN_SET::Slopes<float, 2>(p).run() : STN_SET::Slopes<float, 3>(p).run();
    return p.ndim == 2 ? STN_SET::Slopes<double, 2>(p).run() : STN_SET::Slopes<double, 3>(p).run();
}

}  // namespace stn
