#pragma once
// The op

template <class T, class R, int D, int MODE>
struct Op {
    static constexpr int N = Taps<R, D, MODE>::N;
    typedef R row[CHUNK + SLACK];

    const Problem& p;
    i64 pixels, chunks, blocks, span;
    bool rows_contiguous, channels_last, is_narrow;
    unsigned stir;
    Lattice<R> lattice;

    explicit Op(const Problem& problem) : p(problem) {
        pixels = p.out[0] * p.out[1] * p.out[2];
        chunks = (pixels + CHUNK - 1) / CHUNK;
        span = p.coords == BASIS ? BLOCK / 4 : BLOCK;  // a basis is read from the cache by one image after the other
        blocks = (chunks + span - 1) / span;
        stir = p.what == GRAD_IMAGE ? stirring() : 1;
        is_narrow = D == 2 && p.out[0] < Lattice<R>::WIDEST && (p.coords == AFFINE || p.coords == PROJECTIVE);
        if (is_narrow) lattice.fill(p.out[0]);
        rows_contiguous = p.image_stride[0] == 1;
        channels_last = !rows_contiguous && p.image_channel == 1 && p.channels > 1;
    }

    const Lattice<R>* narrow() const { return is_narrow ? &lattice : nullptr; }

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

    R fill(i64 channel) const { return p.fill ? static_cast<const R*>(p.fill)[channel] : 0; }

    // Runs f(task) for every task, on as many threads as pay.
    template <class F>
    void parallel(i64 tasks, F f) const {
        double work = double(p.batch) * double(p.channels) * double(pixels) * N + double(p.batch) * double(pixels) * 8;
        i64 worth = i64(work / 65536) + 1;
        int threads = int(worth < p.threads ? worth : p.threads);
        if (threads > tasks) threads = int(tasks);
#ifdef _OPENMP
        if (threads > 1) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
            for (i64 task = 0; task < tasks; task++) f(task);
            return;
        }
#endif
        for (i64 task = 0; task < tasks; task++) f(task);
    }

    void start(Chunk<R>& c, i64 chunk) const {
        c.first = chunk * CHUNK;
        i64 left = pixels - c.first;
        c.count = int(left < CHUNK ? left : CHUNK);
    }

    i64 last_axis() const { return p.in[D - 1]; }

    // Many channels next to each other in memory: vectors straight from the image.
    static constexpr bool DIRECT = D == 2 && MODE == LINEAR && Exactly<T, float>::yes;
    bool direct() const { return DIRECT && channels_last && p.out_channel == 1 && p.channels % LANES == 0; }

    // Any other number and type of channels next to each other: loops over them.
    static constexpr bool LOOPS = MODE != CUBIC;
    bool loops() const { return LOOPS && channels_last && p.out_channel == 1; }

    struct Near {
        i64 at[N];
        R w[N], slope[D][N];

        explicit Near(const Problem& p) {
            constexpr int K = Kernel<MODE>::K;
            for (int e = 0; e < N; e++) {
                at[e] = e % K * p.image_stride[0];
                if (D > 1) at[e] += e / K % K * p.image_stride[1];
                if (D > 2) at[e] += e / (K * K) * p.image_stride[2];
            }
        }

        inline void weigh(const Chunk<R>& c, int k) {
            constexpr int K = Kernel<MODE>::K;
            R one[3][K], by[3][K];
            for (int a = 0; a < D; a++) axis_weights<MODE>(c.t[a][k], one[a], by[a]);
            for (int e = 0; e < N; e++) {
                int q[3] = {e % K, e / K % K, e / (K * K)};
                w[e] = 1;
                for (int a = 0; a < D; a++) w[e] *= one[a][q[a]];
                for (int a = 0; a < D; a++) {
                    slope[a][e] = by[a][q[a]];
                    for (int o = 0; o < D; o++)
                        if (o != a) slope[a][e] *= one[o][q[o]];
                }
            }
        }

        // C channels, or as many as there are.
        template <int C>
        inline void blend(const T* __restrict from, i64 channels, T* __restrict to) const {
            for (i64 ch = 0; ch < (C ? C : channels); ch++) {
                R total = w[0] * get(from[ch]);
                for (int e = 1; e < N; e++) total += w[e] * get(from[at[e] + ch]);
                put(to[ch], total);
            }
        }

        template <int C>
        inline void dot(const T* __restrict from, i64 channels, const T* __restrict g, R* grad) const {
            R sum[N] = {};
            for (int e = 0; e < N; e++) {
                R one = 0;
#pragma omp simd reduction(+ : one)
                for (i64 ch = 0; ch < (C ? C : channels); ch++) one += get(g[ch]) * get(from[at[e] + ch]);
                sum[e] = one;
            }
            for (int a = 0; a < D; a++) {
                grad[a] = 0;
                for (int e = 0; e < N; e++) grad[a] += slope[a][e] * sum[e];
            }
        }

        template <int C>
        inline void spread(R* image, i64 channels, const T* g) const {
            for (int e = 0; e < N; e++) {
                R* __restrict to = image + at[e];
                const T* __restrict from = g;
                for (i64 ch = 0; ch < (C ? C : channels); ch++) to[ch] += w[e] * get(from[ch]);
            }
        }
    };

    // Pixels of the working type in whole vectors, next to each other, is read and written in its place, others by way of
    // a buffer, a row for each channel. Vector loops may pass the chunk's end in a buffer only.
    bool in_place(const Chunk<R>& c) const { return Exactly<T, R>::yes && p.out_pixel == 1 && c.count % LANES == 0; }

    struct Values {
        R* data;
        i64 apart;
    };

    Values values_of(const Chunk<R>& c, T* to, row* buffer) const {
        if constexpr (Exactly<T, R>::yes)
            if (in_place(c)) return {to + c.first, p.out_channel};
        return {buffer[0], CHUNK + SLACK};
    }

    void write(const Chunk<R>& c, T* to, int channels, const row* buffer) const {
        if (in_place(c)) return;
        for (int ch = 0; ch < channels; ch++) {
            T* at = to + ch * p.out_channel + c.first * p.out_pixel;
            if (p.out_pixel == 1)
                for (int k = 0; k < c.count; k++) put(at[k], buffer[ch][k]);
            else
                for (int k = 0; k < c.count; k++) put(at[k * p.out_pixel], buffer[ch][k]);
        }
    }

    struct Gradient {
        const R* data;
        i64 apart;
    };

    Gradient read_grad(const Chunk<R>& c, const T* from, int channels, row* buffer, bool vectors = true) const {
        if constexpr (Exactly<T, R>::yes)
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

    // Images that are worked on together.
    static constexpr int TEAM = 4;
    i64 teams() const { return p.coords == BASIS ? (p.batch + TEAM - 1) / TEAM : p.batch; }

    // Calls f(positions, c, b) for chunks from..to of a team's images. `total`: the sums of its first image, the others
    // `apart`.
    template <class F>
    void visit(i64 team, i64 from, i64 to, F f, double* total = nullptr, i64 apart = 0) const {
        Chunk<R> c;
        if (p.coords != BASIS) {
            Positions<R, D> positions(p, team, narrow());
            for (i64 chunk = from; chunk < to; chunk++) {
                start(c, chunk);
                f(positions, c, team);
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
                f(positions, c, b + g);
            }
            if (!total) continue;
            for (i64 g = 0; g < n;) {
                if (n == 4) Product::template sums<4>(p, c.first, c.count, at, total, apart), g = 4;
                else if (n - g >= 2) Product::template sums<2>(p, c.first, c.count, at + g, total + g * apart, apart), g += 2;
                else Product::template sums<1>(p, c.first, c.count, at + g, total + g * apart, apart), g++;
            }
        }
    }

    // Forward

    void forward() const {
        i64 all = teams();
        parallel(all * blocks, [&](i64 task) {
            i64 team = p.coords == BASIS ? task % all : task / blocks, block = p.coords == BASIS ? task / all : task % blocks;
            i64 end = (block + 1) * span < chunks ? (block + 1) * span : chunks;
            alignas(64) row buffer[GROUP];
            visit(team, block * span, end, [&](const Positions<R, D>& positions, Chunk<R>& c, i64 b) {
                const T* image = static_cast<const T*>(p.image) + b * p.image_batch;
                T* out = static_cast<T*>(p.output) + b * p.out_batch;
                positions.fill(c);
                classify<R, D, MODE>(p, c, rows_contiguous || loops(), 0, last_axis());
                if (channels_last && p.out_channel == 1) {
                    Near near(p);
                    for (int k = 0; k < c.count; k++) {
                        T* to = out + (c.first + k) * p.out_pixel;
                        if constexpr (DIRECT)
                            if (c.inside[k] && direct()) {
                                Corners corners(p.image_stride[0], p.image_stride[1]);
                                corners.weigh(c.t[0][k], c.t[1][k]);
                                corners.blend(image + c.offset[k], int(p.channels), to, c.ahead);
                                continue;
                            }
                        if (LOOPS && c.inside[k]) {
                            near.weigh(c, k);
                            const T* from = image + c.offset[k];
                            prefetch(from, c.ahead * i64(sizeof(T)));
                            if (p.channels == 3) near.template blend<3>(from, 3, to);
                            else near.template blend<0>(from, p.channels, to);
                        } else if (c.nothing_count && c.nothing[k]) {
                            for (i64 ch = 0; ch < p.channels; ch++) put(to[ch], fill(ch));
                        } else {
                            forward_channels(c, k, image, to);
                        }
                    }
                    return;
                }
                for (i64 ch = 0; ch < p.channels; ch += GROUP) {
                    int n = int(p.channels - ch < GROUP ? p.channels - ch : GROUP);
                    const T* planes = image + ch * p.image_channel;
                    Values to = values_of(c, out + ch * p.out_channel, buffer);
                    if (c.inside_count) Inside<T, R, D, MODE>::forward(p, c, planes, n, to.data, to.apart);
                    if (c.nothing_count)
                        for (int e = 0; e < n; e++) {
                            R* one = to.data + e * to.apart;
                            R background = fill(ch + e);
                            for (int k = 0; k < c.count; k++) one[k] = c.nothing[k] ? background : one[k];
                        }
                    for (int q = 0; q < c.rest; q++) {
                        int k = c.others[q];
                        Taps<R, D, MODE> taps(p, c, k, false, 0, last_axis());
                        for (int e = 0; e < n; e++) {
                            R total = p.fill || taps.fill_weight != taps.fill_weight ? taps.fill_weight * fill(ch + e) : 0;
                            for (int tap = 0; tap < taps.count; tap++) total += taps.weight[tap] * get(planes[e * p.image_channel + taps.offset[tap]]);
                            to.data[e * to.apart + k] = is_finite<R, D>(c, k) ? total : R(NAN);
                        }
                    }
                    write(c, out + ch * p.out_channel, n, buffer);
                }
            });
        });
    }

    void forward_channels(const Chunk<R>& c, int k, const T* image, T* out) const {
        Taps<R, D, MODE> taps(p, c, k, false, 0, last_axis());
        bool finite = is_finite<R, D>(c, k);
        i64 ch = 0;
        constexpr int V = 16;
        for (; ch + V <= p.channels; ch += V) {
            R total[V];
            for (int e = 0; e < V; e++) total[e] = p.fill ? taps.fill_weight * fill(ch + e) : 0;
            for (int tap = 0; tap < taps.count; tap++) {
                const T* from = image + taps.offset[tap] + ch;
                for (int e = 0; e < V; e++) total[e] += taps.weight[tap] * get(from[e]);
            }
            for (int e = 0; e < V; e++) put(out[ch + e], finite ? total[e] : R(NAN));
        }
        for (; ch < p.channels; ch++) {
            R total = p.fill ? taps.fill_weight * fill(ch) : 0;
            for (int tap = 0; tap < taps.count; tap++) total += taps.weight[tap] * get(image[taps.offset[tap] + ch]);
            put(out[ch], finite ? total : R(NAN));
        }
    }

    // The gradient of the coordinates

    int grad_coords() const {
        i64 sums = Positions<R, D>(p, 0).sums();
        double* partial = nullptr;
        if (sums) {
            partial = static_cast<double*>(calloc(size_t(p.batch * blocks * sums + 1), sizeof(double)));
            if (!partial) return 1;
        }
        i64 all = teams();
        parallel(all * blocks, [&](i64 task) {
            i64 team = p.coords == BASIS ? task % all : task / blocks, block = p.coords == BASIS ? task / all : task % blocks;
            i64 end = (block + 1) * span < chunks ? (block + 1) * span : chunks;
            alignas(64) row buffer[GROUP], grad[3];
            i64 first = p.coords == BASIS ? team * TEAM : team;
            double* total = partial + (first * blocks + block) * sums;
            visit(team, block * span, end, [&](const Positions<R, D>& positions, Chunk<R>& c, i64 b) {
                const T* image = static_cast<const T*>(p.image) + b * p.image_batch;
                const T* out = static_cast<const T*>(p.output) + b * p.out_batch;
                positions.fill(c);
                classify<R, D, MODE>(p, c, rows_contiguous || loops(), 0, last_axis());
                if (!p.channels)
                    for (int a = 0; a < D; a++)
                        for (int k = 0; k < c.count; k++) grad[a][k] = 0;
                if (channels_last && p.out_channel == 1) {
                    for (int k = 0; k < c.count; k += LANES) {
                        int some = c.count - k < LANES ? c.count - k : LANES;
                        if constexpr (DIRECT)
                            if (direct()) {
                                Corners corners(p.image_stride[0], p.image_stride[1]);
                                vfloat x[LANES] = {}, y[LANES] = {};
                                for (int q = k; q < k + some; q++)
                                    if (c.inside[q])
                                        corners.slopes(image + c.offset[q], out + (c.first + q) * p.out_pixel, int(p.channels), c.t[0][q], c.t[1][q], x[q - k], y[q - k], c.ahead);
                                store(grad[0] + k, sums_of(x));
                                store(grad[1] + k, sums_of(y));
                                for (int q = k; q < k + some; q++)
                                    if (!c.inside[q]) slopes_channels(c, q, image, out + (c.first + q) * p.out_pixel, grad);
                                continue;
                            }
                        Near near(p);
                        for (int q = k; q < k + some; q++) {
                            const T* one = out + (c.first + q) * p.out_pixel;
                            if (LOOPS && c.inside[q]) {
                                R slope[3];
                                near.weigh(c, q);
                                const T* from = image + c.offset[q];
                                prefetch(from, c.ahead * i64(sizeof(T)));
                                if (p.channels == 3) near.template dot<3>(from, 3, one, slope);
                                else near.template dot<0>(from, p.channels, one, slope);
                                for (int a = 0; a < D; a++) grad[a][q] = slope[a];
                            } else if (c.nothing_count && c.nothing[q]) {
                                for (int a = 0; a < D; a++) grad[a][q] = 0;
                            } else {
                                slopes_channels(c, q, image, one, grad);
                            }
                        }
                    }
                } else {
                    for (i64 ch = 0; ch < p.channels; ch += GROUP) {
                        int n = int(p.channels - ch < GROUP ? p.channels - ch : GROUP);
                        const T* planes = image + ch * p.image_channel;
                        Gradient g = read_grad(c, out + ch * p.out_channel, n, buffer);
                        // The loop for the pixels inside writes neighbours too.
                        R kept[3][CHUNK];
                        if (ch)
                            for (int q = 0; q < c.rest; q++)
                                for (int a = 0; a < D; a++) kept[a][q] = grad[a][c.others[q]];
                        if (c.inside_count) Inside<T, R, D, MODE>::slopes(p, c, planes, n, g.data, g.apart, grad, ch > 0);
                        for (int q = 0; q < c.rest; q++) {
                            int k = c.others[q];
                            R total[3] = {};
                            if (ch)
                                for (int a = 0; a < D; a++) total[a] = kept[a][q];
                            if (is_finite<R, D>(c, k)) {
                                Taps<R, D, MODE> taps(p, c, k, true, 0, last_axis());
                                for (int e = 0; e < n; e++) {
                                    R one = g.data[e * g.apart + k];
                                    if (p.fill)
                                        for (int a = 0; a < D; a++) total[a] += taps.fill_slope[a] * fill(ch + e) * one;
                                    for (int tap = 0; tap < taps.count; tap++) {
                                        R v = get(planes[e * p.image_channel + taps.offset[tap]]) * one;
                                        for (int a = 0; a < D; a++) total[a] += taps.slope[a][tap] * v;
                                    }
                                }
                            }
                            for (int a = 0; a < D; a++) grad[a][k] = total[a];
                        }
                    }
                    if (c.nothing_count)
                        for (int a = 0; a < D; a++)
                            for (int k = 0; k < c.count; k++) grad[a][k] = c.nothing[k] ? 0 : grad[a][k];
                }
                positions.reduce(c, grad, total);
            }, total, blocks * sums);
        });
        finish(partial, blocks, sums);
        return 0;
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

    void slopes_channels(const Chunk<R>& c, int k, const T* image, const T* out, row* grad) const {
        for (int a = 0; a < D; a++) grad[a][k] = 0;
        if (!is_finite<R, D>(c, k)) return;
        Taps<R, D, MODE> taps(p, c, k, true, 0, last_axis());
        if (p.fill) {
            R dot = 0;
            for (i64 ch = 0; ch < p.channels; ch++) dot += get(out[ch]) * fill(ch);
            for (int a = 0; a < D; a++) grad[a][k] = taps.fill_slope[a] * dot;
        }
        for (int tap = 0; tap < taps.count; tap++) {
            const T* from = image + taps.offset[tap];
            R dot = 0;
#pragma omp simd reduction(+ : dot)
            for (i64 ch = 0; ch < p.channels; ch++) dot += get(out[ch]) * get(from[ch]);
            for (int a = 0; a < D; a++) grad[a][k] += taps.slope[a][tap] * dot;
        }
    }

    // The gradient of the image: every part of it belongs to one task, which adds to each pixel in the output's order.

    void grad_image() const {
        i64 share = channels_last ? 64 : GROUP;
        i64 groups = (p.channels + share - 1) / share;
        // Parts enough for a few threads; not by their number, for the order of additions depends on the parts.
        i64 rows = last_axis(), parts = (8 + p.batch * groups - 1) / (p.batch * groups);
        parts = parts < rows / 8 ? parts : rows / 8;
        parts = parts > 1 && p.channels * pixels > 65536 ? parts : 1;
        parallel(teams() * groups * parts, [&](i64 task) {
            i64 part = task % parts, group = task / parts % groups, team = task / parts / groups;
            i64 from = rows * part / parts, to = rows * (part + 1) / parts;
            i64 ch = group * share;
            int n = int(p.channels - ch < share ? p.channels - ch : share);
            i64 first = p.coords == BASIS ? team * TEAM : team, last = p.coords == BASIS ? first + TEAM : first + 1;
            R* images = static_cast<R*>(p.grad_image) + ch * p.image_channel;
            for (i64 b = first; b < last && b < p.batch; b++) clear(images + b * p.image_batch, n, from, to);
            alignas(64) row buffer[GROUP];
            visit(team, 0, chunks, [&](const Positions<R, D>& positions, Chunk<R>& c, i64 b) {
                R* image = images + b * p.image_batch;
                const T* out = static_cast<const T*>(p.output) + b * p.out_batch + ch * p.out_channel;
                if (parts > 1 && !positions.touches(c, from, to)) return;
                positions.fill(c);
                classify<R, D, MODE>(p, c, rows_contiguous || loops(), from, to);
                if (channels_last) {
                    Near near(p);
                    for (int k = 0; k < c.count; k++) {
                        if (c.nothing_count && c.nothing[k]) continue;
                        const T* one = out + (c.first + k) * p.out_pixel;
                        if constexpr (DIRECT)
                            if (c.inside[k] && direct()) {
                                Corners corners(p.image_stride[0], p.image_stride[1]);
                                corners.weigh(c.t[0][k], c.t[1][k]);
                                corners.spread(image + c.offset[k], one, n, c.ahead);
                                continue;
                            }
                        if (LOOPS && c.inside[k]) {
                            near.weigh(c, k);
                            if (n == 3) near.template spread<3>(image + c.offset[k], 3, one);
                            else near.template spread<0>(image + c.offset[k], n, one);
                        } else {
                            spread_channels(c, k, n, image, one, from, to);
                        }
                    }
                    return;
                }
                if (!c.inside_count && !c.rest) return;
                Gradient g = read_grad(c, out, n, buffer);
                if (c.inside_count) spread_inside(c, n, image, g);
                for (int q = 0; q < c.rest; q++) {
                    int k = c.others[q];
                    if (!is_finite<R, D>(c, k)) continue;
                    Taps<R, D, MODE> taps(p, c, k, false, from, to);
                    for (int e = 0; e < n; e++)
                        for (int tap = 0; tap < taps.count; tap++) image[e * p.image_channel + taps.offset[tap]] += taps.weight[tap] * g.data[e * g.apart + k];
                }
            });
        });
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

    void spread_inside(const Chunk<R>& c, int channels, R* image, Gradient g) const {
        constexpr int K = Kernel<MODE>::K, NR = Rows<D, MODE>::N;
        Rows<D, MODE> rows(p);
        if constexpr (MODE == LINEAR && D > 1) {
            alignas(64) R weights[NR][2 * CHUNK];
            for (int r = 0; r < NR; r++)
                for (int k = 0; k < c.count; k++) {
                    R x = c.t[0][k], y = c.t[1][k], z = c.t[D - 1][k];
                    R w = (r % 2 ? y : 1 - y) * (D > 2 ? (r / 2 ? z : 1 - z) : 1);
                    weights[r][2 * k] = w * (1 - x), weights[r][2 * k + 1] = w * x;
                }
            for (int ch = 0; ch < channels; ch++) {
                R* plane = image + ch * p.image_channel;
                const R* from = g.data + ch * g.apart;
                for (int k = 0; k < c.count; k += 16) prefetch(from + k, CHUNK * i64(sizeof(R)));
                stirred(c.count, [&](size_t k) {
                    if (!c.inside[k]) return;
                    R* to = plane + c.offset[k];
                    prefetch(to, c.ahead * i64(sizeof(R)));
                    for (int r = 0; r < NR; r++) add_pair(to + rows.at[r], from[k], weights[r] + 2 * k);
                });
            }
            return;
        }
        for (int k = 0; k < c.count; k++) {
            if (!c.inside[k]) continue;
            R w[3][K], dw[3][K];
            for (int a = 0; a < D; a++) axis_weights<MODE>(c.t[a][k], w[a], dw[a]);
            for (int ch = 0; ch < channels; ch++) {
                R* to = image + ch * p.image_channel + c.offset[k];
                for (int r = 0; r < NR; r++) {
                    R one = g.data[ch * g.apart + k] * (D > 1 ? w[D > 1 ? 1 : 0][r % K] : 1) * (D > 2 ? w[D - 1][r / K] : 1);
                    for (int e = 0; e < K; e++) to[rows.at[r] + e] += one * w[0][e];
                }
            }
        }
    }

    void spread_channels(const Chunk<R>& c, int k, int channels, R* image, const T* out, i64 from, i64 to) const {
        if (!is_finite<R, D>(c, k)) return;
        Taps<R, D, MODE> taps(p, c, k, false, from, to);
        if (p.out_channel == 1) {
            for (int tap = 0; tap < taps.count; tap++) {
                R* __restrict at = image + taps.offset[tap];
                R w = taps.weight[tap];
                for (int ch = 0; ch < channels; ch++) at[ch] += w * get(out[ch]);
            }
            return;
        }
        for (int tap = 0; tap < taps.count; tap++) {
            R* at = image + taps.offset[tap];
            for (int ch = 0; ch < channels; ch++) at[ch] += taps.weight[tap] * get(out[ch * p.out_channel]);
        }
    }

    // Frames

    static constexpr bool FRAMES = D == 2 && MODE != NEAREST;
    static constexpr int FM = FRAMES ? MODE : LINEAR;
    typedef Frame<R, FM> TheFrame;

    // Never by the number of threads: the result is not to depend on it, not even in the last bit.
    bool framed() const {
        if (!FRAMES || (p.padding != ZEROS && p.padding != BORDER && p.padding != CONSTANT)) return false;
        if (channels_last && p.channels >= 16) return false;
        if (p.coords == BASIS && pixels > 4096) return false;  // positions cost more than bounds tests
        i64 bytes = TheFrame::bytes(p.in[0], p.in[1]);
        if (p.in[0] > 4096 || p.in[1] > 4096 || bytes > FRAME_BYTES / 2 || p.in[0] * p.in[1] > 8 * pixels) return false;
        i64 group = frame_group(bytes);
        i64 tasks = p.what == GRAD_COORDS ? p.batch : p.batch * ((p.channels + group - 1) / group);
        return tasks >= 8 || pixels * p.channels <= 16384;
    }

    i64 frame_group(i64 bytes) const {
        i64 group = FRAME_BYTES / bytes;
        return group < GROUP ? group : GROUP;
    }

    void forward_framed() const {
        i64 share = frame_group(TheFrame::bytes(p.in[0], p.in[1])), groups = (p.channels + share - 1) / share;
        parallel(p.batch * groups, [&](i64 task) {
            i64 b = task / groups, ch = task % groups * share;
            int n = int(p.channels - ch < share ? p.channels - ch : share);
            TheFrame frame(p, 0, p.in[1]);
            frame.copy(static_cast<const T*>(p.image) + b * p.image_batch + ch * p.image_channel, p, n, ch);
            Positions<R, D> positions(p, b, narrow());
            Chunk<R> c;
            alignas(64) row buffer[GROUP];
            T* out = static_cast<T*>(p.output) + b * p.out_batch + ch * p.out_channel;
            for (i64 chunk = 0; chunk < chunks; chunk++) {
                start(c, chunk);
                positions.fill(c);
                frame.place(c);
                Values to = values_of(c, out, buffer);
                Inside<R, R, D, FM>::forward(frame.p, c, frame.data, n, to.data, to.apart);
                write(c, out, n, buffer);
            }
        });
    }

    int grad_coords_framed() const {
        i64 sums = Positions<R, D>(p, 0).sums();
        i64 share = frame_group(TheFrame::bytes(p.in[0], p.in[1]));
        double* total = static_cast<double*>(calloc(size_t(p.batch * sums + 1), sizeof(double)));
        if (!total) return 1;
        parallel(p.batch, [&](i64 b) {
            TheFrame frame(p, 0, p.in[1]);
            Positions<R, D> positions(p, b, narrow());
            Chunk<R> c;
            alignas(64) row buffer[GROUP], grad[3];
            for (i64 ch = 0; ch < p.channels; ch += share) {
                int n = int(p.channels - ch < share ? p.channels - ch : share);
                frame.copy(static_cast<const T*>(p.image) + b * p.image_batch + ch * p.image_channel, p, n, ch);
                for (i64 chunk = 0; chunk < chunks; chunk++) {
                    start(c, chunk);
                    positions.fill(c);
                    bool fine = frame.place(c);
                    Gradient g = read_grad(c, static_cast<const T*>(p.output) + b * p.out_batch + ch * p.out_channel, n, buffer);
                    Inside<R, R, D, FM>::slopes(frame.p, c, frame.data, n, g.data, g.apart, grad, false);
                    if (!fine)
                        for (int k = 0; k < c.count; k++)
                            if (!is_finite<R, D>(c, k))
                                for (int a = 0; a < D; a++) grad[a][k] = 0;
                    positions.reduce(c, grad, total + b * sums, ch > 0);
                }
            }
        });
        finish(total, 1, sums);
        return 0;
    }

    // The image's gradient: a frame takes a whole image, or a tile of one, whose margin is thrown away or added to the
    // border. With three channels or more a pixel of the frame is a vector of four.

    bool grad_image_framed_pays(i64& columns, i64& rows) const {
        if (!FRAMES || channels_last || (p.padding != ZEROS && p.padding != BORDER && p.padding != CONSTANT)) return false;
        if (p.in[0] > (1 << 20) || p.in[1] > (1 << 20) || p.in[0] * p.in[1] > 16 * pixels) return false;
        int at_once = p.channels < 3 ? int(p.channels) : 4;
        columns = p.in[0], rows = p.in[1];
        if (TheFrame::bytes(columns, rows) * at_once <= FRAME_BYTES) return true;
        columns = even(p.in[0], 2 * TILE), rows = even(p.in[1], TILE);
        return p.coords == AFFINE;
    }

    static constexpr i64 TILE = sizeof(R) == 4 ? 128 : 88;
    static i64 even(i64 n, i64 most) {
        i64 parts = (n + most - 1) / most;
        return (n + parts - 1) / parts;
    }

    void grad_image_framed(i64 columns, i64 rows) const {
        i64 across = (p.in[0] + columns - 1) / columns, parts = across * ((p.in[1] + rows - 1) / rows);
        i64 share = FRAME_BYTES / TheFrame::bytes(columns, rows);
        share = share >= 8 ? 8 : share >= 4 ? 4 : share;
        i64 groups = (p.channels + share - 1) / share;
        parallel(p.batch * groups * parts, [&](i64 task) {
            i64 part = task % parts, ch = task / parts % groups * share, b = task / parts / groups;
            int n = int(p.channels - ch < share ? p.channels - ch : share);
            i64 left = part % across * columns, top = part / across * rows;
            i64 right = left + columns < p.in[0] ? left + columns : p.in[0], bottom = top + rows < p.in[1] ? top + rows : p.in[1];
            TheFrame frame(p, top, bottom, n < 3 ? 1 : 4, left, right - left);
            memset(frame.data, 0, size_t(frame.plane * (n < 3 ? n : (n + 3) / 4)) * sizeof(R));
            Positions<R, D> positions(p, b, narrow());
            Chunk<R> c;
            const T* out = static_cast<const T*>(p.output) + b * p.out_batch + ch * p.out_channel;
            if (parts == 1) {
                for (i64 chunk = 0; chunk < chunks; chunk++) {
                    start(c, chunk);
                    spread_chunk(positions, frame, c, n, out);
                }
            } else {
                bool border = p.padding == BORDER;
                double low[2] = {double(left - TheFrame::K / 2), double(top - TheFrame::K / 2)};
                double high[2] = {double(right + Kernel<FM>::before), double(bottom + Kernel<FM>::before)};
                if (border && !left) low[0] = -HUGE_VAL;
                if (border && !top) low[1] = -HUGE_VAL;
                if (border && right == p.in[0]) high[0] = HUGE_VAL;
                if (border && bottom == p.in[1]) high[1] = HUGE_VAL;
                for (i64 r = 0; r < p.out[1]; r++) {
                    i64 from, to;
                    positions.columns(r, low, high, from, to);
                    for (; from < to; from += c.count) {
                        c.first = r * p.out[0] + from;
                        c.count = int(to - from < CHUNK ? to - from : CHUNK);
                        spread_chunk(positions, frame, c, n, out);
                    }
                }
            }
            i64 at = b * p.image_batch + ch * p.image_channel;
            for (int e = 0; e < n; e += n < 3 ? 1 : 4) {
                if (p.grad_as_image) give_frame(frame, e, n, static_cast<T*>(p.grad_image) + at);
                else give_frame(frame, e, n, static_cast<R*>(p.grad_image) + at);
            }
        });
    }

    void spread_chunk(const Positions<R, D>& positions, const TheFrame& frame, Chunk<R>& c, int channels, const T* out) const {
        alignas(64) row buffer[GROUP];
        positions.fill(c);
        bool fine = frame.place(c);
        Gradient g = read_grad(c, out, channels, buffer, false);
        if (g.data != buffer[0])  // read out of order: the processor does not see the next row of the output coming
            for (int e = 0; e < channels; e++)
                for (int k = 0; k < c.count; k += 16) prefetch(g.data + e * g.apart + k, p.out[0] * i64(sizeof(R)));
        if (!fine) {  // positions that are not numbers give nothing
            if (g.data != buffer[0])
                for (int e = 0; e < channels; e++) memcpy(buffer[e], g.data + e * g.apart, size_t(c.count) * sizeof(R));
            g = {buffer[0], CHUNK + SLACK};
            for (int k = 0; k < c.count; k++)
                if (!is_finite<R, D>(c, k)) {
                    for (int a = 0; a < D; a++) c.t[a][k] = 0;
                    for (int e = 0; e < channels; e++) buffer[e][k] = 0;
                }
        }
        alignas(64) R corners[4 * (CHUNK + SLACK)];
        if (FM == LINEAR)
            for (int k = 0; k < c.count; k++) {
                R x = c.t[0][k], y = c.t[1][k], x_ = 1 - x, y_ = 1 - y;
                corners[4 * k] = x_ * y_, corners[4 * k + 1] = x * y_, corners[4 * k + 2] = x_ * y, corners[4 * k + 3] = x * y;
            }
        if (channels >= 3) {
            for (int e = 0; e < channels; e += 4) spread_four(frame, c, frame.data + e / 4 * frame.plane, channels - e, g.data + e * g.apart, g.apart, corners);
        } else {
            for (int e = 0; e < channels; e++) spread_one(frame, c, frame.data + e * frame.plane, g.data + e * g.apart, corners);
        }
    }

    // Neighbours add to the same pixels: not right after each other, or every load waits for the store before it.
    template <class F>
    void stirred(int count, F f) const {
        const unsigned by = stir, n = unsigned(count);
        unsigned most = 1;
        while (most < n) most *= 2;
        unsigned k = 0;
        for (unsigned i = 0; i < most; i++, k = (k + by) & (most - 1))
            if (k < n) f(size_t(k));
    }

    static inline void add_pair(R* to, R g, const R* w) {
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

    void spread_one(const TheFrame& frame, const Chunk<R>& c, R* data, const R* g, const R* corners) const {
        if constexpr (FM == LINEAR) {
            i64 line = frame.p.image_stride[1];
            stirred(c.count, [&](size_t k) {
                R *at = data + c.offset[k], *below = at + line;
                add_pair(at, g[k], corners + 4 * k);
                add_pair(below, g[k], corners + 4 * k + 2);
            });
        } else {
            for (int k = 0; k < c.count; k++) {
                R w[4], dw[4], v[4];
                axis_weights<CUBIC>(c.t[0][k], w, dw);
                axis_weights<CUBIC>(c.t[1][k], v, dw);
                R* at = data + c.offset[k];
                for (int r = 0; r < 4; r++)
                    for (int e = 0; e < 4; e++) at[r * frame.width + e] += g[k] * v[r] * w[e];
            }
        }
    }

    // Four channels, or three and one that nobody will read.
    void spread_four(const TheFrame& frame, const Chunk<R>& c, R* data, int channels, const R* g, i64 apart, const R* corners) const {
        typedef R vec __attribute__((vector_size(4 * sizeof(R))));
        const R *g1 = g + (channels > 1 ? 1 : 0) * apart, *g2 = g + (channels > 2 ? 2 : 0) * apart, *g3 = g + (channels > 3 ? 3 : 0) * apart;
        i64 line = frame.p.image_stride[1];
        stirred(c.count, [&](size_t k) {
            vec one = {g[k], g1[k], g2[k], g3[k]};
            R* at = data + c.offset[k];
            if constexpr (FM == LINEAR) {
                const R* w = corners + 4 * k;
                R* below = at + line;
                vec a = load<vec>(at) + w[0] * one, b = load<vec>(at + 4) + w[1] * one;
                vec d = load<vec>(below) + w[2] * one, e = load<vec>(below + 4) + w[3] * one;
                store(at, a), store(at + 4, b), store(below, d), store(below + 4, e);
            } else {
                vec w, v, slopes;
                InsideCubic<R, D>::weights(c.t[0][k], w, slopes);
                InsideCubic<R, D>::weights(c.t[1][k], v, slopes);
                for (int r = 0; r < 4; r++) {
                    vec weighted = v[r] * one;
                    for (int e = 0; e < 4; e++) store(at + r * line + 4 * e, load<vec>(at + r * line + 4 * e) + w[e] * weighted);
                }
            }
        });
    }

    // Adds margins to the border where the padding wants it, and copies channels e.. of the frame to the image.
    template <class G>
    void give_frame(const TheFrame& frame, int first, int channels, G* image) const {
        constexpr int M = TheFrame::MARGIN;
        i64 cell = frame.p.image_stride[0], line = frame.p.image_stride[1], rows = frame.to - frame.from;
        R* data = frame.data + first / cell * frame.plane;
        if (p.padding == BORDER) {
            auto add = [](R* to, const R* from, i64 count) {
                for (i64 e = 0; e < count; e++) to[e] += from[e];
            };
            for (int y = 0; y < M; y++) {
                if (frame.from == 0) add(data + M * line, data + y * line, line);
                if (frame.to == p.in[1]) add(data + (M + rows - 1) * line, data + (frame.height - 1 - y) * line, line);
            }
            for (i64 y = M; y < M + rows; y++)
                for (int x = 0; x < M; x++) {
                    R* at = data + y * line;
                    if (frame.left == 0) add(at + M * cell, at + x * cell, cell);
                    if (frame.left + frame.wide == p.in[0]) add(at + (M + frame.wide - 1) * cell, at + (frame.width - 1 - x) * cell, cell);
                }
        }
        int some = cell == 1 ? 1 : channels - first < 4 ? channels - first : 4;
        i64 by = p.image_stride[0];
        for (i64 y = 0; y < rows; y++) {
            const R* from = data + (y + M) * line + M * cell;
            G* to = image + first * p.image_channel + (frame.from + y) * p.image_stride[1] + frame.left * by;
            i64 x = 0;
            if (by == 1 && cell == 1)
                for (; x < frame.wide; x++) put(to[x], from[x]);
#if STN_SHUFFLES
            if constexpr (Exactly<R, float>::yes)
                for (; by == 1 && cell == 4 && x + LANES <= frame.wide; x += LANES) {
                    vfloat v[4], w[4];
                    for (int e = 0; e < 4; e++) v[e] = load<vfloat>(from + 4 * x + e * LANES);
                    for (int e = 0; e < 4; e += 2) w[e] = evens(v[e], v[e + 1]), w[e + 1] = odds(v[e], v[e + 1]);
                    v[0] = evens(w[0], w[2]), v[1] = evens(w[1], w[3]), v[2] = odds(w[0], w[2]), v[3] = odds(w[1], w[3]);
                    for (int e = 0; e < some; e++) write_lanes(to + x + e * p.image_channel, 1, LANES, v[e]);
                }
#endif
            for (; x < frame.wide; x++)
                for (int e = 0; e < some; e++) put(to[x * by + e * p.image_channel], from[x * cell + e]);
        }
    }

    // Many channels: frames whose pixels hold all channels of a share next to each other.

    static constexpr bool MANY = D == 2 && MODE == LINEAR && sizeof(R) == 4;

    // By shapes alone, as is the number of shares: sums over channels depend on it.
    bool many(i64& share) const {
        if (!MANY || p.channels < 16 || p.image_stride[0] != 1 || 4 * p.channels < 3 * full(p.channels)) return false;
        if (Exactly<T, bf16>::yes && p.what != GRAD_IMAGE) return false;  // its pairs are cheaper to read than to transpose
        if (p.padding != ZEROS && p.padding != BORDER && p.padding != CONSTANT) return false;
        if (p.in[0] > 4096 || p.in[1] > 4096 || p.in[0] * p.in[1] > 4 * pixels) return false;
        // Half of the scratch leaves room in the second cache for what is read and written meanwhile.
        i64 bytes = TheFrame::bytes(p.in[0], p.in[1]), fit = FRAME_BYTES / 2 / bytes;
        if (fit < 16) fit = FRAME_BYTES / bytes < 16 ? FRAME_BYTES / bytes : 16;
        fit = (fit < SHARE ? fit : SHARE) / LANES * LANES;
        if (!fit) return false;
        i64 groups = (p.channels + fit - 1) / fit, finest = p.channels / 16;
        if (p.batch * groups < 8) groups = (8 + p.batch - 1) / p.batch;
        groups = groups < finest || fit < 16 ? groups : finest;
        share = ((p.channels + groups - 1) / groups + LANES - 1) / LANES * LANES;
        share = share < fit ? share : fit;
        return true;
    }

    static i64 full(i64 channels) { return (channels + LANES - 1) / LANES * LANES; }

    void fill_many(const TheFrame& frame, const T* image, int channels, i64 first_channel) const {
        constexpr int M = TheFrame::MARGIN;
        i64 cell = frame.p.image_stride[0], line = frame.p.image_stride[1], wide = p.in[0];
        alignas(64) float background[SHARE] = {};
        if (p.fill)
            for (int ch = 0; ch < channels; ch++) background[ch] = float(fill(first_channel + ch));
        auto repeat = [&](float* to, const float* pixel, i64 count) {
            for (i64 x = 0; x < count; x++) memcpy(to + x * cell, pixel, size_t(cell) * sizeof(float));
        };
        bool border = p.padding == BORDER;
        for (i64 y = 0; y < p.in[1]; y++) {
            float* to = frame.data + (y + M) * line + M * cell;
            const T* from = image + y * p.image_stride[1];
            for (i64 x = 0; x < wide; x += LANES) {
                if (x + LANES > wide && wide > LANES) x = wide - LANES;
                gather_planes(from + x, p.image_channel, 1, int(wide - x < LANES ? wide - x : LANES), channels, to + x * cell, cell);
            }
            repeat(to - M * cell, border ? to : background, M);
            repeat(to + wide * cell, border ? to + (wide - 1) * cell : background, M);
        }
        for (int y = 0; y < 2 * M; y++) {
            i64 row = y < M ? y : frame.height - 1 - y + M, nearest = y < M ? M : frame.height - 1 - M;
            if (border) memcpy(frame.data + row * line, frame.data + nearest * line, size_t(line) * sizeof(float));
            else repeat(frame.data + row * line, background, frame.width);
        }
    }

    void forward_many(i64 share) const {
        i64 groups = (p.channels + share - 1) / share;
        parallel(p.batch * groups, [&](i64 task) {
            i64 b = task / groups, ch = task % groups * share;
            int n = int(p.channels - ch < share ? p.channels - ch : share), cell = int(full(n));
            TheFrame frame(p, 0, p.in[1], cell);
            fill_many(frame, static_cast<const T*>(p.image) + b * p.image_batch + ch * p.image_channel, n, ch);
            Positions<R, D> positions(p, b, narrow());
            Chunk<R> c;
            Corners corners(cell, frame.p.image_stride[1]);
            alignas(64) float values[LANES * SHARE];
            T* out = static_cast<T*>(p.output) + b * p.out_batch + ch * p.out_channel;
            for (i64 chunk = 0; chunk < chunks; chunk++) {
                start(c, chunk);
                positions.fill(c);
                frame.place(c);
                for (int k = 0; k < c.count; k += LANES) {
                    int some = c.count - k < LANES ? c.count - k : LANES;
                    for (int q = 0; q < some; q++) {
                        corners.weigh(c.t[0][k + q], c.t[1][k + q]);
                        corners.blend(frame.data + c.offset[k + q], cell, values + q * cell);
                    }
                    scatter_planes(values, cell, some, n, out + (c.first + k) * p.out_pixel, p.out_channel, p.out_pixel);
                }
            }
        });
    }

    int grad_coords_many(i64 share) const {
        i64 sums = Positions<R, D>(p, 0).sums(), groups = (p.channels + share - 1) / share;
        i64 parts = sums ? groups : 1;  // a grid's gradient takes one share after the other
        double* total = static_cast<double*>(calloc(size_t(p.batch * parts * sums + 1), sizeof(double)));
        if (!total) return 1;
        parallel(p.batch * parts, [&](i64 task) {
            i64 b = task / parts;
            Positions<R, D> positions(p, b, narrow());
            Chunk<R> c;
            alignas(64) float g[LANES * SHARE];
            alignas(64) row grad[3];
            for (i64 group = task % parts; group < groups; group += parts) {
                i64 ch = group * share;
                int n = int(p.channels - ch < share ? p.channels - ch : share), cell = int(full(n));
                TheFrame frame(p, 0, p.in[1], cell);
                fill_many(frame, static_cast<const T*>(p.image) + b * p.image_batch + ch * p.image_channel, n, ch);
                Corners corners(cell, frame.p.image_stride[1]);
                const T* out = static_cast<const T*>(p.output) + b * p.out_batch + ch * p.out_channel;
                for (i64 chunk = 0; chunk < chunks; chunk++) {
                    start(c, chunk);
                    positions.fill(c);
                    bool fine = frame.place(c);
                    for (int k = 0; k < c.count; k += LANES) {
                        int some = c.count - k < LANES ? c.count - k : LANES;
                        gather_planes(out + (c.first + k) * p.out_pixel, p.out_channel, p.out_pixel, some, n, g, cell);
                        vfloat x[LANES] = {}, y[LANES] = {};
                        for (int q = 0; q < some; q++)
                            corners.slopes(frame.data + c.offset[k + q], g + q * cell, cell, c.t[0][k + q], c.t[1][k + q], x[q], y[q]);
                        store(grad[0] + k, sums_of(x));
                        store(grad[1] + k, sums_of(y));
                    }
                    if (!fine)
                        for (int k = 0; k < c.count; k++)
                            if (!is_finite<R, D>(c, k)) grad[0][k] = grad[1][k] = 0;
                    positions.reduce(c, grad, total + task * sums, group > 0 && !sums);
                }
            }
        });
        finish(total, parts, sums);
        return 0;
    }

    void grad_image_many(i64 share) const {
        i64 groups = (p.channels + share - 1) / share;
        parallel(p.batch * groups, [&](i64 task) {
            i64 b = task / groups, ch = task % groups * share;
            int n = int(p.channels - ch < share ? p.channels - ch : share), cell = int(full(n));
            TheFrame frame(p, 0, p.in[1], cell);
            memset(frame.data, 0, size_t(frame.plane) * sizeof(R));
            Positions<R, D> positions(p, b, narrow());
            Chunk<R> c;
            Corners corners(cell, frame.p.image_stride[1]);
            alignas(64) float g[LANES * SHARE];
            const T* out = static_cast<const T*>(p.output) + b * p.out_batch + ch * p.out_channel;
            for (i64 chunk = 0; chunk < chunks; chunk++) {
                start(c, chunk);
                positions.fill(c);
                frame.place(c);
                for (int k = 0; k < c.count; k += LANES) {
                    int some = c.count - k < LANES ? c.count - k : LANES;
                    gather_planes(out + (c.first + k) * p.out_pixel, p.out_channel, p.out_pixel, some, n, g, cell);
                    for (int q = 0; q < some; q++) {
                        if (!is_finite<R, D>(c, k + q)) continue;
                        corners.weigh(c.t[0][k + q], c.t[1][k + q]);
                        corners.spread(frame.data + c.offset[k + q], g + q * cell, cell);
                    }
                }
            }
            i64 at = b * p.image_batch + ch * p.image_channel;
            if (p.grad_as_image) give_many(frame, n, static_cast<T*>(p.grad_image) + at);
            else give_many(frame, n, static_cast<R*>(p.grad_image) + at);
        });
    }

    template <class G>
    void give_many(const TheFrame& frame, int channels, G* image) const {
        constexpr int M = TheFrame::MARGIN;
        i64 cell = frame.p.image_stride[0], line = frame.p.image_stride[1], wide = p.in[0];
        auto add = [](float* to, const float* from, i64 count) {
            for (i64 e = 0; e < count; e++) to[e] += from[e];
        };
        if (p.padding == BORDER) {  // the margin shows border pixels
            for (int y = 0; y < M; y++) {
                add(frame.data + M * line, frame.data + y * line, line);
                add(frame.data + (frame.height - 1 - M) * line, frame.data + (frame.height - 1 - y) * line, line);
            }
            for (i64 y = M; y < frame.height - M; y++)
                for (int x = 0; x < M; x++) {
                    float* at = frame.data + y * line;
                    add(at + M * cell, at + x * cell, cell);
                    add(at + (frame.width - 1 - M) * cell, at + (frame.width - 1 - x) * cell, cell);
                }
        }
        for (i64 y = 0; y < p.in[1]; y++)
            for (i64 x = 0; x < wide; x += LANES) {
                if (x + LANES > wide && wide > LANES) x = wide - LANES;
                scatter_planes(frame.data + (y + M) * line + (x + M) * cell, cell, int(wide - x < LANES ? wide - x : LANES), channels,
                               image + y * p.image_stride[1] + x, p.image_channel, 1);
            }
    }

    int run() const {
        if constexpr (MANY) {
            i64 share = 0;
            if (scratch() && many(share)) {
                if (p.what == FORWARD) return forward_many(share), 0;
                if (p.what == GRAD_COORDS) return grad_coords_many(share);
                return grad_image_many(share), 0;
            }
        }
        if constexpr (FRAMES) {
            bool pays = scratch() && framed();
            i64 columns = 0, rows = 0;
            if (p.what == FORWARD && pays) return forward_framed(), 0;
            if (p.what == GRAD_COORDS && pays) return grad_coords_framed();
            if (p.what == GRAD_IMAGE && scratch() && grad_image_framed_pays(columns, rows)) return grad_image_framed(columns, rows), 0;
        }
        if (p.what == FORWARD) return forward(), 0;
        if (p.what == GRAD_COORDS) return grad_coords();
        if (p.grad_as_image && !Exactly<T, R>::yes) return 2;
        return grad_image(), 0;
    }
};
