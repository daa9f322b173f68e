// Warps that average each output pixel over its area in the image, compiled once for each instruction set (STN_SET).
//
// NOTE [ How an area is averaged ]
//
// The rule is that of stn/antialias.py, which also has the constants: points along the sides of a pixel's parallelogram, read by
// linear interpolation in the image or in smaller, smoothed copies of it. An image goes through three steps:
//   1. it is copied with its channels next to each other, four to a cell, and with margins, and so are the smaller copies that
//      its pixels ask for (Copies): whatever the layout and the padding, a point is two (in 3D four) pairs of cells, without a
//      bounds test;
//   2. positions come as in every warp (positions.h). From the Jacobian follow for SPAN pixels at once the share of each copy and
//      the points along each side (Sides, Combs), then for a row of points their cells and weights (Points);
//   3. pixels go through their points one by one, for each has another number of them, and add up cells.
// The gradient of coordinates and Jacobian takes the same steps, with the products of the cells and the gradient that came in
// added up, and from there on again SPAN pixels at once. Points on a pixel's centre are read from both sides, as in every warp
// (kinks.h). The gradient of the image takes the steps backwards; a cell column of an image is one task. Blocks of chunks depend
// on the number of pixels alone: the same bits for any number of threads.
#include "area.h"

#include "job.h"

namespace stn::STN_SET {
namespace {

#define STN_SPAN _Pragma("omp simd") for (int q = 0; q < SPAN; q++)

constexpr int SPAN = 16;          // pixels whose points are found together
constexpr int MOST_COMB = 17;     // points along a side
constexpr int EDGE = 2;           // margin of a copy, on each side
constexpr double ALONE = 1.5;     // as in antialias.py
constexpr double LONGEST = 1e8;
constexpr double POINTS[] = {8, 6, 8};

template <class R> using Span = R[SPAN];

// The channels of a pixel that lie next to each other.
template <class R, int G> struct Cell;
template <class R> struct Cell<R, 1> { typedef R Type; };
template <> struct Cell<float, 4> { typedef float Type __attribute__((vector_size(16))); };
template <> struct Cell<double, 4> { typedef double Type __attribute__((vector_size(32))); };

template <class R>
inline R root(R v) { return R(sqrt(v)); }
template <>
inline float root(float v) { return sqrtf(v); }

// The parallelograms of SPAN pixels, and what size of pixels they ask for.
template <class R, int D>
struct Sides {
    alignas(64) Span<R> axis[D][D];  // [side][x, y, z]
    alignas(64) Span<R> length[D], coarse;
    alignas(64) Span<R> finite;  // 1 or 0

    void measure() {
        STN_SPAN {
            R sound = 0;
            for (int s = 0; s < D; s++)
                for (int c = 0; c < D; c++) sound += axis[s][c][q] - axis[s][c][q];
            finite[q] = sound == 0 ? R(1) : R(0);
        }
        for (int s = 0; s < D; s++) {
            STN_SPAN {
                R total = 0;
                for (int c = 0; c < D; c++) {
                    R v = axis[s][c][q];
                    v = v > R(-LONGEST) ? v : R(-LONGEST);
                    v = v < R(LONGEST) ? v : R(LONGEST);
                    v = finite[q] == 0 ? R(0) : v;
                    axis[s][c][q] = v;
                    total += v * v;
                }
                length[s][q] = root(total > 1 ? total : R(1));
            }
        }
        STN_SPAN coarse[q] = 1;
        for_contents([&](int, const int*, const R* content) {
            STN_SPAN coarse[q] = content[q] > coarse[q] ? content[q] : coarse[q];
        });
    }

    // f(n, sides, size) for every choice of n sides: the size of pixels at which their content has as many as it may.
    template <class F>
    void for_contents(F f) const {
        alignas(64) Span<R> content;
        for (int chosen = 1; chosen < 1 << D; chosen++) {
            int sides[D] = {}, n = 0;
            for (int s = 0; s < D; s++)
                if (chosen >> s & 1) sides[n++] = s;
            STN_SPAN {
                R v = 1;
                for (int e = 0; e < D; e++) v *= e < n ? length[sides[e]][q] : R(1);
                content[q] = v / R(POINTS[n - 1]);
            }
            if (n == 2)
                STN_SPAN content[q] = root(content[q]);
            if (n == 3)
                STN_SPAN content[q] = R(pow(content[q], R(1) / 3));
            f(n, sides, content);
        }
    }

    // From the gradients of `coarse` and of the lengths to that of the axes, which is added to.
    void pull(const R* for_coarse, Span<R>* for_length, Span<R> (*for_axis)[D]) const {
        alignas(64) Span<R> open;  // one of equal contents counts
        STN_SPAN open[q] = coarse[q] > 1 ? for_coarse[q] : R(0);
        for_contents([&](int n, const int* sides, const R* content) {
            STN_SPAN {
                bool here = content[q] == coarse[q];
                R by = here ? open[q] * content[q] / R(n) : R(0);
                for (int e = 0; e < n; e++) for_length[sides[e]][q] += by / length[sides[e]][q];
                open[q] = here ? R(0) : open[q];
            }
        });
        for (int s = 0; s < D; s++)
            STN_SPAN {
                R by = length[s][q] > 1 ? for_length[s][q] / length[s][q] : R(0);
                for (int c = 0; c < D; c++) {
                    R v = axis[s][c][q];
                    bool within = v > R(-LONGEST) && v < R(LONGEST);
                    for_axis[s][c][q] = within ? for_axis[s][c][q] + by * v : R(0);
                }
            }
    }
};

// The points along each side, in one copy, with the derivatives by the number of pixels along it.
template <class R, int D>
struct Combs {
    int copy, most[3];
    alignas(64) Span<R> share, share_slope, unit, count[D];
    alignas(64) Span<int> points[3];
    alignas(64) Span<R> weight[D][MOST_COMB], place[D][MOST_COMB], weight_slope[D][MOST_COMB], place_slope[D][MOST_COMB];

    // False if no pixel reads this copy.
    bool fill(const Sides<R, D>& sides, int number, int last) {
        copy = number;
        const R size = R(i64(1) << number);
        R any = 0;
        STN_SPAN {
            R here = beyond(sides.coarse[q] / size), below = beyond(2 * sides.coarse[q] / size);
            R here_slope = here > 0 && here < 1 ? R(1 / (2 - ALONE)) / size : R(0);
            R below_slope = below > 0 && below < 1 ? R(2 / (2 - ALONE)) / size : R(0);
            if (number == last) here = here_slope = 0;
            if (number == 0) below = 1, below_slope = 0;
            share[q] = below - here;
            share_slope[q] = below_slope - here_slope;
            R half = sides.coarse[q] / 2;
            unit[q] = half > size ? half : size;
        }
        for (int q = 0; q < SPAN; q++) any += share[q];
        if (!(any > 0)) return false;
        for (int s = 0; s < 3; s++) most[s] = 1;
        for (int s = D; s < 3; s++)
            STN_SPAN points[s][q] = 1;
        for (int s = 0; s < D; s++) {
            STN_SPAN {
                R n = sides.length[s][q] / unit[q];
                n = n > 1 ? n : R(1);
                count[s][q] = n;
                int whole = int(n);
                whole += R(whole) < n;
                points[s][q] = share[q] > 0 ? whole : 0;
            }
            for (int q = 0; q < SPAN; q++) most[s] = points[s][q] > most[s] ? points[s][q] : most[s];
            if (most[s] > MOST_COMB) most[s] = MOST_COMB;
            for (int k = 0; k < most[s]; k++)
                STN_SPAN {
                    R c = count[s][q], n = R(points[s][q]), back = n - 1 - R(k), step = back < R(k) ? back : R(k);
                    bool odd = points[s][q] & 1, inner = step + 1 > (n - 1) / 2;
                    R rest = c - n + 2, u = rest - 1;
                    R apart = u * (1 + u * (R(0.375) * u - R(0.875))), apart_slope = 1 + u * (R(1.125) * u - R(1.75));
                    R w = inner ? (odd ? u : rest / 2) : R(1), dw = inner ? (odd ? R(1) : R(0.5)) : R(0);
                    R at = inner ? (odd ? R(0) : apart) : (c - 1) / 2 - step, dat = inner ? (odd ? R(0) : apart_slope) : R(0.5);
                    R side = R(k) < back ? R(-1) : R(1);
                    weight[s][k][q] = w / c;
                    weight_slope[s][k][q] = (dw - w / c) / c;
                    place[s][k][q] = side * at / c;
                    place_slope[s][k][q] = side * (dat - at / c) / c;
                }
        }
        return true;
    }

private:
    static R beyond(R ratio) {
        R v = (ratio - R(ALONE)) / R(2 - ALONE);
        v = v > 0 ? v : R(0);
        return v < 1 ? v : R(1);
    }
};

// An image and its smaller copies, `G` channels to a cell.
template <class R, int D, int G>
struct Copies {
    struct Copy {
        i64 n[3], step[3];  // pixels; numbers from one to the next
        i64 begin, plane;   // of the first cell column: its first number, its numbers
    };

    const Problem& p;
    int last;
    i64 groups, total = 0;
    Copy copy[MOST_COPIES];

    Copies(const Problem& problem, int last_copy) : p(problem), last(last_copy), groups((problem.channels + G - 1) / G) {
        for (int e = 0; e <= last; e++) {
            Copy& c = copy[e];
            i64 step = G;
            for (int a = 0; a < 3; a++) {
                c.n[a] = e == 0 ? p.in[a] : a < axes() ? (copy[e - 1].n[a] + 1) / 2 : copy[e - 1].n[a];
                c.step[a] = step;
                if (a < D) step *= c.n[a] + 2 * EDGE;
            }
            c.plane = step, c.begin = total;
            total += step * groups;
        }
    }

    int axes() const { return p.is_signal ? 1 : D; }
    bool turns_as_given(int e) const { return e == 0 && p.align_corners; }

    // Where pixel (0, 0, 0) of a copy and a cell column lies.
    R* origin(R* memory, int e, i64 group) const {
        const Copy& c = copy[e];
        i64 at = c.begin + group * c.plane;
        for (int a = 0; a < D; a++) at += EDGE * c.step[a];
        return memory + at;
    }

    // Calls f(row of the copy, y, z) for all its rows, margins and all.
    template <class F>
    void for_rows(R* memory, int e, i64 group, F f) const {
        const Copy& c = copy[e];
        R* first = origin(memory, e, group);
        for (i64 z = D > 2 ? -EDGE : 0; z < (D > 2 ? c.n[2] + EDGE : 1); z++)
            for (i64 y = -EDGE; y < c.n[1] + EDGE; y++) f(first + y * c.step[1] + z * c.step[2], y, z);
    }

    void read(const R* image, R* memory, i64 group) const {
        const Copy& c = copy[0];
        const int channels = int(p.channels - group * G < G ? p.channels - group * G : G);
        const R* from[G];
        R outside[G] = {};
        for (int ch = 0; ch < G; ch++) {
            from[ch] = image + (group * G + (ch < channels ? ch : 0)) * p.image_channel;
            if (ch < channels) outside[ch] = background<R>(p, group * G + ch);
        }
        for_rows(memory, 0, group, [&](R* row, i64 y, i64 z) {
            i64 from_y = pad(y, c.n[1], p.padding, p.align_corners), from_z = D > 2 ? pad(z, c.n[2], p.padding, p.align_corners) : 0;
            if (from_y < 0 || from_z < 0) {
                for (i64 x = -EDGE; x < c.n[0] + EDGE; x++)
                    for (int ch = 0; ch < G; ch++) row[x * G + ch] = outside[ch];
                return;
            }
            i64 at = from_y * p.image_stride[1] + from_z * p.image_stride[2], by = p.image_stride[0];
            if (G == 4 && by == 1 && channels >= 3) {
                const R *a = from[0] + at, *b = from[1] + at, *d = from[2] + at, *f = from[G - 1] + at;
                for (i64 x = 0; x < c.n[0]; x++) row[x * G] = a[x], row[x * G + G / 4] = b[x], row[x * G + G / 2] = d[x], row[x * G + G - 1] = f[x];
            } else {
                for (i64 x = 0; x < c.n[0]; x++)
                    for (int ch = 0; ch < G; ch++) row[x * G + ch] = from[ch][at + x * by];
            }
            edges(row, c.n[0], outside, p.align_corners);
        });
    }

    // Copy e from the one before, by 1 3 3 1 along each axis; `line`: a row of that one with margins.
    void halve(R* memory, int e, i64 group, R* line) const {
        const Copy &c = copy[e], &fine = copy[e - 1];
        const R* from = origin(memory, e - 1, group);
        R outside[G] = {};
        for (int ch = 0; ch < G; ch++)
            if (group * G + ch < p.channels) outside[ch] = background<R>(p, group * G + ch);
        for (i64 z = 0; z < (D > 2 ? c.n[2] : 1); z++)
            for (i64 y = 0; y < c.n[1]; y++) {
                R* t = line + EDGE * G;
                const i64 numbers = fine.n[0] * G;
                bool first = true;
                for_taps(fine, y, z, [&](i64 offset, R w) {
                    const R* row = from + offset;
                    if (offset < 0) {
                        for (i64 x = 0; x < numbers; x++) t[x] = (first ? 0 : t[x]) + w * outside[x % G];
                    } else if (first) {
                        for (i64 x = 0; x < numbers; x++) t[x] = w * row[x];
                    } else {
                        for (i64 x = 0; x < numbers; x++) t[x] += w * row[x];
                    }
                    first = false;
                });
                edges(t, fine.n[0], outside, false);
                R* to = origin(memory, e, group) + y * c.step[1] + z * c.step[2];
                for (i64 x = 0; x < c.n[0]; x++)
                    for (int ch = 0; ch < G; ch++) {
                        const R* at = t + 2 * x * G + ch;
                        to[x * G + ch] = R(0.125) * (at[-G] + at[2 * G]) + R(0.375) * (at[0] + at[G]);
                    }
            }
        for_rows(memory, e, group, [&](R* row, i64 y, i64 z) {
            i64 from_y = pad(y, c.n[1], p.padding, false), from_z = D > 2 ? pad(z, c.n[2], p.padding, false) : 0;
            R* whole = from_y < 0 || from_z < 0 ? nullptr : origin(memory, e, group) + from_y * c.step[1] + from_z * c.step[2];
            for (i64 x = 0; whole != row && x < c.n[0]; x++)
                for (int ch = 0; ch < G; ch++) row[x * G + ch] = whole ? whole[x * G + ch] : outside[ch];
            edges(row, c.n[0], outside, false);
        });
    }

    // The transposes: margins are added to the pixels that they stand for; a copy to the one before.
    void fold(R* memory, int e, i64 group) const {
        const Copy& c = copy[e];
        R* first = origin(memory, e, group);
        const bool turn = turns_as_given(e);
        for_rows(memory, e, group, [&](R* row, i64 y, i64 z) {
            i64 to_y = pad(y, c.n[1], p.padding, turn), to_z = D > 2 ? pad(z, c.n[2], p.padding, turn) : 0;
            if (to_y < 0 || to_z < 0) return;
            R* whole = first + to_y * c.step[1] + to_z * c.step[2];
            for (i64 x = -EDGE; x < c.n[0] + EDGE; x++) {
                i64 to_x = pad(x, c.n[0], p.padding, turn);
                if (to_x < 0 || (whole == row && to_x == x)) continue;
                for (int ch = 0; ch < G; ch++) whole[to_x * G + ch] += row[x * G + ch];
            }
        });
    }
    void unhalve(R* memory, int e, i64 group, R* line) const {
        const Copy &c = copy[e], &fine = copy[e - 1];
        R* to = origin(memory, e - 1, group);
        for (i64 z = 0; z < (D > 2 ? c.n[2] : 1); z++)
            for (i64 y = 0; y < c.n[1]; y++) {
                R* t = line + EDGE * G;
                for (i64 x = -EDGE * G; x < (fine.n[0] + EDGE) * G; x++) t[x] = 0;
                const R* from = origin(memory, e, group) + y * c.step[1] + z * c.step[2];
                for (i64 x = 0; x < c.n[0]; x++)
                    for (int ch = 0; ch < G; ch++) {
                        R g = from[x * G + ch], *at = t + 2 * x * G + ch;
                        at[-G] += R(0.125) * g, at[0] += R(0.375) * g, at[G] += R(0.375) * g, at[2 * G] += R(0.125) * g;
                    }
                for (i64 x : {i64(-2), i64(-1), fine.n[0], fine.n[0] + 1}) {
                    i64 pixel = pad(x, fine.n[0], p.padding, false);
                    for (int ch = 0; ch < G && pixel >= 0; ch++) t[pixel * G + ch] += t[x * G + ch];
                }
                for_taps(fine, y, z, [&](i64 offset, R w) {
                    for (i64 x = 0; offset >= 0 && x < fine.n[0] * G; x++) to[offset + x] += w * t[x];
                });
            }
    }

private:
    // f(offset, weight) of the rows of `fine` that make row (y, z) of its half; -1 for the background's.
    template <class F>
    void for_taps(const Copy& fine, i64 y, i64 z, F f) const {
        const R w[4] = {R(0.125), R(0.375), R(0.375), R(0.125)};
        if (p.is_signal) return f(y * fine.step[1], R(1));
        for (int k = 0; k < (D > 2 ? 4 : 1); k++)
            for (int j = 0; j < 4; j++) {
                i64 row = pad(2 * y - 1 + j, fine.n[1], p.padding, false), slice = D > 2 ? pad(2 * z - 1 + k, fine.n[2], p.padding, false) : 0;
                f(row < 0 || slice < 0 ? -1 : row * fine.step[1] + slice * fine.step[2], D > 2 ? w[j] * w[k] : w[j]);
            }
    }

    void edges(R* row, i64 n, const R* outside, bool align_corners) const {
        for (i64 x : {i64(-2), i64(-1), n, n + 1}) {
            i64 pixel = pad(x, n, p.padding, align_corners);
            for (int ch = 0; ch < G; ch++) row[x * G + ch] = pixel < 0 ? outside[ch] : row[pixel * G + ch];
        }
    }
};

// Where in a copy a row of points of SPAN pixels lies: those along the first side, at one place along each other.
template <class R, int D>
struct Points {
    static constexpr int CORNERS = 1 << D;
    alignas(64) Span<int> offset[MOST_COMB];     // of the first corner, from the origin of the copy's cell column
    alignas(64) Span<R> t[MOST_COMB][D];         // the fraction along each axis
    alignas(64) Span<R> sign[MOST_COMB][D];      // -1 where the axis runs backwards
    alignas(64) Span<R> weight[MOST_COMB][CORNERS];
    alignas(64) Span<R> whole[MOST_COMB];        // the point's own, share not counted
    bool meets_kinks;
};

template <class R, int D, int G>
struct Averaging {
    typedef typename Cell<R, G>::Type C;
    typedef Job<R, D, LINEAR> Task;
    static constexpr int CORNERS = 1 << D;

    const Area& area;
    const Problem& p;
    Copies<R, D, G> copies{area.problem, area.last};
    Task job{area.problem};
    i64 blocks = (job.chunks + BLOCK - 1) / BLOCK, sums = job.positions(0).sums() + D * D;

    explicit Averaging(const Area& given) : area(given), p(given.problem) {}

    Status run() const {
        int threads = this->threads();
        const bool apart = p.batch >= threads;  // a thread for each image
        const int outer = apart ? threads : 1, inner = apart ? 1 : threads;
        const i64 line = (copies.copy[0].n[0] + 2 * EDGE) * G, scratch = line + SPAN * G * copies.groups;
        const i64 each = copies.total + 64;
        void *memory = nullptr, *rows = nullptr;
        double* partial = nullptr;
        if (p.what == GRAD_COORDINATES && p.kind == AFFINE) {
            partial = static_cast<double*>(calloc(size_t(p.batch * blocks * sums + 1), sizeof(double)));
            if (!partial) return NO_MEMORY;
        }
        if (posix_memalign(&memory, 64, size_t(each * outer) * sizeof(R)) || posix_memalign(&rows, 64, size_t((scratch + 64) * threads) * sizeof(R))) {
            free(memory);
            free(partial);
            return NO_MEMORY;
        }
        R *all = static_cast<R*>(memory), *lines = static_cast<R*>(rows);
#pragma omp parallel for num_threads(outer) schedule(dynamic) if (outer > 1)
        for (i64 b = 0; b < p.batch; b++) {
            int me = outer > 1 ? thread() : 0;
            image(b, all + each * me, lines + (scratch + 64) * me, scratch + 64, inner, partial);
        }
        if (partial) finish(partial);
        free(memory);
        free(rows);
        free(partial);
        return DONE;
    }

private:
    static int thread() {
#ifdef _OPENMP
        return omp_get_thread_num();
#else
        return 0;
#endif
    }

    int threads() const {
        double work = double(p.batch) * double(copies.groups) * (double(copies.copy[0].plane) + 64 * double(job.pixels));
        i64 worth = i64(work / 262144) + 1;
        return int(worth < p.threads ? worth : p.threads);
    }

    void image(i64 b, R* memory, R* lines, i64 apart, int threads, double* partial) const {
        Outline shared;
        if (p.kind == AFFINE) outline(b, shared);
        const int last = last_copy(b, shared);
        const i64 groups = copies.groups;
        if (p.what == GRAD_IMAGE) {
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
            for (i64 group = 0; group < groups; group++) spread(b, group, last, shared, memory, lines + apart * (threads > 1 ? thread() : 0));
            return;
        }
        const R* from = static_cast<const R*>(p.image) + b * p.image_batch;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
        for (i64 group = 0; group < groups; group++) {
            copies.read(from, memory, group);
            for (int e = 1; e <= last; e++) copies.halve(memory, e, group, lines + apart * (threads > 1 ? thread() : 0));
        }
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
        for (i64 block = 0; block < blocks; block++) {
            R* scratch = lines + apart * (threads > 1 ? thread() : 0);
            double* total = partial ? partial + (b * blocks + block) * sums : nullptr;
            Chunk<R> c;
            Outline mine;
            Outline& o = p.kind == AFFINE ? shared : mine;
            auto positions = job.positions(b);
            for (i64 chunk = block * BLOCK; chunk < (block + 1) * BLOCK && chunk < job.chunks; chunk++) {
                job.start(c, chunk);
                positions.fill(c);
                if (p.what == FORWARD) forward(c, b, o, memory, scratch);
                else slopes(positions, c, b, o, memory, scratch, total);
            }
        }
    }

    // The Jacobians of SPAN pixels from `first` on, of which `count` are there.
    void sides_of(i64 b, i64 first, int count, Sides<R, D>& sides) const {
        const R* from = static_cast<const R*>(area.jacobian) + (p.kind == AFFINE ? b : b * job.pixels + first) * D * D;
        const i64 by = p.kind == AFFINE ? 0 : D * D;
        for (int q = 0; q < SPAN; q++)
            for (int s = 0; s < D; s++)
                for (int c = 0; c < D; c++) sides.axis[s][c][q] = from[(q < count ? q : count - 1) * by + c * D + s];
        sides.measure();
    }

    // What SPAN pixels ask for: the parallelograms, and the points in the copies that they read, of which an affine map has
    // the same for all pixels.
    struct Outline {
        Sides<R, D> sides;
        Combs<R, D> combs[2];
        int count;
    };

    void outline(i64 b, Outline& o) const {
        sides_of(b, 0, 1, o.sides);
        o.count = 0;
        int first, last;
        needed(o.sides, first, last);
        for (int e = first; e <= last; e++)
            if (o.count < 2 && o.combs[o.count].fill(o.sides, e, area.last)) o.count++;
    }

    // The first and last of the copies that pixels read.
    void needed(const Sides<R, D>& sides, int& first, int& last) const {
        R least = sides.coarse[0], largest = sides.coarse[0];
        for (int q = 1; q < SPAN; q++) {
            least = sides.coarse[q] < least ? sides.coarse[q] : least;
            largest = sides.coarse[q] > largest ? sides.coarse[q] : largest;
        }
        first = last = 0;
        while (first < area.last && least >= R(i64(2) << first)) first++;
        while (last < area.last && largest > R(ALONE) * R(i64(1) << last)) last++;
    }

    // The last copy that any pixel of an image reads.
    int last_copy(i64 b, const Outline& o) const {
        if (p.kind == AFFINE) return o.combs[o.count - 1].copy;
        int first, last = 0, furthest = 0;
        Sides<R, D> sides;
        for (i64 k = 0; k < job.pixels && furthest < area.last; k += SPAN) {
            sides_of(b, k, int(job.pixels - k < SPAN ? job.pixels - k : SPAN), sides);
            needed(sides, first, last);
            furthest = last > furthest ? last : furthest;
        }
        return furthest;
    }

    // Calls f(combs) for each of the copies that the pixels read.
    template <class F>
    void for_copies(Outline& o, F f) const {
        if (p.kind == AFFINE) {
            for (int e = 0; e < o.count; e++) f(o.combs[e]);
            return;
        }
        int first, last;
        needed(o.sides, first, last);
        for (int e = first; e <= last; e++)
            if (o.combs[0].fill(o.sides, e, area.last)) f(o.combs[0]);
    }

    // What of a chunk's pixels k .. k + SPAN - 1 is there and finite; the rest is read at 0.
    void clean(i64 b, Chunk<R>& c, int k, Outline& o, Span<R>& fine) const {
        if (p.kind != AFFINE) sides_of(b, c.first + k, c.count - k < SPAN ? c.count - k : SPAN, o.sides);
        for (int q = 0; q < SPAN; q++) {
            R sound = 0;
            for (int a = 0; a < D; a++) sound += c.t[a][k + q];
            const bool here = sound == sound && o.sides.finite[q] != 0 && k + q < c.count;
            fine[q] = here ? R(1) : R(0);
            for (int a = 0; a < D; a++) c.t[a][k + q] = here ? c.t[a][k + q] : R(0), c.i[a][k + q] = here ? c.i[a][k + q] : 0;
        }
    }

    // A row of points: all along the first side, number j and l along the others.
    template <bool SLOPES>
    STN_SHARED void locate(const Chunk<R>& c, int k, const Sides<R, D>& sides, const Combs<R, D>& combs, int j, int l, bool crossed, Points<R, D>& points) const {
        const int e = combs.copy;
        const auto& copy = copies.copy[e];
        const R inverse = R(1) / R(i64(1) << e);
        alignas(64) Span<R> rest[D], w;
        STN_SPAN {
            w[q] = combs.weight[1][j][q] * (D > 2 ? combs.weight[D - 1][l][q] : R(1));
            for (int a = 0; a < D; a++) rest[a][q] = sides.axis[1][a][q] * combs.place[1][j][q] + (D > 2 ? sides.axis[D - 1][a][q] * combs.place[D - 1][l][q] : R(0));
        }
        bool kinks = false;
        for (int m = 0; m < combs.most[0]; m++) {
            int* __restrict offset = points.offset[m];
            STN_SPAN offset[q] = 0, points.whole[m][q] = w[q] * combs.weight[0][m][q];
            for (int a = 0; a < D; a++) {
                alignas(64) Span<R> at, fraction;
                alignas(64) Span<int> i;
                STN_SPAN at[q] = rest[a][q] + sides.axis[0][a][q] * combs.place[0][m][q];
                const bool folds = p.padding == REFLECTION || p.padding == CIRCULAR, halved = e > 0 && a < copies.axes();
                R* __restrict sign = points.sign[m][a];
                if (SLOPES) STN_SPAN sign[q] = 1;
                const int *__restrict whole = c.i[a] + k;
                const R* __restrict t = c.t[a] + k;
                if (halved && folds) {
                    fold(at, whole, t, a, sign);
                    STN_SPAN split((at[q] + R(0.5)) * inverse - R(0.5), 0, i[q], fraction[q]);
                } else if (halved) {
                    const int mask = (1 << e) - 1;
                    STN_SPAN split((R(whole[q] & mask) + t[q] + R(0.5) + at[q]) * inverse - R(0.5), whole[q] >> e, i[q], fraction[q]);
                } else {
                    STN_SPAN split(t[q] + at[q], whole[q], i[q], fraction[q]);
                }
                const bool line = p.is_signal && a == 1;  // which everybody reads in its middle
                const R low = kink_width<R>(copy.n[a]);
                if (SLOPES && !line) {
                    R nearest = 1;
                    for (int q = 0; q < SPAN; q++) {
                        R v = fraction[q] < 1 - fraction[q] ? fraction[q] : 1 - fraction[q];
                        nearest = v < nearest ? v : nearest;
                    }
                    kinks |= nearest <= low;
                }
                if (SLOPES && crossed && !line)
                    STN_SPAN {
                        bool left = fraction[q] <= low, right = !left & (1 - fraction[q] <= low);
                        i[q] += int(right) - int(left);
                        fraction[q] = left ? R(1) : right ? R(0) : fraction[q];
                    }
                if (!halved && folds) fold_cells(i, fraction, a, sign);
                const int most = int(copy.n[a]), by = int(copy.step[a]);
                STN_SPAN {
                    int u = i[q] < -EDGE ? -EDGE : i[q];
                    u = u > most ? most : u;
                    offset[q] += u * by;
                    points.t[m][a][q] = fraction[q];
                }
            }
            for (int corner = 0; corner < CORNERS; corner++)
                STN_SPAN {
                    R v = points.whole[m][q] * combs.share[q];
                    for (int a = 0; a < D; a++) v *= corner >> a & 1 ? points.t[m][a][q] : 1 - points.t[m][a][q];
                    points.weight[m][corner][q] = v;
                }
        }
        points.meets_kinks = kinks;
    }

    // Positions `at` pixels from whole + t as those within the image that they stand for: a smaller copy covers more than it.
    void fold(R* at, const int* whole, const R* t, int a, R* sign) const {
        const R n = R(p.in[a]);
        const R middle = p.padding == REFLECTION && p.align_corners ? R(0) : R(0.5);  // before pixel 0
        const R period = p.padding == CIRCULAR ? n : p.align_corners ? 2 * (n - 1) : 2 * n;
        STN_SPAN {
            R v = R(whole[q]) + t[q] + at[q] + middle;
            v = period > 0 ? v - period * R(floor(v / period)) : R(0);
            v = v > 0 ? v : R(0);
            v = v < period ? v : period;
            if (p.padding == REFLECTION) {
                R back = period - v;
                sign[q] = back < v ? R(-1) : R(1);
                v = back < v ? back : v;
            }
            at[q] = v - middle;
        }
    }

    // Pairs of pixels i, i + 1 as the pair, maybe in the other order, that they stand for: from -1 to n.
    void fold_cells(int* i, R* t, int a, R* sign) const {
        const R n = R(p.in[a]);
        const bool turn = p.padding == REFLECTION && p.align_corners;
        const R period = p.padding == CIRCULAR ? n : turn ? (n > 1 ? 2 * (n - 1) : R(1)) : 2 * n;
        const R end = p.padding == CIRCULAR ? n : turn ? n - 1 : n;
        STN_SPAN {
            R v = R(i[q]);
            v -= period * R(floor(v / period));
            v = v > 0 ? v : R(0);
            v = v < period ? v : period - 1;
            const bool back = v >= end;
            i[q] = int(back ? period - v - (turn ? 1 : 2) : v);
            t[q] = back ? 1 - t[q] : t[q];
            sign[q] = back ? R(-1) : R(1);
        }
        if (n == 1 && turn)
            STN_SPAN i[q] = 0, sign[q] = 1;
    }

    static int along(const Combs<R, D>& combs, int j, int l, int q) {
        return j < combs.points[1][q] && l < combs.points[2][q] ? combs.points[0][q] : 0;
    }

    // Calls f(j, l) for the rows of points.
    template <class F>
    static void for_rows(const Combs<R, D>& combs, F f) {
        for (int l = 0; l < combs.most[2]; l++)
            for (int j = 0; j < combs.most[1]; j++) f(j, l);
    }

    // Numbers from a point's first corner to the others.
    void corners(int e, i64* apart) const {
        const auto& copy = copies.copy[e];
        for (int corner = 0; corner < CORNERS; corner++) {
            apart[corner] = 0;
            for (int a = 0; a < D; a++)
                if (corner >> a & 1) apart[corner] += copy.step[a];
        }
    }

    void forward(Chunk<R>& c, i64 b, Outline& o, R* memory, R* scratch) const {
        alignas(64) Span<R> fine;
        Points<R, D> points;
        C* sum = reinterpret_cast<C*>(scratch);  // (group, pixel)
        R* out = static_cast<R*>(p.output) + b * p.out_batch + c.first;
        for (int k = 0; k < c.count; k += SPAN) {
            const int count = c.count - k < SPAN ? c.count - k : SPAN;
            clean(b, c, k, o, fine);
            for (i64 e = 0; e < copies.groups * SPAN; e++) sum[e] = C{};
            for_copies(o, [&](const Combs<R, D>& combs) {
                const int e = combs.copy;
                i64 apart[CORNERS];
                corners(e, apart);
                for_rows(combs, [&](int j, int l) {
                    locate<false>(c, k, o.sides, combs, j, l, false, points);
                    for (i64 group = 0; group < copies.groups; group++) {
                        const R* from = copies.origin(memory, e, group);
                        for (int q = 0; q < count; q++) {
                            C total[4] = {sum[group * SPAN + q]};  // sums that need not wait for each other
                            for (int m = 0, n = along(combs, j, l, q); m < n; m++) {
                                const R* at = from + points.offset[m][q];
                                for (int corner = 0; corner < CORNERS; corner++) total[corner & 3] += load<C>(at + apart[corner]) * points.weight[m][corner][q];
                            }
                            sum[group * SPAN + q] = (total[0] + total[1]) + (total[2] + total[3]);
                        }
                    }
                });
            });
            for (i64 ch = 0; ch < p.channels; ch++) {
                const R* from = scratch + (ch / G * SPAN) * G + ch % G;
                R* to = out + ch * p.out_channel + k;
                for (int q = 0; q < count; q++) to[q] = fine[q] != 0 ? from[q * G] : R(NAN);
            }
        }
    }

    // The gradient that came in, as cells.
    void read_grad(i64 b, i64 first, int count, i64 group, const Span<R>& fine, R* to) const {
        const R* from = static_cast<const R*>(p.output) + b * p.out_batch + first;
        for (int q = 0; q < SPAN; q++)
            for (int ch = 0; ch < G; ch++) {
                bool there = q < count && group * G + ch < p.channels && fine[q] != 0;
                to[q * G + ch] = there ? from[(group * G + ch) * p.out_channel + q] : R(0);
            }
    }

    void slopes(const Positions<R, D>& positions, Chunk<R>& c, i64 b, Outline& o, R* memory, R* scratch, double* total) const {
        const Sides<R, D>& sides = o.sides;
        alignas(64) Span<R> fine;
        Points<R, D> points, other;
        const C* g = reinterpret_cast<const C*>(scratch);
        alignas(64) Row<R> grad[3];
        double all[D][D] = {};
        for (int k = 0; k < c.count; k += SPAN) {
            const int count = c.count - k < SPAN ? c.count - k : SPAN;
            clean(b, c, k, o, fine);
            for (i64 group = 0; group < copies.groups; group++) read_grad(b, c.first + k, count, group, fine, scratch + group * SPAN * G);
            alignas(64) Span<R> for_position[D] = {}, for_axis[D][D] = {}, for_coarse = {}, for_length[D] = {};
            for_copies(o, [&](const Combs<R, D>& combs) {
                const int e = combs.copy;
                alignas(64) Span<R> for_share = {}, for_count[D] = {};
                for_rows(combs, [&](int j, int l) {
                    alignas(64) Span<R> dots[MOST_COMB][CORNERS], crossed[MOST_COMB][CORNERS];
                    locate<true>(c, k, sides, combs, j, l, false, points);
                    products(e, combs, j, l, count, points, memory, g, dots);
                    const bool both = points.meets_kinks;
                    if (both) {
                        locate<true>(c, k, sides, combs, j, l, true, other);
                        products(e, combs, j, l, count, other, memory, g, crossed);
                    }
                    for (int m = 0; m < combs.most[0]; m++) {
                        alignas(64) Span<R> value, slope[D], second[D];
                        derive(points, dots, m, e, value, slope);
                        if (both) {
                            alignas(64) Span<R> unused;
                            derive(other, crossed, m, e, unused, second);
                            for (int a = 0; a < D; a++)
                                STN_SPAN {
                                    R one = slope[a][q], two = second[a][q];
                                    slope[a][q] = two - two == 0 ? R(0.5) * one + R(0.5) * two : one;
                                }
                        }
                        const int at[3] = {m, j, l};
                        STN_SPAN {
                            const bool there = m < along(combs, j, l, q);
                            const R w = there ? points.whole[m][q] : R(0), counted = w * combs.share[q];
                            value[q] = there ? value[q] : R(0);
                            for_share[q] += w * value[q];
                            for (int a = 0; a < D; a++) {
                                slope[a][q] = there ? slope[a][q] : R(0);
                                for_position[a][q] += counted * slope[a][q];
                            }
                            for (int s = 0; s < D; s++) {
                                R along_side = 0;
                                for (int a = 0; a < D; a++) {
                                    along_side += slope[a][q] * sides.axis[s][a][q];
                                    for_axis[s][a][q] += counted * combs.place[s][at[s]][q] * slope[a][q];
                                }
                                R others = combs.share[q];
                                for (int o = 0; o < D; o++)
                                    if (o != s) others *= combs.weight[o][at[o]][q];
                                for_count[s][q] += counted * along_side * combs.place_slope[s][at[s]][q] + (there ? others * value[q] * combs.weight_slope[s][at[s]][q] : R(0));
                            }
                        }
                    }
                });
                const R size = R(i64(1) << e);
                STN_SPAN {
                    for_coarse[q] += combs.share_slope[q] * for_share[q];
                    for (int s = 0; s < D; s++) {
                        const bool open = combs.count[s][q] > 1 && combs.share[q] > 0;
                        const R by = open ? for_count[s][q] / combs.unit[q] : R(0);
                        for_length[s][q] += by;
                        for_coarse[q] -= combs.unit[q] > size ? R(0.5) * by * combs.count[s][q] : R(0);
                    }
                }
            });
            sides.pull(for_coarse, for_length, for_axis);
            for (int q = 0; q < count; q++) {
                const bool here = fine[q] != 0;
                for (int a = 0; a < D; a++) {
                    grad[a][k + q] = here ? for_position[a][q] : R(0);
                    for (int s = 0; s < D; s++) {
                        const R v = here ? for_axis[s][a][q] : R(0);
                        if (total) all[a][s] += double(v);
                        else static_cast<R*>(area.grad_jacobian)[((b * job.pixels + c.first + k + q) * D + a) * D + s] = v;
                    }
                }
            }
        }
        positions.reduce(c, grad, total);
        if (total)
            for (int a = 0; a < D; a++)
                for (int s = 0; s < D; s++) total[sums - D * D + a * D + s] += all[a][s];
    }

    // The products of the gradient and the corners of a row of points, over all channels.
    void products(int e, const Combs<R, D>& combs, int j, int l, int count, const Points<R, D>& points, R* memory, const C* g, Span<R> (*to)[CORNERS]) const {
        i64 apart[CORNERS];
        corners(e, apart);
        const R* from = copies.origin(memory, e, 0);
        const i64 plane = copies.copy[e].plane, groups = copies.groups;
        for (int q = 0; q < count; q++)
            for (int m = 0, n = along(combs, j, l, q); m < n; m++) {
                const R* at = from + points.offset[m][q];
                for (int corner = 0; corner < CORNERS; corner++) {
                    C sum = load<C>(at + apart[corner]) * g[q];
                    for (i64 group = 1; group < groups; group++) sum += load<C>(at + apart[corner] + group * plane) * g[group * SPAN + q];
                    if constexpr (G == 1) to[m][corner][q] = sum;
                    else to[m][corner][q] = (sum[0] + sum[2]) + (sum[1] + sum[3]);
                }
            }
    }

    // From the products of a point's corners its value and slopes, by pixels of the image.
    void derive(const Points<R, D>& points, const Span<R> (*dots)[CORNERS], int m, int e, R* value, Span<R>* slope) const {
        const R inverse = R(1) / R(i64(1) << e);
        STN_SPAN {
            R v[CORNERS];
            for (int corner = 0; corner < CORNERS; corner++) v[corner] = dots[m][corner][q];
            for (int a = 0; a < D; a++) {
                R total = 0;
                for (int corner = 0; corner < CORNERS; corner++)
                    if (!(corner >> a & 1)) {
                        R w = 1;
                        for (int o = 0; o < D; o++)
                            if (o != a) w *= corner >> o & 1 ? points.t[m][o][q] : 1 - points.t[m][o][q];
                        total += w * (v[corner | 1 << a] - v[corner]);
                    }
                slope[a][q] = total * points.sign[m][a][q] * (a < copies.axes() ? inverse : R(1));
            }
            R total = 0;
            for (int corner = 0; corner < CORNERS; corner++) {
                R w = v[corner];
                for (int o = 0; o < D; o++) w *= corner >> o & 1 ? points.t[m][o][q] : 1 - points.t[m][o][q];
                total += w;
            }
            value[q] = total;
        }
    }

    // The gradient of one cell column of an image.
    void spread(i64 b, i64 group, int last, Outline& shared, R* memory, R* scratch) const {
        for (int e = 0; e <= last; e++) {
            const auto& copy = copies.copy[e];
            memset(memory + copy.begin + group * copy.plane, 0, size_t(copy.plane) * sizeof(R));
        }
        Chunk<R> c;
        Outline mine;
        Outline& o = p.kind == AFFINE ? shared : mine;
        Points<R, D> points;
        alignas(64) Span<R> fine;
        auto positions = job.positions(b);
        const C* g = reinterpret_cast<const C*>(scratch);
        for (i64 chunk = 0; chunk < job.chunks; chunk++) {
            job.start(c, chunk);
            positions.fill(c);
            for (int k = 0; k < c.count; k += SPAN) {
                const int count = c.count - k < SPAN ? c.count - k : SPAN;
                clean(b, c, k, o, fine);
                read_grad(b, c.first + k, count, group, fine, scratch);
                for_copies(o, [&](const Combs<R, D>& combs) {
                    const int e = combs.copy;
                    i64 apart[CORNERS];
                    corners(e, apart);
                    R* to = copies.origin(memory, e, group);
                    for_rows(combs, [&](int j, int l) {
                        locate<false>(c, k, o.sides, combs, j, l, false, points);
                        for (int q = 0; q < count; q++) {
                            if (fine[q] == 0) continue;
                            for (int m = 0, n = along(combs, j, l, q); m < n; m++) {
                                R* at = to + points.offset[m][q];
                                for (int corner = 0; corner < CORNERS; corner++)
                                    store(at + apart[corner], C(load<C>(at + apart[corner]) + g[q] * points.weight[m][corner][q]));
                            }
                        }
                    });
                });
            }
        }
        for (int e = last; e > 0; e--) {
            copies.fold(memory, e, group);
            copies.unhalve(memory, e, group, scratch);
        }
        copies.fold(memory, 0, group);
        const auto& copy = copies.copy[0];
        const R* from = copies.origin(memory, 0, group);
        for (i64 ch = group * G; ch < p.channels && ch < (group + 1) * G; ch++) {
            R* to = static_cast<R*>(p.grad_image) + b * p.image_batch + ch * p.image_channel;
            for (i64 z = 0; z < (D > 2 ? p.in[2] : 1); z++)
                for (i64 y = 0; y < p.in[1]; y++)
                    for (i64 x = 0; x < p.in[0]; x++)
                        to[z * p.image_stride[2] + y * p.image_stride[1] + x * p.image_stride[0]] = from[z * copy.step[2] + y * copy.step[1] + x * G + ch - group * G];
        }
    }

    void finish(double* partial) const {
        for (i64 b = 0; b < p.batch; b++) {
            double* total = partial + b * blocks * sums;
            for (i64 block = 1; block < blocks; block++)
                for (i64 e = 0; e < sums; e++) total[e] += total[block * sums + e];
            job.positions(b).finish(total);
            R* to = static_cast<R*>(area.grad_jacobian) + b * D * D;
            for (int e = 0; e < D * D; e++) to[e] = R(total[sums - D * D + e]);
        }
    }
};

template <class R, int D>
Status average_cells(const Area& area) {
    return area.problem.channels == 1 ? Averaging<R, D, 1>(area).run() : Averaging<R, D, 4>(area).run();
}

template <class R>
Status average_dimensions(const Area& area) {
    return area.problem.ndim == 3 ? average_cells<R, 3>(area) : average_cells<R, 2>(area);
}

}  // namespace
}  // namespace stn::STN_SET

#define STN_JOIN_(a, b) a##b
#define STN_JOIN(a, b) STN_JOIN_(a, b)

namespace stn {

Status STN_JOIN(average_, STN_SET)(const Area& area) {
    return area.problem.type == F64 ? STN_SET::average_dimensions<double>(area) : STN_SET::average_dimensions<float>(area);
}

}  // namespace stn
