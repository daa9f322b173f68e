// Scaling and squaring of velocity fields, compiled once for each instruction set (STN_SET).
//
// A field s = v / 2^steps is read where half of itself leads, which is the short step u; then `steps` times u becomes
// u + u(id + u). Fields are read linearly, and beyond their border it goes on. Here the vectors of a field lie as 2 numbers in
// two dimensions and 4 in three, the last of them 0, so that a point and its right neighbour are one vector, a *pair*: of a
// position the pairs of the 2 or 4 rows around it are blended, then both halves of the blend.
//
// The gradient follows the fields, which are made again, back: of each step the vectors that were read take what they gave, and
// the vector that led there takes the slope, at a point of the lattice the mean of the slopes on both sides (kinks.h). What is
// read takes additions from wherever the field led to it; they are made in slabs of an image, each of them in a copy of its own
// of what it may touch, which are added up in order. Slabs depend on the shape alone, so bits do not depend on the threads.
#include "flow.h"

#include "kinks.h"
#include "pages.h"
#include "tasks.h"

namespace stn::STN_SET {
namespace {

constexpr i64 TASK = 4096;    // points, about
constexpr i64 ALONE = 16384;  // images of more points are worked on by all threads together

template <class R, int D>
struct Squaring {
    static constexpr int S = D == 2 ? 2 : 4, ROWS = 1 << (D - 1);
    typedef R Pair __attribute__((vector_size(2 * S * sizeof(R))));
    typedef std::make_integer_sequence<int, 2 * S> Both;

    const Flow& p;
    i64 points, lines;      // of one image
    i64 apart[3];           // points, to the next one along each axis; 0 where there is none
    double half[3];         // points in a normalized unit
    i64 slabs, slices;      // of the slowest axis

    explicit Squaring(const Flow& problem) : p(problem) {
        points = 1;
        for (int a = 0; a < 3; a++) {
            apart[a] = p.size[a] > 1 ? points : 0;
            points *= p.size[a];
            half[a] = double(p.size[a] - 1) / 2;
        }
        lines = points / p.size[0];
        slices = p.size[D - 1];
        slabs = points / ALONE < 8 ? points / ALONE : 8;
        slabs = slabs < slices / 8 ? slabs : slices / 8;
        slabs = slabs > 1 ? slabs : 1;
    }

    Status run() const {
        const i64 each = D * points;
        const R* velocity = static_cast<const R*>(p.velocity);
        R largest = 0;
        for (i64 e = 0; e < p.batch * each; e += CHUNK) {
            const i64 n = p.batch * each - e < CHUNK ? p.batch * each - e : CHUNK;
            R most = 0;
#pragma omp simd reduction(max : most)
            for (i64 k = 0; k < n; k++) {
                R size = velocity[e + k] < 0 ? -velocity[e + k] : velocity[e + k];
                size = size <= R(1e30) ? size : R(HUGE_VAL);
                most = size > most ? size : most;
            }
            largest = most > largest ? most : largest;
        }
        if (!(largest < R(HUGE_VAL))) return NOT_FINITE;
        const bool together = points > ALONE;
        Status status = DONE;
        auto image = [&](i64 b, int threads) {
            const bool fine = p.gradient ? backward(b, threads) : forward(b, threads);
            if (!fine) __atomic_store_n(reinterpret_cast<int*>(&status), int(NO_MEMORY), __ATOMIC_RELAXED);
        };
        if (together)
            for (i64 b = 0; b < p.batch; b++) image(b, p.threads);
        else
            for_tasks(p.batch, double(p.batch) * double(points) * p.steps * 16, 65536, p.threads, [&](i64 b) { image(b, 1); });
        return status;
    }

private:
    // Memory for some fields, with a point more at the end, for the last pair.
    struct Fields {
        R* data = nullptr;
        i64 size;
        Fields(i64 count, i64 points) : size((points + 2) * S) {
            void* memory = nullptr;
            const size_t bytes = size_t(count) * size_t(size) * sizeof(R);
            if (posix_memalign(&memory, 64, bytes)) return;
            large_pages(memory, bytes);
            data = static_cast<R*>(memory);
            for (i64 k = 0; k < count; k++)
                for (i64 e = size - 2 * S; e < size; e++) data[k * size + e] = 0;
        }
        Fields(const Fields&) = delete;
        ~Fields() { free(data); }
        R* operator[](i64 k) const { return data + k * size; }
    };

    // Where the vectors of a run of one row lead.
    struct Places {
        int n;
        alignas(64) int i[D][CHUNK + SLACK];       // the point before, of any size,
        alignas(64) R t[D][CHUNK + SLACK];         // and the share of the next
        alignas(64) int point[CHUNK + SLACK];      // the first of those that are read
        alignas(64) R x[CHUNK + SLACK], weight[ROWS][CHUNK + SLACK], slope[D][CHUNK + SLACK];
    };

    template <class F>
    void on_lines(int threads, F f) const {
        const i64 some = TASK / p.size[0] > 1 ? TASK / p.size[0] : 1, tasks = (lines + some - 1) / some;
        for_tasks(tasks, double(points) * 16, 65536, threads, [&](i64 task) {
            for (i64 line = task * some; line < (task + 1) * some && line < lines; line++) f(line);
        });
    }

    // Calls f(first, n) for the runs of a row: the number of its first point.
    template <class F>
    STN_INLINE void on_runs(i64 line, F f) const {
        for (i64 j = 0; j < p.size[0]; j += CHUNK) f(line * p.size[0] + j, int(p.size[0] - j < CHUNK ? p.size[0] - j : CHUNK));
    }

    void enter(const R* from, R* to, R by, int threads) const {
        on_lines(threads, [&](i64 line) {
            for (i64 k = line * p.size[0]; k < (line + 1) * p.size[0]; k++)
                for (int a = 0; a < S; a++) to[k * S + a] = a < D ? from[k * D + a] * by : 0;
        });
    }
    void leave(const R* from, R* to, R by, int threads) const {
        on_lines(threads, [&](i64 line) {
            for (i64 k = line * p.size[0]; k < (line + 1) * p.size[0]; k++)
                for (int a = 0; a < D; a++) to[k * D + a] = from[k * S + a] * by;
        });
    }

    R shortest() const { return R(ldexp(1, -p.steps)); }

    bool forward(i64 b, int threads) const {
        Fields field(2, points);
        if (!field.data) return false;
        enter(static_cast<const R*>(p.velocity) + b * D * points, field[0], shortest(), threads);
        for (int step = 0; step <= p.steps; step++) follow(field[step % 2], field[(step + 1) % 2], step > 0, threads);
        leave(field[(p.steps + 1) % 2], static_cast<R*>(p.displacement) + b * D * points, 1, threads);
        return true;
    }

    bool backward(i64 b, int threads) const {
        Fields field(p.steps + 1, points), grad(2, points);
        if (!field.data || !grad.data) return false;
        enter(static_cast<const R*>(p.velocity) + b * D * points, field[0], shortest(), threads);
        for (int step = 0; step < p.steps; step++) follow(field[step], field[step + 1], step > 0, threads);
        enter(static_cast<const R*>(p.gradient) + b * D * points, grad[0], 1, threads);
        int at = 0;
        for (int step = p.steps; step >= 0; step--, at = 1 - at)
            if (!pull(field[step], grad[at], grad[1 - at], step > 0, threads)) return false;
        leave(grad[at], static_cast<R*>(p.for_velocity) + b * D * points, shortest(), threads);
        return true;
    }

    // Where vectors lead, all of the way or, in the short step, half of it.
    void places(const R* from, bool whole, i64 first, int n, Places& c) const {
        c.n = n;
        const i64 line = first / p.size[0];
        const i64 start[3] = {first - line * p.size[0], line % p.size[1], line / p.size[1]};
        for (int a = 0; a < D; a++) {
            const R by = R(whole ? half[a] : half[a] / 2), most = R(p.size[a]);
            const int base = int(start[a]), along = a ? 0 : 1;
            int* __restrict i = c.i[a];
            R* __restrict t = c.t[a];
            const R* __restrict u = from + first * S + a;
#pragma omp simd
            for (int q = 0; q < n; q++) {
                R d = u[q * S] * by;
                d = d > -most ? d : -most;
                d = d < most ? d : most;
                split(d, base + along * q, i[q], t[q]);
            }
        }
    }

    // The points that are read, the border's for those beyond, and their weights.
    STN_SHARED void locate(bool whole, Places& c) const {
        alignas(64) R t[D][CHUNK + SLACK];
        const int n = c.n;
        int* __restrict point = c.point;
#pragma omp simd
        for (int q = 0; q < n; q++) point[q] = 0;
        for (int a = 0; a < D; a++) {
            const int last = int(p.size[a]) - 2, by = int(apart[a]), most = last > 0 ? last : 0;
            const R end = last < 0 ? R(0) : R(1), size = end * R(whole ? half[a] : half[a] / 2);
            const int* __restrict at = c.i[a];
            const R* __restrict share = c.t[a];
            R *__restrict slope = c.slope[a], *__restrict to = t[a];
#pragma omp simd
            for (int q = 0; q < n; q++) {
                const int i = at[q], low = i > 0 ? i : 0, there = low < most ? low : most;
                const R beyond = i > there ? end : R(0), within = end * share[q];
                point[q] += by * there;
                slope[q] = i == there ? size : R(0);
                to[q] = i == there ? within : beyond;
            }
        }
        R *__restrict w0 = c.weight[0], *__restrict w1 = c.weight[1], *__restrict w2 = c.weight[ROWS - 2], *__restrict w3 = c.weight[ROWS - 1];
        const R *__restrict x = t[0], *__restrict y = t[1], *__restrict z = t[D - 1];
        R* __restrict across = c.x;
#pragma omp simd
        for (int q = 0; q < n; q++) across[q] = x[q];
        if (D == 2)
#pragma omp simd
            for (int q = 0; q < n; q++) w0[q] = 1 - y[q], w1[q] = y[q];
        else
#pragma omp simd
            for (int q = 0; q < n; q++) {
                w0[q] = (1 - y[q]) * (1 - z[q]), w1[q] = y[q] * (1 - z[q]);
                w2[q] = (1 - y[q]) * z[q], w3[q] = y[q] * z[q];
            }
    }

    // From a position's first point to each of its rows.
    i64 row(int e) const { return ((e & 1 ? apart[1] : 0) + (e & 2 ? apart[2] : 0)) * S; }

    template <int... I>
    static STN_INLINE Pair halves(R low, R high, Order<I...>) { return Pair{(I < S ? low : high)...}; }
    template <int... I>
    static STN_INLINE Pair twice(Pair v, Order<I...>) { return STN_SHUFFLE(v, v, (I % S)...); }
    template <int... I>
    static STN_INLINE Pair fold(Pair v, Order<I...>) { return v + STN_SHUFFLE(v, v, (I ^ S)...); }
    static STN_INLINE Pair sides(R x) { return halves(1, 0, Both()) + x * halves(-1, 1, Both()); }  // 1 - x, x
    static STN_INLINE void put_point(R* to, Pair v) { memcpy(to, &v, S * sizeof(R)); }

    // What is read four rows later, of the rows that come last.
    STN_INLINE void ahead(const R* at) const { prefetch(at, (row(ROWS - 2) + 4 * row(1)) * i64(sizeof(R))); }

    // The field read where it leads, and added to it.
    void follow(const R* from, R* to, bool whole, int threads) const {
        const i64 rows[4] = {0, row(1), row(2), row(3)};
        on_lines(threads, [&](i64 line) {
            Places c;
            on_runs(line, [&](i64 first, int n) {
                places(from, whole, first, n, c);
                locate(whole, c);
                for (int q = 0; q < n; q++) {
                    const R* at = from + i64(c.point[q]) * S;
                    if (!(q & 3)) ahead(at);
                    Pair v = c.weight[0][q] * load<Pair>(at) + c.weight[1][q] * load<Pair>(at + rows[1]);
                    if constexpr (D > 2) v += c.weight[ROWS - 2][q] * load<Pair>(at + rows[2]) + c.weight[ROWS - 1][q] * load<Pair>(at + rows[3]);
                    v = fold(v * sides(c.x[q]), Both());
                    if (whole) v += load<Pair>(from + (first + q) * S);
                    put_point(to + (first + q) * S, v);
                }
            });
        });
    }

    // The way back: `grad` is the gradient of what `follow` made of `from`, `to` becomes that of `from`.
    bool pull(const R* from, const R* grad, R* to, bool whole, int threads) const {
        if (slabs == 1) {
            memset(to, 0, size_t(points) * S * sizeof(R));
            for (i64 line = 0; line < lines; line++) pull_line(from, grad, to, whole, line);
            return true;
        }
        // The slices that each slab adds to, and where its copy of them begins.
        const i64 slice = points / slices, in_slice = lines / slices;
        i64 low[8], high[8], begin[9] = {0};
        for_tasks(slabs, double(points) * 4, 65536, threads, [&](i64 slab) {
            const i64 first = slices * slab / slabs, end = slices * (slab + 1) / slabs;
            low[slab] = first, high[slab] = end;
            for (i64 k = first; k < end; k++) {
                R least = 0, most = 0;
                const R* __restrict u = from + k * slice * S + D - 1;
#pragma omp simd reduction(min : least) reduction(max : most)
                for (i64 q = 0; q < slice; q++) {
                    least = u[q * S] < least ? u[q * S] : least;
                    most = u[q * S] > most ? u[q * S] : most;
                }
                // `places` and this round in the same way, but for the floor.
                const double by = whole ? half[D - 1] : half[D - 1] / 2, size = double(slices);
                const double down = double(least) * by > -size ? double(least) * by : -size, up = double(most) * by < size ? double(most) * by : size;
                const i64 under = k + i64(floor(down)) - 1, above = k + i64(floor(up)) + 4;
                low[slab] = under < low[slab] ? under : low[slab];
                high[slab] = above > high[slab] ? above : high[slab];
            }
            low[slab] = low[slab] > 0 ? low[slab] : 0;
            high[slab] = high[slab] < slices ? high[slab] : slices;
        });
        for (i64 slab = 0; slab < slabs; slab++) begin[slab + 1] = begin[slab] + high[slab] - low[slab] + 1;  // a pair may reach past its row by a point of weight 0
        Fields copies(1, begin[slabs] * slice);
        if (!copies.data) return false;
        for_tasks(slabs, double(points) * 32, 65536, threads, [&](i64 slab) {
            R* mine = copies.data + begin[slab] * slice * S;
            memset(mine, 0, size_t((high[slab] - low[slab]) * slice) * S * sizeof(R));
            const i64 first = slices * slab / slabs, end = slices * (slab + 1) / slabs;
            for (i64 line = first * in_slice; line < end * in_slice; line++) pull_line(from, grad, mine - low[slab] * slice * S, whole, line);
        });
        for_tasks(slices, double(points) * 4, 65536, threads, [&](i64 k) {
            R* __restrict sum = to + k * slice * S;
            memset(sum, 0, size_t(slice) * S * sizeof(R));
            for (i64 slab = 0; slab < slabs; slab++) {
                if (k < low[slab] || k >= high[slab]) continue;
                const R* __restrict part = copies.data + (begin[slab] + k - low[slab]) * slice * S;
                for (i64 e = 0; e < slice * S; e++) sum[e] += part[e];
            }
        });
        return true;
    }

    void pull_line(const R* from, const R* grad, R* to, bool whole, i64 line) const {
        const i64 rows[4] = {0, row(1), row(2), row(3)};
        Places c;
        alignas(64) R slope[D][CHUNK + SLACK], other[D][CHUNK + SLACK];
        on_runs(line, [&](i64 first, int n) {
            const R* __restrict given = grad + first * S;
            places(from, whole, first, n, c);
            locate(whole, c);
            for (int apart = 0; apart < 8; apart++)  // neighbours add to the same points, and would wait for each other
                for (int q = apart; q < n; q += 8) {
                    R* at = to + i64(c.point[q]) * S;
                    if (apart % 4 == 0) ahead(at);
                    const Pair g = twice(load<Pair>(given + q * S), Both()) * sides(c.x[q]);
                    for (int e = 0; e < ROWS; e++) store(at + rows[e], load<Pair>(at + rows[e]) + c.weight[e][q] * g);
                }
            slopes(from, given, c, slope);
            if (cross(c)) {
                locate(whole, c);
                slopes(from, given, c, other);
                for (int a = 0; a < D; a++)
                    for (int q = 0; q < n; q++) slope[a][q] = R(0.5) * (slope[a][q] + other[a][q]);
            }
            R* __restrict own = to + first * S;
            for (int a = 0; a < D; a++)
                for (int q = 0; q < n; q++) own[q * S + a] += (whole ? given[q * S + a] : R(0)) + slope[a][q];
        });
    }

    // The gradients of the vectors that lead to the places.
    STN_SHARED void slopes(const R* from, const R* given, const Places& c, Row<R>* slope) const {
        const i64 rows[4] = {0, row(1), row(2), row(3)};
        alignas(64) R product[D][(CHUNK + 2) * S];
        const int n = c.n;
        for (int q = 0; q < n; q++) {
            const R* at = from + i64(c.point[q]) * S;
            if (!(q & 3)) ahead(at);
            const Pair g = twice(load<Pair>(given + q * S), Both()), across = g * sides(c.x[q]);
            const Pair a = load<Pair>(at), b = load<Pair>(at + rows[1]);
            Pair along, down;
            if constexpr (D == 2) {
                along = c.weight[0][q] * a + c.weight[1][q] * b;
                down = b - a;
            } else {
                const Pair e = load<Pair>(at + rows[2]), f = load<Pair>(at + rows[3]);
                const R back = c.weight[ROWS - 2][q] + c.weight[ROWS - 1][q], under = c.weight[1][q] + c.weight[ROWS - 1][q];
                along = (c.weight[0][q] * a + c.weight[1][q] * b) + (c.weight[ROWS - 2][q] * e + c.weight[ROWS - 1][q] * f);
                down = (1 - back) * (b - a) + back * (f - e);
                const Pair deep = (1 - under) * (e - a) + under * (f - b);
                put_point(product[D - 1] + q * S, fold(deep * across, Both()));
            }
            put_point(product[0] + q * S, fold(along * g * halves(-1, 1, Both()), Both()));
            put_point(product[1] + q * S, fold(down * across, Both()));
        }
        for (int a = 0; a < D; a++) {
            R* __restrict to = slope[a];
            const R *__restrict part = product[a], *__restrict by = c.slope[a];
#pragma omp simd
            for (int q = 0; q < n; q++) {
                R sum = part[q * S] + part[q * S + 1];
                if (D > 2) sum += part[q * S + (S - 2)];
                to[q] = sum * by[q];
            }
        }
    }

    // Moves what lies on a kink to its other side; whether anything does.
    bool cross(Places& c) const {
        const int n = c.n;
        bool any = false;
        for (int a = 0; a < D; a++) {
            const R low = kink_width<R>(p.size[a]), high = 1 - low;
            int* __restrict i = c.i[a];
            R* __restrict t = c.t[a];
            int found = 0;
#pragma omp simd reduction(| : found)
            for (int q = 0; q < n; q++) {
                const bool left = t[q] <= low, right = !left & (t[q] >= high);
                i[q] += int(right) - int(left);
                t[q] = left ? R(1) : right ? R(0) : t[q];
                found |= int(left | right);
            }
            any |= found != 0;
        }
        return any;
    }
};

}  // namespace
}  // namespace stn::STN_SET

namespace stn {

#define STN_JOIN(name, set) name##_##set
#define STN_NAME(name, set) STN_JOIN(name, set)

Status STN_NAME(follow, STN_SET)(const Flow& p) {
    if (p.type == F32) return p.ndim == 2 ? STN_SET::Squaring<float, 2>(p).run() : STN_SET::Squaring<float, 3>(p).run();
    return p.ndim == 2 ? STN_SET::Squaring<double, 2>(p).run() : STN_SET::Squaring<double, 3>(p).run();
}

}  // namespace stn
