// Displacements on a lattice of any resolution, brought linearly to the pixels of an output where they are needed: of a run of
// pixels of one row, the field's rows on both sides are blended first, then two columns of the blend for each pixel. Back, the
// columns take what the run's pixels give them, and then the rows.
#pragma once
#include "chunk.h"

namespace stn::STN_SET {
namespace {

template <class R, int D>
struct Field {
    static constexpr int ROWS = 1 << (D - 1), COLUMNS = 256;

    // Pixels of one row: the field's column to the left of each, counted from `from`, and the share of the one to the right.
    struct Run {
        i64 from, row[ROWS];  // rows count vectors of the field
        R weight[ROWS];
        int count, columns, own;  // the last column is there twice where a pixel lies on it: `own` of them are the field's
        alignas(64) int i[CHUNK + SLACK];
        alignas(64) R t[CHUNK + SLACK];
    };
    typedef R Line[COLUMNS + SLACK];  // one component of a blend

    const Problem& p;
    double start[D], step[D];  // pixel k of the output lies at start + step * k of the field's lattice
    int longest = 1;           // pixels of a run

    // The output's lattice: normalized = first + by * k.
    Field(const Problem& problem, const double* first, const double* by) : p(problem) {
        if (p.kind != FIELD) return;
        for (int a = 0; a < D; a++) {
            double half = double(p.field[a] - 1) / 2;
            start[a] = (first[a] + 1) * half;
            step[a] = by[a] * half;
        }
        double most = step[0] > 0 ? (COLUMNS - 4) / step[0] : CHUNK;
        longest = most < CHUNK ? int(most) : CHUNK;
        longest = longest > 1 ? longest : 1;
    }

    i64 numbers() const { return D * p.field[0] * p.field[1] * p.field[2]; }
    i64 slice() const { return numbers() / p.field[D - 1]; }

    // The field's point at or before pixel k of an axis, and the share of the next one.
    i64 before(int a, i64 k, double* share = nullptr) const {
        double at = start[a] + step[a] * double(k), most = double(p.field[a] - 1);
        at = at > 0 ? at : 0;
        at = at < most ? at : most;
        if (share) *share = at - floor(at);
        return i64(at);
    }

    // Slices of the slowest axis that are touched by the row or slice of pixels k.
    i64 first_slice(i64 k) const { return before(D - 1, k); }
    i64 last_slice(i64 k) const { return after(D - 1, first_slice(k)); }

    void locate(Run& run, int n, i64 j, i64 r, i64 s) const {
        double share;
        run.from = before(0, j, &share);
        R at = R(share), by = R(step[0]);
        for (int q = 0, padded = (n + LANES - 1) / LANES * LANES; q < padded; q++) split(at + R(q) * by, 0, run.i[q], run.t[q]);
        run.count = n, run.columns = run.i[n - 1] + 2;
        i64 left = p.field[0] - run.from;
        run.own = run.columns < left ? run.columns : int(left);
        double below, behind = 0;
        i64 y = before(1, r, &below), z = D > 2 ? before(D - 1, s, &behind) : 0;
        for (int e = 0; e < ROWS; e++) {
            bool second = e & 1, deep = e & 2;
            i64 slice = deep ? after(D - 1, z) : z;
            run.row[e] = (slice * p.field[1] + (second ? after(1, y) : y)) * p.field[0] + run.from;
            run.weight[e] = R((second ? below : 1 - below) * (deep ? behind : 1 - behind));
        }
    }

    // The displacements of a run's pixels along each axis.
    void read(const Run& run, i64 b, Line* line, Row<R>* moved) const {
        const R* data = static_cast<const R*>(p.coordinates) + b * numbers();
        for (int a = 0; a < D; a++) {
            R* __restrict to = line[a];
            const R *__restrict first = data + run.row[0] * D + a, *__restrict second = data + run.row[1] * D + a;
            const R *__restrict third = data + run.row[ROWS - 2] * D + a, *__restrict fourth = data + run.row[ROWS - 1] * D + a;
            const R *w = run.weight;
            if (D > 2)
                for (int q = 0; q < run.own; q++) to[q] = (w[0] * first[q * D] + w[1] * second[q * D]) + (w[ROWS - 2] * third[q * D] + w[ROWS - 1] * fourth[q * D]);
            else
                for (int q = 0; q < run.own; q++) to[q] = w[0] * first[q * D] + w[1] * second[q * D];
            for (int q = run.own; q < run.columns; q++) to[q] = to[run.own - 1];
        }
        for (int a = 0; a < D; a++) {
            R* __restrict to = moved[a];
            const R *__restrict from = line[a], *__restrict t = run.t;
            const int* __restrict i = run.i;
#if !defined(__clang__)
            if constexpr (sizeof(R) == 4)
                if (step[0] < 0.999) {  // the columns of a vector of pixels are no more than a vector
                    for (int q = 0; q < run.count; q += LANES) {
                        vint lane = load<vint>(i + q) - i[q];
                        vfloat left = __builtin_shuffle(load<vfloat>(from + i[q]), lane), right = __builtin_shuffle(load<vfloat>(from + i[q] + 1), lane);
                        vfloat share = load<vfloat>(t + q);
                        store(to + q, mix(left, right, 1 - share, share));
                    }
                    continue;
                }
#endif
            for (int q = 0; q < run.count; q++) to[q] = (1 - t[q]) * from[i[q]] + t[q] * from[i[q] + 1];
        }
    }

    // Adds the gradient of a run's displacements, pixels from k on of each axis, to that of the field, which begins with slice `low`.
    void pull(const Run& run, const Row<R>* grad, int k, i64 low, double* total) const {
        alignas(64) R line[(COLUMNS + SLACK) * D];  // component by component of a column
        for (int e = 0; e < run.columns * D; e++) line[e] = 0;
        const int n = run.count;
        R left[D] = {}, right[D] = {};
        int column = run.i[0];
        auto leave = [&]() {
            for (int a = 0; a < D; a++) line[column * D + a] += left[a], line[(column + 1) * D + a] += right[a];
        };
        if (step[0] < 0.125)  // a column takes some vectors of pixels
            for (int from = 0, end; from < n; from = end) {
                column = run.i[from];
                for (end = from + 1; end < n && run.i[end] == column;) end++;
                for (int a = 0; a < D; a++) {
                    const R *__restrict g = grad[a] + k, *__restrict t = run.t;
                    R both = 0, share = 0;
#pragma omp simd reduction(+ : both, share)
                    for (int q = from; q < end; q++) {
                        both += g[q];
                        share += g[q] * t[q];
                    }
                    left[a] = both - share, right[a] = share;
                }
                leave();
            }
        else {  // sums stay in registers until the next column
            for (int q = 0; q < n; q++) {
                if (run.i[q] != column) {
                    const bool next = run.i[q] == column + 1;
                    for (int a = 0; a < D; a++) {
                        line[column * D + a] += left[a];
                        if (!next) line[(column + 1) * D + a] += right[a];
                        left[a] = next ? right[a] : R(0), right[a] = 0;
                    }
                    column = run.i[q];
                }
                for (int a = 0; a < D; a++) {
                    const R share = grad[a][k + q] * run.t[q];
                    left[a] += grad[a][k + q] - share, right[a] += share;
                }
            }
            leave();
        }
        for (int q = run.own; q < run.columns; q++)
            for (int a = 0; a < D; a++) line[(run.own - 1) * D + a] += line[q * D + a];
        for (int e = 0; e < ROWS; e++) {
            double* to = total + run.row[e] * D - low * slice();
            const R weight = run.weight[e];
#pragma omp simd
            for (int q = 0; q < run.own * D; q++) to[q] += double(weight * line[q]);
        }
    }

private:
    i64 after(int a, i64 k) const { return k + 1 < p.field[a] ? k + 1 : k; }
};

}  // namespace
}  // namespace stn::STN_SET
