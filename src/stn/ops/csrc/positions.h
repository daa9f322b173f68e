// Where pixels are read: positions of image `b` in pixels, from any kind of coordinates, and the gradient's way back.
#pragma once
#include "field.h"
#include "products.h"

namespace stn::STN_SET {
namespace {

constexpr int SEGMENT = 64;  // pixels between two float64 positions

// Columns and rows, counted from the row of a chunk's first pixel, of images so narrow that a chunk has several rows.
template <class R>
struct Lattice {
    static constexpr int WIDEST = SEGMENT;
    R column[WIDEST + CHUNK + SLACK], row[WIDEST + CHUNK + SLACK];

    void fill(i64 width) {
        int c = 0, r = 0;
        for (int k = 0; k < int(width) + CHUNK + LANES; k++) {
            column[k] = R(c), row[k] = R(r);
            if (++c == width) c = 0, r++;
        }
    }
};

template <class R, int D>
struct Positions {
    const Problem& p;
    i64 b;
    double scale[3], centre[3];                  // pixels = normalized * scale + centre
    double first[3], step[3];                    // the output lattice: normalized = first + step * k
    double origin[4], along[4][3];               // AFFINE (pixels), PROJECTIVE (normalized): position of pixel 0, steps
    double threshold;
    const Lattice<R>* lattice;                   // or null
    typename Products<D>::Team* team = nullptr;  // BASIS: positions that are there already; takes their gradient instead
    Field<R, D> field;                           // FIELD,
    i64 low = 0;                                 // and the slice of it that sums begin with

    Positions(const Problem& problem, i64 image, const Lattice<R>* narrow = nullptr)
        : p(problem), b(image), lattice(narrow), field(problem, (find_lattice(), first), step) {
        for (int a = 0; a < D; a++) {
            double n = double(p.in[a] - 2 * p.margin[a]);
            scale[a] = p.align_corners ? (n - 1) / 2 : n / 2;
            centre[a] = (n - 1) / 2;
            if (p.in_pixels) scale[a] = 1, centre[a] = 0;
            centre[a] += double(p.margin[a]) + p.shift;
        }
        const R* matrix = static_cast<const R*>(p.coordinates);
        if (p.kind == AFFINE) {
            matrix += b * D * (D + 1);
            for (int a = 0; a < D; a++) {
                const R* row = matrix + a * (D + 1);
                double total = double(row[D]);
                for (int c = 0; c < D; c++) total += double(row[c]) * first[c];
                origin[a] = total * scale[a] + centre[a];
                for (int c = 0; c < D; c++) along[a][c] = double(row[c]) * (step[c] * scale[a]);
            }
        } else if (p.kind == PROJECTIVE) {
            matrix += b * (D + 1) * (D + 1);
            R largest = 0;
            for (int a = 0; a <= D; a++) {
                const R* row = matrix + a * (D + 1);
                origin[a] = double(row[D]);
                for (int c = 0; c < D; c++) origin[a] += double(row[c]) * first[c];
                for (int c = 0; c < D; c++) along[a][c] = double(row[c]) * step[c];
            }
            for (int c = 0; c <= D; c++) {
                R size = matrix[D * (D + 1) + c];
                size = size < 0 ? -size : size;
                largest = size > largest ? size : largest;
            }
            threshold = double(R(1e-4) * largest);
        }
    }

    double at(int a, i64 j, i64 r, i64 s) const {
        double v = origin[a] + along[a][0] * double(j);
        v += along[a][1] * double(r);
        if (D > 2) v += along[a][2] * double(s);
        return v;
    }

    i64 ahead() const {
        constexpr double ROWS = 6;
        double at[3] = {0, ROWS * double(p.in[1]) / double(p.out[1]), 0};
        if (p.kind == AFFINE)
            for (int a = 0; a < D; a++) at[a] = fabs(along[a][1]) < 1e4 ? ROWS * along[a][1] : 0;
        i64 total = 0;
        for (int a = 0; a < D; a++) total += i64(at[a]) * p.image_stride[a];
        return total;
    }

    bool sparse() const {
        double area = double(p.in[0]) * double(p.in[1]) / (double(p.out[0]) * double(p.out[1]));
        if (p.kind == AFFINE && D == 2) area = fabs(along[0][0] * along[1][1] - along[0][1] * along[1][0]);
        return area > 2;
    }

    // Whether pixels of the chunk may read rows from `from` to `to` of the slowest axis; only ever wrong with yes.
    bool touches(const Chunk<R>& c, i64 from, i64 to) const {
        if (p.kind != AFFINE) return true;
        bool background = p.padding == ZEROS || p.padding == CONSTANT;
        double least = background ? -HUGE_VAL : 3, most = background ? HUGE_VAL : double(p.in[D - 1]) - 4;
        bool any = false;
        for_segments(p, c.first, c.count, CHUNK, [&](int, int n, i64 j, i64 r, i64 s) {
            double a = at(D - 1, j, r, s), b = at(D - 1, j + n - 1, r, s);
            double low = a < b ? a : b, high = a < b ? b : a;
            bool padded = !(low >= least && high <= most);
            any |= padded || !(high < double(from) - 3 || low > double(to) + 2);
        });
        return any;
    }

    // AFFINE in two dimensions: the columns from..to of output row r whose position may lie within low..high of each
    // axis; only ever wrong with more of them.
    void columns(i64 r, const double* low, const double* high, i64& from, i64& to) const {
        double begin = 0, end = double(p.out[0]);
        for (int a = 0; a < 2; a++) {
            double base = origin[a] + along[a][1] * double(r), by = along[a][0], slack = 0.01 + 1e-5 * fabs(by);
            double first = low[a] - slack - base, last = high[a] + slack - base;
            if (fabs(by) < 1e-9) {
                if (!(first < 1e-3 && last > -1e-3)) end = 0;  // nowhere, or not a number
                continue;
            }
            double one = first / by, other = last / by;
            double least = floor(one < other ? one : other), most = floor(one < other ? other : one) + 1;
            begin = begin < least ? least : begin;
            end = end > most ? most : end;
        }
        bool some = begin < end;
        from = some ? i64(begin) : 0, to = some ? i64(end) : 0;
    }

    STN_SHARED void fill(Chunk<R>& c) const {
        c.ahead = ahead();
        c.sparse = sparse();
        switch (p.kind) {
            case AFFINE: affine(c); break;
            case PROJECTIVE: projective(c); break;
            case BASIS: basis(c); break;
            case FIELD: displaced(c); break;
            default: grid(c);
        }
        if (p.mode == NEAREST)  // ties to even
            for (int a = 0; a < D; a++) {
                int* __restrict i = c.i[a];
                const R* __restrict t = c.t[a];
                for (int k = 0, n = c.count; k < n; k++) i[k] += i[k] & 1 ? t[k] >= R(0.5) : t[k] > R(0.5);
            }
    }

    void affine(Chunk<R>& c) const {
        if constexpr (D == 2)
            if (lattice && affine_narrow(c)) return;
        for_segments(p, c.first, c.count, SEGMENT, [&](int k, int n, i64 j, i64 r, i64 s) {
            for (int a = 0; a < D; a++) {
                double base = at(a, j, r, s), by = along[a][0];
                int* __restrict i = c.i[a] + k;
                R* __restrict t = c.t[a] + k;
                if (fabs(base) < FAR && fabs(by) < FAR / (4 * SEGMENT)) {
                    double whole = floor(base);
                    R start = R(base - whole), increment = R(by);
                    int from = int(whole);
                    int padded = (n + LANES - 1) / LANES * LANES;
                    for (int q = 0; q < padded; q++) split(start + R(q) * increment, from, i[q], t[q]);
                } else {
                    for (int q = 0; q < n; q++) {
                        double fraction;
                        split_any(base + by * q, base + by * q, i[q], fraction);
                        t[q] = R(fraction);
                    }
                }
            }
        });
    }

    bool affine_narrow(Chunk<R>& c) const {
        i64 r = c.first / p.out[0], j = c.first - r * p.out[0];
        double base[2];
        for (int a = 0; a < 2; a++) {
            base[a] = at(a, 0, r, 0);
            // Steps in float32 from the row's first position: not too far for them to be exact.
            double reach = fabs(along[a][0]) * double(p.out[0]) + fabs(along[a][1]) * double(CHUNK / p.out[0] + 1);
            if (!(fabs(base[a]) < FAR / 2 && reach < 512)) return false;
        }
        const R *__restrict column = lattice->column + j, *__restrict row = lattice->row + j;
        int padded = (c.count + LANES - 1) / LANES * LANES;
        for (int a = 0; a < 2; a++) {
            int* __restrict i = c.i[a];
            R* __restrict t = c.t[a];
            double whole = floor(base[a]);
            R start = R(base[a] - whole), by = R(along[a][0]), down = R(along[a][1]);
            int from = int(whole);
            for (int k = 0; k < padded; k++) split(start + column[k] * by + row[k] * down, from, i[k], t[k]);
        }
        return true;
    }

    void projective(Chunk<R>& c) const {
        R limit = R(threshold);
        for_segments(p, c.first, c.count, SEGMENT, [&](int k, int n, i64 j, i64 r, i64 s) {
            R low = R(at(D, j, r, s)), low_by = R(along[D][0]);
            R* __restrict inverse = c.inverse + k;
            for (int q = 0; q < n; q++) {
                R w = low + R(q) * low_by;
                inverse[q] = w <= limit ? R(0) : 1 / w;
            }
            for (int a = 0; a < D; a++) {
                R start = R(at(a, j, r, s)), by = R(along[a][0]), size = R(scale[a]), middle = R(centre[a]);
                int* __restrict i = c.i[a] + k;
                R* __restrict t = c.t[a] + k;
                R* __restrict u = c.u[a] + k;
                for (int q = 0; q < n; q++) {
                    R over = start + R(q) * by;
                    R far = over < 0 ? R(-1e4) : R(1e4);
                    far = over == over ? far : over;
                    u[q] = inverse[q] == 0 ? far : over * inverse[q];
                    split_any(u[q] * size + middle, u[q], i[q], t[q]);
                }
            }
        });
    }

    void basis(Chunk<R>& c) const {
        alignas(64) typename Products<D>::Team mine;
        if (!team) Products<D>::template positions<1>(p, b, c.first, c.count, &mine);
        const auto& from = team ? *team : mine;
        for (int a = 0; a < D; a++) {
            const double* __restrict at = from[a];
            int* __restrict i = c.i[a];
            R* __restrict t = c.t[a];
            double size = scale[a], middle = centre[a];
            for (int k = 0, n = c.count; k < n; k++) {
                double position = at[k] * size + middle;
                position = position > -FAR ? position : -FAR;
                position = position < FAR ? position : FAR;
                int q = int(position);
                q -= double(q) > position;
                t[k] = R((position - double(q)) + (at[k] - at[k]));
                i[k] = q;
            }
        }
    }

    void grid(Chunk<R>& c) const {
        const R* data = static_cast<const R*>(p.coordinates) + b * p.grid_batch;
        for_segments(p, c.first, c.count, CHUNK, [&](int k, int n, i64 j, i64 r, i64 s) {
            const R* row = data + j * p.grid_stride[0] + r * p.grid_stride[1] + s * p.grid_stride[2];
            i64 by = p.grid_stride[0];
            for (int a = 0; a < D; a++) {
                const R* from = row + a * p.grid_axis;
                R size = R(scale[a]), middle = R(centre[a]);
                int* __restrict i = c.i[a] + k;
                R* __restrict t = c.t[a] + k;
                if (by == D)
                    for (int q = 0; q < n; q++) split_any(from[q * D] * size + middle, from[q * D], i[q], t[q]);
                else
                    for (int q = 0; q < n; q++) split_any(from[q * by] * size + middle, from[q * by], i[q], t[q]);
            }
        });
    }

    void displaced(Chunk<R>& c) const {
        typename Field<R, D>::Run run;
        alignas(64) typename Field<R, D>::Line line[D];
        alignas(64) Row<R> moved[D];
        for_segments(p, c.first, c.count, field.longest, [&](int k, int n, i64 j, i64 r, i64 s) {
            field.locate(run, n, j, r, s);
            field.read(run, b, line, moved);
            i64 pixel[3] = {j, r, s};
            for (int a = 0; a < D; a++) {
                double base = (first[a] + step[a] * double(pixel[a])) * scale[a] + centre[a], whole = floor(base);
                R start = R(base - whole), by = R(a ? 0 : step[a] * scale[a]), size = R(scale[a]);
                int from = int(whole);
                int* __restrict i = c.i[a] + k;
                R* __restrict t = c.t[a] + k;
                const R* __restrict u = moved[a];
                for (int q = 0; q < n; q++) {
                    split_any(start + R(q) * by + u[q] * size, u[q], i[q], t[q]);
                    i[q] += from;
                }
            }
        });
    }

    // Sums that a task adds up: for each row of the matrix those of its entries, or one for each coefficient or component.
    i64 sums() const {
        if (p.kind == FIELD) return field.numbers();
        return p.kind == AFFINE ? D * (D + 1) : p.kind == PROJECTIVE ? (D + 1) * (D + 1) : p.kind == BASIS ? p.basis_size * D : 0;
    }

    // Adds the gradient of a chunk's positions (in pixels) to the sums; a grid's is written where it belongs.
    STN_SHARED void reduce(const Chunk<R>& c, Row<R>* grad, double* total, bool more = false) const {
        if (p.kind == GRID) {
            R* to = static_cast<R*>(p.grad_coordinates) + (b * p.out[0] * p.out[1] * p.out[2] + c.first) * D;
            for (int a = 0; a < D; a++) {
                R size = R(scale[a]);
                for (int k = 0; k < c.count; k++) to[k * D + a] = (more ? to[k * D + a] : 0) + grad[a][k] * size;
            }
            return;
        }
        if (p.kind == BASIS) {
            alignas(64) typename Products<D>::Team mine;
            auto& wide = team ? *team : mine;
            for (int a = 0; a < D; a++)
                for (int k = 0; k < c.count; k++) wide[a][k] = double(grad[a][k]) * scale[a];
            if (!team) Products<D>::template sums<1>(p, c.first, c.count, &mine, total, 0);
            return;
        }
        if (p.kind == FIELD) {
            typename Field<R, D>::Run run;
            for (int a = 0; a < D; a++)
                for (int k = 0; k < c.count; k++) grad[a][k] *= R(scale[a]);
            for_segments(p, c.first, c.count, field.longest, [&](int k, int n, i64 j, i64 r, i64 s) {
                field.locate(run, n, j, r, s);
                field.pull(run, grad, k, low, total);
            });
            return;
        }
        int rows = D;
        alignas(64) R last[CHUNK + SLACK];
        if (p.kind == PROJECTIVE) {  // of the numerators and the denominator
            rows = D + 1;
            for (int k = 0; k < c.count; k++) last[k] = 0;
            for (int a = 0; a < D; a++) {
                R size = R(scale[a]);
                for (int k = 0; k < c.count; k++) {
                    R g = grad[a][k] * size;
                    bool hidden = c.inverse[k] == 0;
                    g = hidden ? 0 : g * c.inverse[k];
                    grad[a][k] = g;
                    last[k] -= hidden ? 0 : g * c.u[a][k];
                }
            }
        }
        if (lattice) {
            i64 r = c.first / p.out[0], j = c.first - r * p.out[0];
            const R *__restrict column = lattice->column + j, *__restrict row = lattice->row + j;
            double left = first[0], top = first[1] + step[1] * double(r);
            for (int a = 0; a < rows; a++) {
                const R* __restrict g = a < D ? grad[a] : last;
                R plain = 0, x = 0, y = 0;
#pragma omp simd reduction(+ : plain, x, y)
                for (int k = 0; k < c.count; k++) {
                    plain += g[k];
                    x += g[k] * column[k];
                    y += g[k] * row[k];
                }
                double* to = total + a * (D + 1);
                to[0] += left * double(plain) + step[0] * double(x);
                to[1] += top * double(plain) + step[1] * double(y);
                to[D] += double(plain);
            }
            return;
        }
        for_segments(p, c.first, c.count, CHUNK, [&](int k, int n, i64 j, i64 r, i64 s) {
            double left = first[0] + step[0] * double(j), y = first[1] + step[1] * double(r), z = D > 2 ? first[2] + step[2] * double(s) : 0;
            for (int a = 0; a < rows; a++) {
                const R* __restrict g = (a < D ? grad[a] : last) + k;
                R plain = 0, x = 0;
#pragma omp simd reduction(+ : plain, x)
                for (int q = 0; q < n; q++) {
                    plain += g[q];
                    x += g[q] * R(q);
                }
                double sum = double(plain);
                double* to = total + a * (D + 1);
                to[0] += left * sum + step[0] * double(x);
                to[1] += y * sum;
                if (D > 2) to[2] += z * sum;
                to[D] += sum;
            }
        });
    }

    void finish(const double* total) const {
        i64 n = sums();
        if (p.kind == BASIS) {
            double* to = static_cast<double*>(p.grad_coordinates) + b * n;
            for (i64 e = 0; e < n; e++) to[e] = total[e];
            return;
        }
        R* to = static_cast<R*>(p.grad_coordinates) + b * n;
        for (i64 e = 0; e < n; e++) to[e] = R(total[e] * (p.kind == AFFINE ? scale[e / (D + 1)] : 1));
    }

private:
    void find_lattice() {
        for (int a = 0; a < D; a++) {
            double m = double(p.out[a]), span = p.align_corners ? (m > 1 ? m - 1 : 1) : m;
            first[a] = (1 - m) / span;
            step[a] = 2 / span;
        }
    }
};

}  // namespace
}  // namespace stn::STN_SET
