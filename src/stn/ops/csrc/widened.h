// A copy of an image with margins on all sides, of the coefficients of a kernel: whatever the padding, the taps of every
// position lie within the copy, once that of a position far outside is moved (`locate`).
#pragma once
#include "job.h"
#include "lines.h"

namespace stn::STN_SET {
namespace {

template <class R>
struct Widened {
    typedef Vector<R> V;
    static constexpr int N = Lines<R>::N, SLACK = 8;  // numbers past the end of a row, which vectors of taps may read

    const Problem& p;
    const Polynomials& kernel;
    int axes;
    bool clamped;  // far outside all is the same
    Axis axis[3];
    i64 step[3], plane;  // of the copy

    explicit Widened(const Problem& problem) : p(problem), kernel(*p.polynomials), axes(p.is_signal ? 1 : p.ndim) {
        clamped = p.padding != REFLECTION && p.padding != CIRCULAR;
        i64 reach = kernel.poles ? kernel.reach : 0;
        plane = 1;
        for (int a = 0; a < 3; a++) {
            axis[a] = {p.in[a], 0, 0, p.padding, p.align_corners};
            if (a < axes) axis[a].margin = kernel.taps + (clamped ? reach : 0), axis[a].beyond = reach;
            step[a] = plane;
            plane *= axis[a].window();
            if (a == 0) plane = (plane + SLACK + N - 1) / N * N;
        }
    }

    i64 strip() const {  // vectors, at most
        i64 most = 0;
        for (int a = 0; a < axes; a++) most = most > axis[a].rows() ? most : axis[a].rows();
        return most * TOGETHER;
    }

    // Strips are numbered for each axis; those of x are rows of the image, those of others columns of the copy. The work on
    // strips of one axis is independent, and the axes come one after the other.
    i64 strips(int a) const { return across(a) * (a == 2 ? axis[1].window() : p.in[2]); }

    bool widen(int a, i64 index, const R* image, R background, R* copy, V* rows) const {
        const Strip strip(*this, a, index);
        const Lines<R> lines{rows, strip.together, axis[a]};
        bool fine = true;
        R* at = copy + strip.copy;
        if (a == 0) {
            lines.read(image + strip.image, p.image_stride[0], p.image_stride[1], strip.lines, lines.image(), axis[0].n);
            if (kernel.poles) fine = lines.is_finite(lines.image(), axis[0].n);
        } else {
            lines.read(at + axis[a].margin * step[a], step[a], lines.image(), axis[a].n);
        }
        lines.extend(background);
        lines.filter(kernel);
        if (a == 0) {
            lines.write(lines.window(), axis[0].window(), at, 1, step[1], strip.lines);
            for (i64 e = 0; e < strip.lines; e++)
                for (i64 x = axis[0].window(); x < step[1]; x++) at[e * step[1] + x] = 0;
        } else {
            lines.write(lines.window(), axis[a].window(), at, step[a]);
        }
        return fine;
    }

    // The transpose, from the last axis to the first: from the gradient of the copy to that of the image.
    bool narrow(int a, i64 index, R* copy, R* image, V* rows) const {
        const Strip strip(*this, a, index);
        const Lines<R> lines{rows, strip.together, axis[a]};
        bool fine = true;
        R* at = copy + strip.copy;
        if (a == 0) {
            lines.read(at, 1, step[1], strip.lines, lines.window(), axis[0].window());
            if (kernel.poles) fine = lines.is_finite(lines.window(), axis[0].window());
        } else {
            lines.read(at, step[a], lines.window(), axis[a].window());
        }
        lines.clear_beyond();
        lines.filter(kernel);
        lines.fold();
        if (a == 0) lines.write(lines.image(), axis[0].n, image + strip.image, p.image_stride[0], p.image_stride[1], strip.lines);
        else lines.write(lines.image(), axis[a].n, at + axis[a].margin * step[a], step[a]);
        return fine;
    }

    // Offsets of the first taps in the copy, for every pixel, with `i` and `t` of a position in the copy that reads the same.
    // Where that is a mirror image `sign` is -1; false where it is so nowhere, and `sign` is not set.
    template <int D>
    STN_SHARED bool locate(Chunk<R>& c, Row<R>* sign) const {
        const int before = (kernel.taps - 1) / 2, n = c.count;
        bool mirrored = false;
        i64* __restrict offset = c.offset;
        for (int k = 0; k < n; k++) offset[k] = 0;
        for (int a = 0; a < axes; a++) {
            int low = before, high = int(axis[a].window()) - kernel.taps + before;
            int* __restrict i = c.i[a];
            if (clamped) {
                for (int k = 0; k < n; k++) {
                    int at = i[k] < low ? low : i[k];
                    i[k] = at > high ? high : at;
                }
            } else {
                int out = 0;
                for (int k = 0; k < n; k++) out |= (i[k] < low) | (i[k] > high);
                if (out) {
                    if (p.padding == REFLECTION && !mirrored) {
                        mirrored = true;
                        for (int e = 0; e < D; e++)
                            for (int k = 0; k < n; k++) sign[e][k] = 1;
                    }
                    for (int k = 0; k < n; k++)
                        if ((i[k] < low) | (i[k] > high)) move(a, i[k], c.t[a][k], sign[a][k]);
                }
            }
            i64 by = step[a];
            for (int k = 0; k < n; k++) offset[k] += (i[k] - before) * by;
        }
        return mirrored;
    }

private:
    // How many strips of an axis lie next to each other.
    i64 across(int a) const { return ((a == 0 ? (p.in[1] + N - 1) / N : step[1] / N) + TOGETHER - 1) / TOGETHER; }

    // Where a strip lies in the image, for the first axis, and in the copy.
    struct Strip {
        int together;
        i64 lines, image, copy;

        Strip(const Widened& w, int a, i64 index) {
            i64 first = index % w.across(a) * TOGETHER * N, other = index / w.across(a);
            lines = (a == 0 ? w.p.in[1] : w.step[1]) - first;
            lines = lines < TOGETHER * N ? lines : TOGETHER * N;
            together = int((lines + N - 1) / N);
            image = other * w.p.image_stride[2] + first * w.p.image_stride[1];
            if (a == 0) copy = (w.axis[2].margin + other) * w.step[2] + (w.axis[1].margin + first) * w.step[1];
            else copy = first + (a == 1 ? (w.axis[2].margin + other) * w.step[2] : other * w.step[1]);
        }
    };

    void move(int a, int& i, R& t, R& sign) const {
        const i64 size = axis[a].n, margin = axis[a].margin, odd = kernel.taps & 1;
        if (p.padding == CIRCULAR) {
            i = int(modulo(i - margin, size) + margin);
            return;
        }
        const i64 period = p.align_corners ? (size > 1 ? 2 * (size - 1) : 1) : 2 * size;
        i64 at = modulo(i - margin, period);
        if (at >= period / 2 && (size > 1 || !p.align_corners)) {
            at = (p.align_corners ? period - 1 : period - 2) + odd - at;
            t = 1 - t;
            sign = -1;
        }
        i = int(at + margin);
    }
    static i64 modulo(i64 k, i64 n) { return (k % n + n) % n; }
};

}  // namespace
}  // namespace stn::STN_SET
