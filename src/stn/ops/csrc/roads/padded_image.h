// Small images in two dimensions: each is copied with its padding around it, then no pixel needs a bounds test.
#pragma once
#include "../inside.h"
#include "../job.h"
#include "../padded.h"

namespace stn::STN_SET {
namespace {

template <class T, int D, int MODE>
struct PaddedImage {
    typedef Working<T> R;
    static constexpr bool BUILT = D == 2 && MODE != NEAREST;

    const Job<T, D, MODE>& job;
    const Problem& p = job.p;

    // Never by the number of threads: the result is not to depend on it, not even in the last bit.
    bool fits() const {
        if (!can_be_padded(p) || (job.channels_last && p.channels >= 16)) return false;
        if (p.kind == BASIS && job.pixels > 4096) return false;  // positions cost more than bounds tests
        i64 bytes = Padded<R, MODE>::bytes(p.in[0], p.in[1]);
        if (p.in[0] > 4096 || p.in[1] > 4096 || bytes > SCRATCH / 2 || p.in[0] * p.in[1] > 8 * job.pixels) return false;
        i64 tasks = p.what == GRAD_COORDINATES ? p.batch : p.batch * ((p.channels + share() - 1) / share());
        return tasks >= 8 || job.pixels * p.channels <= 16384;
    }

    Status forward() const {
        i64 share = this->share(), groups = (p.channels + share - 1) / share;
        job.parallel(p.batch * groups, [&](i64 task) {
            i64 b = task / groups, ch = task % groups * share;
            int n = int(p.channels - ch < share ? p.channels - ch : share);
            Padded<R, MODE> copy(p, 0, p.in[1]);
            copy.fill(static_cast<const T*>(p.image) + b * p.image_batch + ch * p.image_channel, p, n, ch);
            Positions<R, D> positions = job.positions(b);
            Chunk<R> c;
            alignas(64) Row<R> buffer[GROUP];
            T* out = static_cast<T*>(p.output) + b * p.out_batch + ch * p.out_channel;
            for (i64 chunk = 0; chunk < job.chunks; chunk++) {
                job.start(c, chunk);
                positions.fill(c);
                copy.locate(c);
                auto to = job.values_of(c, out, buffer);
                Inside<R, R, D, MODE>::forward(copy.p, c, copy.data, n, to.data, to.apart);
                job.write(c, out, n, buffer);
            }
        });
        return DONE;
    }

    Status grad_coordinates() const {
        i64 share = this->share(), sums = job.positions(0).sums();
        double* total = job.allocate_sums(sums);
        if (!total) return NO_MEMORY;
        job.parallel(p.batch, [&](i64 b) {
            Padded<R, MODE> copy(p, 0, p.in[1]);
            Positions<R, D> positions = job.positions(b);
            Chunk<R> c;
            alignas(64) Row<R> buffer[GROUP], grad[3];
            for (i64 ch = 0; ch < p.channels; ch += share) {
                int n = int(p.channels - ch < share ? p.channels - ch : share);
                copy.fill(static_cast<const T*>(p.image) + b * p.image_batch + ch * p.image_channel, p, n, ch);
                for (i64 chunk = 0; chunk < job.chunks; chunk++) {
                    job.start(c, chunk);
                    positions.fill(c);
                    auto g = job.read_grad(c, static_cast<const T*>(p.output) + b * p.out_batch + ch * p.out_channel, n, buffer);
                    job.slopes_at(c, grad, [&](Row<R>* to) {
                        bool fine = copy.locate(c);
                        Inside<R, R, D, MODE>::slopes(copy.p, c, copy.data, n, g.data, g.apart, to, false);
                        if (!fine)
                            for (int k = 0; k < c.count; k++)
                                if (!is_finite<R, D>(c, k))
                                    for (int a = 0; a < D; a++) to[a][k] = 0;
                    });
                    positions.reduce(c, grad, total + b * sums, ch > 0);
                }
            }
        });
        job.finish(total, 1, sums);
        return DONE;
    }

private:
    // Channels that are copied at the same time.
    i64 share() const {
        i64 some = SCRATCH / Padded<R, MODE>::bytes(p.in[0], p.in[1]);
        return some < GROUP ? some : GROUP;
    }
};

}  // namespace
}  // namespace stn::STN_SET
