// Warps by kernels whose weights are polynomials (splines, Lanczos, Keys), on the CPU; compiled as warp.cpp is, for float32 and
// float64.
//
// NOTE [ How such a warp goes ]
//
// The kernel is data (`Polynomials` in api.h), so that one code serves all of them. Images are worked through in rounds, as many
// at a time as stay in the cache:
//   1. the image is copied with margins (widened.h), and on the way turned into coefficients by recursive filters along each
//      axis (lines.h), a vector of lines at a time;
//   2. positions come as in every warp (positions.h), and are moved into the copy, so that no pixel needs a bounds test;
//   3. every pixel's weights are evaluated once for all channels, and the taps of a row are one vector (separable.h).
// The gradient of the image takes them backwards: sums in the margins' copy, then the transposed filters. Lines do not depend on
// each other, and sums are divided as in every warp (job.h): the bits do not depend on the number of threads.
#include "separable.h"
#include "widened.h"

namespace stn {
namespace STN_SET {
namespace {

constexpr i64 ROUND = 768 << 10;  // bytes of copies that are worked on together

template <class R, int D, int AXES>
struct Separation {
    typedef Vector<R> V;
    typedef Job<R, D, CUBIC> Task;

    const Problem& p;
    Widened<R> widened{p};
    Powers<R> powers{*p.polynomials};
    i64 strip = widened.strip(), each = widened.plane * p.channels;  // numbers of an image's copy

    Status run() const {
        i64 most = ROUND / (each * i64(sizeof(R)));
        most = most < 1 ? 1 : most < p.batch ? most : p.batch;
        size_t bytes = size_t(most * each) * sizeof(R), strips = size_t(strip) * sizeof(V);
        void *copies = nullptr, *rows = nullptr;
        if (posix_memalign(&copies, 64, bytes) || posix_memalign(&rows, 64, strips * size_t(p.threads))) {
            free(copies);
            return NO_MEMORY;
        }
        Status status = DONE;
        for (i64 first = 0; first < p.batch && status == DONE; first += most)
            status = round(part(first, p.batch - first < most ? p.batch - first : most, static_cast<R*>(copies)), static_cast<R*>(copies), static_cast<V*>(rows));
        free(copies);
        free(rows);
        return status;
    }

private:
    // The problem of some of the images, which reads copies.
    struct Part {
        Problem p;
        const R* image;
        R* grad_image;
    };
    Part part(i64 first, i64 count, R* copies) const {
        Part part{p, nullptr, nullptr};
        Problem& q = part.p;
        if (p.image) part.image = static_cast<const R*>(p.image) + first * p.image_batch;
        if (p.grad_image) part.grad_image = static_cast<R*>(p.grad_image) + first * p.image_batch;
        q.batch = count;
        q.mode = CUBIC, q.padding = widened.clamped ? int(BORDER) : p.padding, q.fill = nullptr;
        q.shift = p.polynomials->taps & 1 ? 0.5 : 0;
        for (int a = 0; a < 3; a++) {
            q.in[a] = widened.axis[a].window();
            q.margin[a] = widened.axis[a].margin;
            q.image_stride[a] = widened.step[a];
        }
        q.image_channel = widened.plane, q.image_batch = each;
        q.image = q.grad_image = copies;
        i64 numbers = p.kind == AFFINE ? D * (D + 1) : p.kind == PROJECTIVE ? (D + 1) * (D + 1) : p.kind == BASIS ? p.basis_size * D : D * p.field[0] * p.field[1] * p.field[2];
        i64 size = p.kind == BASIS ? 8 : i64(sizeof(R)), pixels = p.out[0] * p.out[1] * p.out[2];
        q.coordinates = static_cast<const char*>(p.coordinates) + first * size * (p.kind == GRID ? p.grid_batch : numbers);
        q.grad_coordinates = static_cast<char*>(p.grad_coordinates) + (p.grad_coordinates ? first * size * (p.kind == GRID ? pixels * D : numbers) : 0);
        q.output = static_cast<R*>(p.output) + first * p.out_batch;
        return part;
    }

    Status round(const Part& part, R* copies, V* rows) const {
        const Problem& q = part.p;
        if (p.what == GRAD_IMAGE) {
            Task job(q);
            spread(job);
            bool fine = on_strips(q, rows, true, [&](int a, i64 index, i64 b, i64 ch, V* mine) {
                return widened.narrow(a, index, copies + b * each + ch * widened.plane, part.grad_image + b * p.image_batch + ch * p.image_channel, mine);
            });
            return fine ? DONE : NOT_FINITE;
        }
        bool fine = on_strips(q, rows, false, [&](int a, i64 index, i64 b, i64 ch, V* mine) {
            return widened.widen(a, index, part.image + b * p.image_batch + ch * p.image_channel, background<R>(p, ch), copies + b * each + ch * widened.plane, mine);
        });
        if (!fine) return NOT_FINITE;
        Task job(q);
        if (p.what == GRAD_COORDINATES) return slopes(job);
        forward(job);
        return DONE;
    }

    // f(axis, strip, image, channel, rows) for all strips, one axis after the other, `back` from the last one on; true if all
    // were. Planes are what threads share, or the strips of a few of them.
    template <class F>
    bool on_strips(const Problem& q, V* rows, bool back, F f) const {
        i64 planes = q.batch * q.channels, worth = planes * widened.plane / 16384 + 1;
        int threads = int(worth < q.threads ? worth : q.threads);
        bool fine = true;
        auto axis = [&](int e) { return back ? AXES - 1 - e : e; };
        auto mine = [&]() {
#ifdef _OPENMP
            return rows + omp_get_thread_num() * strip;
#else
            return rows;
#endif
        };
        if (threads == 1 || planes >= 2 * threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(&& : fine) if (threads > 1)
            for (i64 plane = 0; plane < planes; plane++)
                for (int e = 0; e < AXES; e++)
                    for (i64 index = 0, n = widened.strips(axis(e)); index < n; index++)
                        fine = f(axis(e), index, plane / q.channels, plane % q.channels, threads > 1 ? mine() : rows) && fine;
            return fine;
        }
        for (int e = 0; e < AXES; e++) {
            const i64 n = widened.strips(axis(e));
#pragma omp parallel for num_threads(threads) schedule(static) reduction(&& : fine)
            for (i64 task = 0; task < planes * n; task++)
                fine = f(axis(e), task % n, task / n / q.channels, task / n % q.channels, mine()) && fine;
        }
        return fine;
    }

    // Calls f(loops) with the loops for the kernel's number of taps.
    template <class F>
    void with_taps(const Chunk<R>& c, bool slopes, F f) const {
        switch (p.polynomials->taps) {
            case 3: return f(Separable<R, AXES, 3>(powers, c, widened.step, slopes));
            case 4: return f(Separable<R, AXES, 4>(powers, c, widened.step, slopes));
            case 5: return f(Separable<R, AXES, 5>(powers, c, widened.step, slopes));
            default: return f(Separable<R, AXES, 6>(powers, c, widened.step, slopes));
        }
    }

    void forward(const Task& job) const {
        const Problem& q = job.p;
        job.for_chunks([&](const Positions<R, D>& positions, Chunk<R>& c, i64 b) {
            const R* image = static_cast<const R*>(q.image) + b * q.image_batch;
            R* out = static_cast<R*>(q.output) + b * q.out_batch;
            alignas(64) Row<R> buffer[GROUP], sign[3];
            positions.fill(c);
            widened.template locate<D>(c, sign);
            with_taps(c, false, [&](const auto& loops) {
                for (i64 ch = 0; ch < q.channels; ch += GROUP) {
                    int n = int(q.channels - ch < GROUP ? q.channels - ch : GROUP);
                    auto to = job.values_of(c, out + ch * q.out_channel, buffer);
                    loops.forward(image + ch * q.image_channel, q.image_channel, n, to.data, to.apart);
                    job.write(c, out + ch * q.out_channel, n, buffer);
                }
            });
        });
    }

    Status slopes(const Task& job) const {
        const Problem& q = job.p;
        return job.reduce_chunks([&](Chunk<R>& c, i64 b, Row<R>* grad) {
            const R* image = static_cast<const R*>(q.image) + b * q.image_batch;
            const R* out = static_cast<const R*>(q.output) + b * q.out_batch;
            alignas(64) Row<R> buffer[GROUP], sign[3];
            bool mirrored = widened.template locate<D>(c, sign);
            with_taps(c, true, [&](const auto& loops) {
                for (i64 ch = 0; ch < q.channels; ch += GROUP) {
                    int n = int(q.channels - ch < GROUP ? q.channels - ch : GROUP);
                    auto g = job.read_grad(c, out + ch * q.out_channel, n, buffer);
                    loops.slopes(image + ch * q.image_channel, q.image_channel, n, g.data, g.apart, grad, ch > 0);
                }
            });
            for (int a = 0; a < D; a++)
                for (int k = 0; k < c.count; k++) {
                    R one = a < AXES ? grad[a][k] : 0;
                    if (mirrored) one *= sign[a][k];
                    grad[a][k] = is_finite<R, D>(c, k) ? one : 0;
                }
        });
    }

    void spread(const Task& job) const {
        const Problem& q = job.p;
        job.for_parts(GROUP, [&](Chunk<R>& c, const auto& part) {
            alignas(64) Row<R> buffer[GROUP], sign[3];
            uint8_t order[CHUNK];
            int at = 0;
            job.stirred(c.count, [&](size_t k) { order[at++] = uint8_t(k); });
            widened.template locate<D>(c, sign);
            auto g = job.read_grad(c, part.out, part.channels, buffer, false);
            with_taps(c, false, [&](const auto& loops) { loops.spread(part.image, q.image_channel, part.channels, g.data, g.apart, order, part.from, part.to); });
        });
    }
};

template <class R>
Status run_separation(const Problem& p) {
    if (p.ndim == 3) return Separation<R, 3, 3>{p}.run();
    if (p.is_signal) return Separation<R, 2, 1>{p}.run();
    return Separation<R, 2, 2>{p}.run();
}

}  // namespace
}  // namespace STN_SET

#define STN_JOIN_(a, b, c, d) a##b##c##d
#define STN_JOIN(a, b, c, d) STN_JOIN_(a, b, c, d)

Status STN_JOIN(polynomials_, STN_SET, _, STN_TYPE)(const Problem& p) {
    return STN_SET::run_separation<STN_SET::STN_TYPE>(p);
}

}  // namespace stn
