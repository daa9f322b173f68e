// Lines of pixels along an axis, as many at a time as a vector has lanes: their margins and the recursive filters of splines,
// and the way back of both.
#pragma once
#include "channels.h"
#include "taps.h"

namespace stn::STN_SET {
namespace {

template <class R> using Vector = std::conditional_t<std::is_same_v<R, double>, vdouble, vfloat>;

// `margin` pixels are kept on each side of the `n` of an image; `beyond` more are made for the filter alone.
struct Axis {
    i64 n, margin, beyond;
    int padding;
    bool align_corners;

    i64 window() const { return n + 2 * margin; }
    i64 before() const { return margin + beyond; }
    i64 rows() const { return n + 2 * before(); }

    // Calls f(row, pixel) for every row outside the image: the row of the pixel that it stands for, or -1.
    template <class F>
    void outside(F f) const {
        for (i64 k = 1; k <= before(); k++)
            for (i64 at : {-k, n - 1 + k}) {
                i64 pixel = pad(at, n, padding, align_corners);
                f(before() + at, pixel < 0 ? -1 : before() + pixel);
            }
    }
};

// Rows of one pixel of each line, in `together` vectors: several, for a filter waits for its last sum, and may as well go on
// with other lines meanwhile.
constexpr int TOGETHER = 4;

template <class R>
struct Lines {
    typedef Vector<R> V;
    static constexpr int N = sizeof(V) / sizeof(R);

    V* rows;
    int together;
    const Axis& axis;

    V* image() const { return rows + axis.before() * together; }
    V* window() const { return rows + axis.beyond * together; }

    // From and to `lines` lines, `line` apart, of pixels `step` apart. Lanes without a line are 0, and not written.
    void read(const R* from, i64 step, i64 line, i64 lines, V* to, i64 count) const {
        for (int u = 0; u < together; u++, from += N * line, lines -= N) {
            int n = int(lines < N ? lines : N);
            i64 k = 0;
            if constexpr (sizeof(R) == 4)
                for (; step == 1 && k + N <= count; k += N) {
                    V v[N];
                    for (int e = 0; e < N; e++) v[e] = e < n ? load<V>(from + e * line + k) : V{};
                    transpose(v);
                    for (int e = 0; e < N; e++) to[(k + e) * together + u] = v[e];
                }
            for (; k < count; k++) {
                V v = {};
                for (int e = 0; e < n; e++) v[e] = from[e * line + k * step];
                to[k * together + u] = v;
            }
        }
    }
    void write(const V* from, i64 count, R* to, i64 step, i64 line, i64 lines) const {
        for (int u = 0; u < together; u++, to += N * line, lines -= N) {
            int n = int(lines < N ? lines : N);
            i64 k = 0;
            if constexpr (sizeof(R) == 4)
                for (; step == 1 && k + N <= count; k += N) {
                    V v[N];
                    for (int e = 0; e < N; e++) v[e] = from[(k + e) * together + u];
                    transpose(v);
                    for (int e = 0; e < n; e++) store(to + e * line + k, v[e]);
                }
            for (; k < count; k++) {
                V v = from[k * together + u];
                for (int e = 0; e < n; e++) to[e * line + k * step] = v[e];
            }
        }
    }

    // From and to lines next to each other.
    void read(const R* from, i64 step, V* to, i64 count) const {
        for (i64 k = 0; k < count; k++, from += step)
            for (int u = 0; u < together; u++) to[k * together + u] = load<V>(from + u * N);
    }
    void write(const V* from, i64 count, R* to, i64 step) const {
        for (i64 k = 0; k < count; k++, to += step)
            for (int u = 0; u < together; u++) store(to + u * N, from[k * together + u]);
    }

    bool is_finite(const V* from, i64 count) const {
        V total = {};
        for (i64 k = 0; k < count * together; k++) total += from[k] - from[k];
        bool fine = true;
        for (int e = 0; e < N; e++) fine &= total[e] == 0;
        return fine;
    }

    // What the padding puts beyond the image, and the transpose: it adds to the pixels what lies there.
    void extend(R background) const {
        axis.outside([&](i64 row, i64 pixel) {
            for (int u = 0; u < together; u++) rows[row * together + u] = pixel < 0 ? background - V{} : rows[pixel * together + u];
        });
    }
    void fold() const {
        axis.outside([&](i64 row, i64 pixel) {
            for (int u = 0; u < together && pixel >= 0; u++) rows[pixel * together + u] += rows[row * together + u];
        });
    }
    void clear_beyond() const {
        V* last = rows + (axis.rows() - axis.beyond) * together;
        for (i64 k = 0; k < axis.beyond * together; k++) rows[k] = last[k] = V{};
    }

    // In place, as if the first and last rows went on for ever. Symmetric, so its own transpose.
    void filter(const Polynomials& kernel) const {
        for (int e = 0; e < kernel.poles; e++) switch (together) {
                case 1: filter<1>(kernel.pole[e]); break;
                case 2: filter<2>(kernel.pole[e]); break;
                case 3: filter<3>(kernel.pole[e]); break;
                default: filter<4>(kernel.pole[e]);
            }
    }

private:
    template <int U>
    STN_SHARED void filter(double pole) const {
        const R z = R(pole), gain = R((1 - pole) * (1 - 1 / pole)), end = R(1 / (1 - pole)), decay = R(1 / (1 - pole * pole));
        V *row = rows, *last = rows + (axis.rows() - 1) * U, right[U], sum[U];
        for (int u = 0; u < U; u++) right[u] = gain * end * last[u], sum[u] = gain * end * row[u];
        for (; row <= last; row += U)
            for (int u = 0; u < U; u++) row[u] = sum[u] = gain * row[u] + z * sum[u];
        for (int u = 0; u < U; u++) last[u] = sum[u] = -z * (end * right[u] + decay * (sum[u] - right[u]));
        for (row = last - U; row >= rows; row -= U)
            for (int u = 0; u < U; u++) row[u] = sum[u] = z * (sum[u] - row[u]);
    }
};

}  // namespace
}  // namespace stn::STN_SET
