// Multi-scale deformable attention's read, compiled once for each instruction set (STN_SET).
//
// A query reads, for each of its heads, a few positions of every map and adds them up by weights. The channels of a head lie
// next to each other, so that a pixel is one run of vectors: no map is turned around, nothing that was read is stored, and
// sums stay in registers. The gradients of a position and of a weight need no more of a pixel than its product with the
// gradient of the output, one number.
//
// The gradient of the value is added up by one task for each head of each image, query after query: no two tasks share a
// pixel's channels, and the order does not depend on the number of threads.
#include "deformable.h"

#include "kinks.h"
#include "tasks.h"

namespace stn::STN_SET {
namespace {

constexpr i64 QUERIES = 32;  // of a task

template <class R>
STN_INLINE R product(const R* __restrict a, const R* __restrict b, i64 n) {
    R sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 k = 0; k < n; k++) sum += a[k] * b[k];
    return sum;
}

// One position on one map, in pixels.
template <class R>
struct Place {
    i64 height, width, x, y;  // of the map, and the pixel to the left and above
    R right, below;           // the shares of the pixels there
    bool finite, near;        // the map: farther away there is nothing, and no slope either

    STN_INLINE Place(const R* location, const i64* size) : height(size[0]), width(size[1]) {
        R at[2] = {location[0] * R(width) - R(0.5), location[1] * R(height) - R(0.5)};
        finite = at[0] - at[0] == 0 && at[1] - at[1] == 0;
        near = finite && at[0] > -2 && at[1] > -2 && at[0] < R(width + 1) && at[1] < R(height + 1);
        x = y = 0, right = below = 0;
        if (!near) return;
        R left = R(__builtin_floor(double(at[0]))), above = R(__builtin_floor(double(at[1])));
        x = i64(left), y = i64(above);
        right = at[0] - left, below = at[1] - above;
    }

    bool has(i64 row, i64 column) const { return row >= 0 && row < height && column >= 0 && column < width; }
};

template <class R>
struct Reader {
    const Deformed& p;
    i64 pixel;  // from one position's channels to the next one's

    explicit Reader(const Deformed& problem) : p(problem), pixel(problem.heads * problem.channels) {}

    const R* locations(i64 b, i64 q, i64 h) const {
        return static_cast<const R*>(p.locations) + ((b * p.queries + q) * p.heads + h) * p.levels * p.points * 2;
    }
    i64 entry(i64 b, i64 q, i64 h) const { return ((b * p.queries + q) * p.heads + h) * p.levels * p.points; }
    i64 map(i64 b, i64 h, i64 level) const { return ((b * p.positions + p.first[level]) * p.heads + h) * p.channels; }

    void forward(i64 b, i64 q, i64 h) const {
        const R* location = locations(b, q, h);
        const R* weight = static_cast<const R*>(p.weights) + entry(b, q, h);
        R* __restrict out = static_cast<R*>(p.output) + ((b * p.queries + q) * p.heads + h) * p.channels;
        const i64 n = p.channels;
        for (i64 c = 0; c < n; c++) out[c] = 0;
        for (i64 level = 0; level < p.levels; level++) {
            const R* value = static_cast<const R*>(p.value) + map(b, h, level);
            for (i64 point = 0; point < p.points; point++, location += 2, weight++) {
                Place<R> at(location, p.size[level]);
                if (!at.finite)
                    for (i64 c = 0; c < n; c++) out[c] += location[0] - location[0] + location[1] - location[1];
                if (!at.near) continue;
                R share[4] = {(1 - at.below) * (1 - at.right), (1 - at.below) * at.right, at.below * (1 - at.right), at.below * at.right};
                if (at.has(at.y, at.x) && at.has(at.y + 1, at.x + 1)) {  // most are: a pixel's four neighbours together
                    const R* __restrict v = value + (at.y * at.width + at.x) * pixel;
                    const R *__restrict e = v + pixel, *__restrict s = v + at.width * pixel, *__restrict t = s + pixel;
                    const R a = *weight * share[0], f = *weight * share[1], g = *weight * share[2], k = *weight * share[3];
#pragma omp simd
                    for (i64 c = 0; c < n; c++) out[c] += a * v[c] + f * e[c] + g * s[c] + k * t[c];
                    continue;
                }
                for (int tap = 0; tap < 4; tap++) {
                    i64 row = at.y + tap / 2, column = at.x + tap % 2;
                    if (!at.has(row, column)) continue;
                    const R* __restrict v = value + (row * at.width + column) * pixel;
                    const R by = *weight * share[tap];
                    for (i64 c = 0; c < n; c++) out[c] += by * v[c];
                }
            }
        }
    }

    void backward(i64 b, i64 q, i64 h) const {
        const R* location = locations(b, q, h);
        const i64 all = entry(b, q, h), n = p.channels;
        const R* weight = static_cast<const R*>(p.weights) + all;
        R* for_location = static_cast<R*>(p.for_locations) + 2 * all;
        R* for_weight = static_cast<R*>(p.for_weights) + all;
        const R* __restrict grad = static_cast<const R*>(p.gradient) + ((b * p.queries + q) * p.heads + h) * n;
        for (i64 level = 0; level < p.levels; level++) {
            const R* value = static_cast<const R*>(p.value) + map(b, h, level);
            R* for_value = static_cast<R*>(p.for_value) + map(b, h, level);
            for (i64 point = 0; point < p.points; point++, location += 2, weight++, for_location += 2, for_weight++) {
                Place<R> at(location, p.size[level]);
                for_location[0] = for_location[1] = *for_weight = 0;
                if (!at.finite) *for_weight = location[0] - location[0] + location[1] - location[1];
                if (!at.near) continue;
                // What the gradient of the output sees of a pixel; 0 beyond the border.
                auto seen = [&](i64 row, i64 column) {
                    return at.has(row, column) ? product(grad, value + (row * at.width + column) * pixel, n) : R(0);
                };
                const R nw = seen(at.y, at.x), ne = seen(at.y, at.x + 1), sw = seen(at.y + 1, at.x), se = seen(at.y + 1, at.x + 1);
                const R above = (1 - at.right) * nw + at.right * ne, under = (1 - at.right) * sw + at.right * se;
                *for_weight = (1 - at.below) * above + at.below * under;
                R across = (1 - at.below) * (ne - nw) + at.below * (se - sw), down = under - above;
                // On a pixel's centre the slope is the mean of both sides.
                const R low_x = kink_width<R>(at.width), low_y = kink_width<R>(at.height);
                if (at.right <= low_x || at.right >= 1 - low_x) {
                    i64 far = at.right <= low_x ? at.x - 1 : at.x + 2;
                    R beyond = (1 - at.below) * seen(at.y, far) + at.below * seen(at.y + 1, far);
                    R west = (1 - at.below) * nw + at.below * sw, east = (1 - at.below) * ne + at.below * se;
                    across = R(0.5) * (across + (at.right <= low_x ? west - beyond : beyond - east));
                }
                if (at.below <= low_y || at.below >= 1 - low_y) {
                    i64 far = at.below <= low_y ? at.y - 1 : at.y + 2;
                    R beyond = (1 - at.right) * seen(far, at.x) + at.right * seen(far, at.x + 1);
                    down = R(0.5) * (down + (at.below <= low_y ? above - beyond : beyond - under));
                }
                for_location[0] = *weight * across * R(at.width);
                for_location[1] = *weight * down * R(at.height);
                R share[4] = {(1 - at.below) * (1 - at.right), (1 - at.below) * at.right, at.below * (1 - at.right), at.below * at.right};
                for (int tap = 0; tap < 4; tap++) {
                    i64 row = at.y + tap / 2, column = at.x + tap % 2;
                    if (!at.has(row, column)) continue;
                    R* __restrict to = for_value + (row * at.width + column) * pixel;
                    const R by = *weight * share[tap];
#pragma omp simd
                    for (i64 c = 0; c < n; c++) to[c] += by * grad[c];
                }
            }
        }
    }

    template <class F>
    void parallel(i64 tasks, F f) const {
        double work = double(p.batch) * double(p.queries) * double(pixel) * double(p.levels) * double(p.points) * 4;
        for_tasks(tasks, work, 65536, p.threads, f);
    }

    void run() const {
        if (p.gradient) {
            parallel(p.batch * p.heads, [&](i64 task) {
                for (i64 q = 0; q < p.queries; q++) backward(task / p.heads, q, task % p.heads);
            });
            return;
        }
        const i64 blocks = (p.queries + QUERIES - 1) / QUERIES;
        parallel(p.batch * blocks, [&](i64 task) {
            i64 b = task / blocks, from = task % blocks * QUERIES, to = from + QUERIES < p.queries ? from + QUERIES : p.queries;
            for (i64 h = 0; h < p.heads; h++)  // the maps of one head after the other
                for (i64 q = from; q < to; q++) forward(b, q, h);
        });
    }
};

}  // namespace
}  // namespace stn::STN_SET

namespace stn {

#define STN_JOIN(name, set) name##_##set
#define STN_NAME(name, set) STN_JOIN(name, set)

Status STN_NAME(deform, STN_SET)(const Deformed& p) {
    if (p.type == F32) STN_SET::Reader<float>(p).run();
    else STN_SET::Reader<double>(p).run();
    return DONE;
}

}  // namespace stn
