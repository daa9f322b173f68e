// What every road needs of a warp: its sizes, its division into tasks, and how chunks are read and written.
#pragma once
#include "classes.h"
#include "kinks.h"
#include "pages.h"
#include "pixels.h"
#include "positions.h"
#include "taps.h"
#include "tasks.h"

namespace stn::STN_SET {
namespace {

constexpr int GROUP = 8;   // planes that are worked on together
constexpr int BLOCK = 32;  // chunks in a task; fixed, so that sums do not depend on the number of threads

template <class T, int D, int MODE>
struct Job {
    typedef Working<T> R;

    const Problem& p;
    i64 pixels, chunks;
    bool rows_contiguous, channels_last;

    explicit Job(const Problem& problem) : p(problem) {
        pixels = p.out[0] * p.out[1] * p.out[2];
        chunks = (pixels + CHUNK - 1) / CHUNK;
        span = p.kind == BASIS ? BLOCK / 4 : BLOCK;  // a basis is read from the cache by one image after the other
        if (p.kind == FIELD && p.what == GRAD_COORDINATES) {  // whose blocks have sums for as much of it as they touch
            i64 numbers = Positions<R, D>(p, 0).sums(), quarter = p.field[D - 1] / 4;
            i64 most = 65536 / numbers > quarter ? 65536 / numbers : quarter;
            i64 least = (chunks + most) / (most + 1);
            span = span > least ? span : least;
        }
        blocks = (chunks + span - 1) / span;
        stir = p.what == GRAD_IMAGE ? stirring() : 1;
        is_narrow = D == 2 && p.out[0] < Lattice<R>::WIDEST && (p.kind == AFFINE || p.kind == PROJECTIVE);
        if (is_narrow) lattice.fill(p.out[0]);
        rows_contiguous = p.image_stride[0] == 1;
        channels_last = !rows_contiguous && p.image_channel == 1 && p.channels > 1;
    }

    Positions<R, D> positions(i64 b) const { return {p, b, is_narrow ? &lattice : nullptr}; }

    void start(Chunk<R>& c, i64 chunk) const {
        c.first = chunk * CHUNK;
        i64 left = pixels - c.first;
        c.count = int(left < CHUNK ? left : CHUNK);
    }

    // Runs f(task) for every task, on as many threads as pay.
    template <class F>
    void parallel(i64 tasks, F f) const {
        constexpr int N = Taps<R, D, MODE>::N;
        double work = double(p.batch) * double(p.channels) * double(pixels) * N + double(p.batch) * double(pixels) * 8;
        for_tasks(tasks, work, 65536, p.threads, f);
    }

    // Calls f(positions, c, b) for every chunk, in tasks of one block of one team's images.
    template <class F>
    void for_chunks(F f) const {
        for_blocks([&](i64 team, i64, i64 from, i64 to) { visit(team, from, to, f); });
    }

    // The gradient of a chunk's positions, which slopes(grad) gives for one side of every kink: linear interpolation has one
    // at each pixel centre, and the side is a matter of rounding. There it is the mean of both sides; where the other one is
    // not finite, that of this side.
    template <class F>
    STN_INLINE void slopes_at(Chunk<R>& c, Row<R>* grad, F slopes) const {
        alignas(64) Row<R> other[3];
        for (bool crossed = false;; crossed = true) {  // one call in the code, for it is inlined
            slopes(crossed ? other : grad);
            if (crossed) return average<R, D>(c, grad, other);
            if (MODE != LINEAR || !meets_kinks<R, D>(p, c)) return;
            cross_kinks<R, D>(p, c);
        }
    }

    // The gradient of the coordinates: f(c, b, grad) gives that of the positions of a chunk on one side of every kink; its
    // sums are added up in the order of chunks within a block, then of blocks.
    template <class F>
    Status reduce_chunks(F f) const {
        i64 sums = p.kind == FIELD ? most_slices() * positions(0).field.slice() : positions(0).sums();
        double* partial = allocate_sums(blocks * sums);
        if (!partial) return NO_MEMORY;
        for_blocks([&](i64 team, i64 block, i64 from, i64 to) {
            alignas(64) Row<R> grad[3];
            double* total = partial + (first_of(team) * blocks + block) * sums;
            visit(team, from, to, [&](const Positions<R, D>& positions, Chunk<R>& c, i64 b) {
                positions.fill(c);
                slopes_at(c, grad, [&](Row<R>* to) { f(c, b, to); });
                positions.reduce(c, grad, total);
            }, total, blocks * sums);
        });
        return p.kind == FIELD ? finish_field(partial, sums) : (finish(partial, blocks, sums), DONE);
    }

    // `each` numbers for every image, 0.
    double* allocate_sums(i64 each) const {
        const size_t bytes = size_t(p.batch * each + 1) * sizeof(double);
        if (p.kind != FIELD) return static_cast<double*>(calloc(bytes, 1));
        void* memory = nullptr;
        if (posix_memalign(&memory, 64, bytes)) return nullptr;
        large_pages(memory, bytes);
        return static_cast<double*>(memset(memory, 0, bytes));
    }

    // Adds up the parts of each image's sums, in their order, writes the gradient and frees them; a grid's has none.
    void finish(double* partial, i64 parts, i64 sums) const {
        for (i64 b = 0; sums && b < p.batch; b++) {
            double* total = partial + b * parts * sums;
            for (i64 part = 1; part < parts; part++)
                for (i64 e = 0; e < sums; e++) total[e] += total[part * sums + e];
            Positions<R, D>(p, b).finish(total);
        }
        free(partial);
    }

    // The same where the blocks of a field have sums for some of its slices each.
    Status finish_field(double* partial, i64 sums) const {
        const i64 slice = positions(0).field.slice(), all = positions(0).field.numbers();
        double* total = static_cast<double*>(malloc(size_t(all) * sizeof(double)));
        for (i64 b = 0; total && b < p.batch; b++) {
            memset(total, 0, size_t(all) * sizeof(double));
            for (i64 block = 0; block < blocks; block++) {
                i64 from = first_slice(block * span) * slice, count = sums < all - from ? sums : all - from;
                const double* part = partial + (b * blocks + block) * sums;
                for (i64 e = 0; e < count; e++) total[from + e] += part[e];
            }
            Positions<R, D>(p, b).finish(total);
        }
        free(partial);
        free(total);
        return total ? DONE : NO_MEMORY;
    }

    // A part of the gradient of an image, which belongs to one task: `channels` planes from `channel` on, rows (or slices)
    // from..to. `out` is the gradient that came in, of the same channels.
    struct Part {
        R* image;
        const T* out;
        int channels;
        i64 from, to;
    };

    // Calls f(c, part) for the chunks that may add to a part, in the output's order, after clearing it.
    template <class F>
    void for_parts(i64 share, F f) const {
        i64 groups = (p.channels + share - 1) / share;
        // Parts enough for a few threads; not by their number, for the order of additions depends on the parts.
        i64 rows = p.in[D - 1], parts = (8 + p.batch * groups - 1) / (p.batch * groups);
        parts = parts < rows / 8 ? parts : rows / 8;
        parts = parts > 1 && p.channels * pixels > 65536 ? parts : 1;
        parallel(teams() * groups * parts, [&](i64 task) {
            i64 index = task % parts, team = task / parts / groups, channel = task / parts % groups * share;
            int channels = int(p.channels - channel < share ? p.channels - channel : share);
            i64 from = rows * index / parts, to = rows * (index + 1) / parts;
            i64 first = first_of(team), last = p.kind == BASIS ? first + TEAM : first + 1;
            R* images = static_cast<R*>(p.grad_image) + channel * p.image_channel;
            for (i64 b = first; b < last && b < p.batch; b++) clear(images + b * p.image_batch, channels, from, to);
            visit(team, 0, chunks, [&](const Positions<R, D>& positions, Chunk<R>& c, i64 b) {
                if (parts > 1 && !positions.touches(c, from, to)) return;
                positions.fill(c);
                const T* out = static_cast<const T*>(p.output) + b * p.out_batch + channel * p.out_channel;
                f(c, Part{images + b * p.image_batch, out, channels, from, to});
            });
        });
    }

    // Values of pixels and their gradients, a row for each channel, are written and read where they are if they are of the
    // working type and next to each other in whole vectors, else by way of a buffer: vector loops may pass the chunk's end
    // in a buffer only.
    struct Values {
        R* data;
        i64 apart;
    };
    struct Gradient {
        const R* data;
        i64 apart;
    };

    Values values_of(const Chunk<R>& c, T* to, Row<R>* buffer) const {
        if constexpr (std::is_same_v<T, R>)
            if (in_place(c)) return {to + c.first, p.out_channel};
        return {buffer[0], CHUNK + SLACK};
    }

    void write(const Chunk<R>& c, T* to, int channels, const Row<R>* buffer) const {
        if (in_place(c)) return;
        for (int ch = 0; ch < channels; ch++) {
            T* at = to + ch * p.out_channel + c.first * p.out_pixel;
            if (p.out_pixel == 1)
                for (int k = 0; k < c.count; k++) put(at[k], buffer[ch][k]);
            else
                for (int k = 0; k < c.count; k++) put(at[k * p.out_pixel], buffer[ch][k]);
        }
    }

    Gradient read_grad(const Chunk<R>& c, const T* from, int channels, Row<R>* buffer, bool vectors = true) const {
        if constexpr (std::is_same_v<T, R>)
            if (vectors ? in_place(c) : p.out_pixel == 1) return {from + c.first, p.out_channel};
        for (int ch = 0; ch < channels; ch++) {
            const T* at = from + ch * p.out_channel + c.first * p.out_pixel;
            R* __restrict to = buffer[ch];
            if (p.out_pixel == 1)
                for (int k = 0; k < c.count; k++) to[k] = get(at[k]);
            else
                for (int k = 0; k < c.count; k++) to[k] = get(at[k * p.out_pixel]);
        }
        return {buffer[0], CHUNK + SLACK};
    }

    // Calls f(k) for k < count in an order that keeps neighbours apart, which add to the same pixels: right after each
    // other every load would wait for the store before it.
    template <class F>
    void stirred(int count, F f) const {
        const unsigned by = stir, n = unsigned(count);
        unsigned most = 1;
        while (most < n) most *= 2;
        unsigned k = 0;
        for (unsigned i = 0; i < most; i++, k = (k + by) & (most - 1))
            if (k < n) f(size_t(k));
    }

private:
    static constexpr int TEAM = 4;  // images that share the reading of a basis

    i64 blocks, span;  // chunks are divided into blocks of `span`
    unsigned stir;
    bool is_narrow;
    Lattice<R> lattice;

    bool in_place(const Chunk<R>& c) const { return std::is_same_v<T, R> && p.out_pixel == 1 && c.count % LANES == 0; }

    i64 teams() const { return p.kind == BASIS ? (p.batch + TEAM - 1) / TEAM : p.batch; }
    i64 first_of(i64 team) const { return p.kind == BASIS ? team * TEAM : team; }

    template <class F>
    void for_blocks(F f) const {
        i64 all = teams();
        parallel(all * blocks, [&](i64 task) {
            i64 team = p.kind == BASIS ? task % all : task / blocks, block = p.kind == BASIS ? task / all : task % blocks;
            f(team, block, block * span, (block + 1) * span < chunks ? (block + 1) * span : chunks);
        });
    }

    // FIELD: the first slice that a chunk touches, and how many a block touches at most.
    i64 slowest(i64 pixel) const { return pixel / (pixels / p.out[D - 1]); }
    i64 first_slice(i64 chunk) const { return positions(0).field.first_slice(slowest(chunk * CHUNK)); }
    i64 most_slices() const {
        i64 most = 1;
        for (i64 block = 0; block < blocks; block++) {
            i64 end = (block + 1) * span * CHUNK < pixels ? (block + 1) * span * CHUNK : pixels;
            i64 count = positions(0).field.last_slice(slowest(end - 1)) + 1 - first_slice(block * span);
            most = most > count ? most : count;
        }
        return most;
    }

    // Calls f(positions, c, b) for chunks from..to of a team's images. `total`: the sums of its first image, the others
    // `apart`.
    template <class F>
    void visit(i64 team, i64 from, i64 to, F f, double* total = nullptr, i64 apart = 0) const {
        Chunk<R> c;
        auto call = [&](const Positions<R, D>& positions, i64 b) STN_SHARED { f(positions, c, b); };
        if (p.kind != BASIS) {
            Positions<R, D> positions = this->positions(team);
            if (p.kind == FIELD && total) positions.low = first_slice(from);
            for (i64 chunk = from; chunk < to; chunk++) {
                start(c, chunk);
                call(positions, team);
            }
            return;
        }
        typedef Products<D> Product;
        alignas(64) typename Product::Team at[TEAM];
        i64 b = team * TEAM, n = p.batch - b < TEAM ? p.batch - b : TEAM;
        for (i64 chunk = from; chunk < to; chunk++) {
            start(c, chunk);
            for (i64 g = 0; g < n;) {
                if (n == 4) Product::template positions<4>(p, b, c.first, c.count, at), g = 4;
                else if (n - g >= 2) Product::template positions<2>(p, b + g, c.first, c.count, at + g), g += 2;
                else Product::template positions<1>(p, b + g, c.first, c.count, at + g), g++;
            }
            for (i64 g = 0; g < n; g++) {
                Positions<R, D> positions(p, b + g);
                positions.team = at + g;
                call(positions, b + g);
            }
            if (!total) continue;
            for (i64 g = 0; g < n;) {
                if (n == 4) Product::template sums<4>(p, c.first, c.count, at, total, apart), g = 4;
                else if (n - g >= 2) Product::template sums<2>(p, c.first, c.count, at + g, total + g * apart, apart), g += 2;
                else Product::template sums<1>(p, c.first, c.count, at + g, total + g * apart, apart), g++;
            }
        }
    }

    // The step, modulo the chunk, of an order that keeps neighbours of both axes far from each other.
    unsigned stirring() const {
        int best = 1, most = 0;
        for (int back = 1; back < CHUNK; back += 2) {  // pixel k comes at time k * back
            int least = CHUNK;
            for (int e = 1; e < 9; e++) {
                i64 step = e < 4 ? e : p.out[0] + e - 6;
                if (step <= 0 || step >= CHUNK) continue;
                int time = int(step) * back % CHUNK;
                time = time < CHUNK - time ? time : CHUNK - time;
                least = least < time ? least : time;
            }
            if (least > most) most = least, best = back;
        }
        int step = 1;
        while (step * best % CHUNK != 1) step += 2;
        return unsigned(step);
    }

    void clear(R* image, int channels, i64 from, i64 to) const {
        i64 begin[3] = {0, 0, 0}, end[3] = {p.in[0], p.in[1], p.in[2]};
        begin[D - 1] = from, end[D - 1] = to;
        if (channels_last) {
            for (i64 z = begin[2]; z < end[2]; z++)
                for (i64 y = begin[1]; y < end[1]; y++)
                    for (i64 x = begin[0]; x < end[0]; x++) {
                        R* at = image + z * p.image_stride[2] + y * p.image_stride[1] + x * p.image_stride[0];
                        for (int ch = 0; ch < channels; ch++) at[ch] = 0;
                    }
            return;
        }
        for (int ch = 0; ch < channels; ch++)
            for (i64 z = begin[2]; z < end[2]; z++)
                for (i64 y = begin[1]; y < end[1]; y++) {
                    R* at = image + ch * p.image_channel + z * p.image_stride[2] + y * p.image_stride[1];
                    for (i64 x = begin[0]; x < end[0]; x++) at[x * p.image_stride[0]] = 0;
                }
    }
};

// Adds two numbers, next to each other in memory, times g.
template <class R>
inline void add_pair(R* to, R g, const R* w) {
    if constexpr (sizeof(R) == 4) {  // a vector of four, half empty: GCC takes vectors of two apart
        typedef float vec __attribute__((vector_size(16)));
        typedef double half __attribute__((vector_size(16)));
        vec sum = vec(half{load<double>(to), 0}) + (g - vec{}) * vec(half{load<double>(w), 0});
        store(to, half(sum)[0]);
    } else {
        typedef R vec __attribute__((vector_size(16)));
        store(to, load<vec>(to) + (g - vec{}) * load<vec>(w));
    }
}

}  // namespace
}  // namespace stn::STN_SET
