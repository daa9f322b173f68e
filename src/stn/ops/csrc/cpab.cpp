// The flow of a velocity that is affine in each cell, in closed form, compiled once for each instruction set (STN_SET).
//
// NOTE [ How a path is followed ]
//
// A vector of points goes through the cells together. A point is its weights w in its cell's generators (tessellation.py), in
// which all cells look alike: the weights change by w' = M w, M of the cell, and the point leaves it where one of them passes
// zero. Its path is cut into pieces of at most 1 / |M|, in which w(t) = sum_k (t M)^k / k! w is summed up to rounding, so that
// no eigenvalues, and none of their special cases, are needed.
//
// A piece ends at the first zero of any weight. That is found from below: where a weight is f, its slope d, and its second
// derivative nowhere less than L, it cannot be zero before the first root of f + d u + L u^2 / 2. To go there and to ask again
// converges as Newton's method does, and never passes a zero, nor takes a later one. Weights may fall HALF a rounding error
// below zero before that counts, for a point that moves along a face must not be thrown between its sides.
//
// NOTE [ Gradients ]
//
// Neither the times nor the places of crossings matter to first order, for the velocity is the same on both sides. So the
// gradient g of a position goes back through a piece by exp(t A)^T, A the cell's matrix, and the velocities at the cell's
// vertices get the integral of g(s) w(s)^T over it, whose terms are s^j (t - s)^i: i! j! / (i + j + 1)! each. Pieces are
// recorded on the way out and walked back. Sums are added in the order of points within a block, then of blocks, which depend
// on the number of points alone: the same bits for any number of threads.
#include "cpab.h"

#include "simd.h"
#include "tasks.h"

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace stn::STN_SET {
namespace {

constexpr i64 BLOCK = 4096, MOST_BLOCKS = 64;
constexpr double SHARE = 32768;  // of the work, that a thread is worth
constexpr int MOST_PIECES = 2048;  // of a path, then its end is NaN
constexpr int MOST_STEPS = 24;     // towards a zero, then the piece ends before it

template <class R> struct Wide;
template <> struct Wide<float> {
    typedef vfloat V;
    typedef vint I;
    typedef int Int;
    static constexpr int TERMS = 9;
    static constexpr float SLACK = 2.5e-7f;
    static constexpr Int SIGN = Int(1u << 31);
};
template <> struct Wide<double> {
    typedef vdouble V;
    typedef i64 I __attribute__((vector_size(sizeof(vdouble))));
    typedef i64 Int;
    static constexpr int TERMS = 16;
    static constexpr double SLACK = 2e-15;
    static constexpr Int SIGN = Int(1ull << 63);
};

template <class I>
STN_INLINE bool any(I mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi64_mask(__m512i(mask), __m512i(mask)) != 0;
#elif defined(__AVX__)
    return !_mm256_testz_si256(__m256i(mask), __m256i(mask));
#else
    i64 words[sizeof(I) / 8], found = 0;
    memcpy(words, &mask, sizeof mask);
    for (i64 word : words) found |= word;
    return found;
#endif
}

// 1 / k, k (k - 1), and how large |t M| may be for the terms up to k to be enough: what follows is a rounding error of the
// way. (|t M|^(k + 1) / (k + 1)! <= error)
template <class R, int TERMS>
struct Series {
    R inverse[TERMS + 1], twice[TERMS + 1], reach[TERMS + 1];
    constexpr Series() : inverse(), twice(), reach() {
        double error = sizeof(R) == 4 ? 3e-8 : 1e-16;
        for (int k = 1; k <= TERMS; k++) {
            inverse[k] = R(1.0 / k), twice[k] = R(k * (k - 1));
            double low = 0, high = 1;
            for (int step = 0; step < 40; step++) {
                double middle = (low + high) / 2, size = 1;
                for (int e = 1; e <= k + 1; e++) size *= middle / e;
                (size <= error ? low : high) = middle;
            }
            reach[k] = R(low);
        }
    }
};

// i! j! / (i + j + 1)!
template <class R, int TERMS>
struct Betas {
    R of[TERMS + 1][TERMS + 1];
    constexpr Betas() : of() {
        for (int i = 0; i <= TERMS; i++) {
            double value = 1.0 / (i + 1);
            for (int j = 0; j <= TERMS; j++) {
                of[i][j] = R(value);
                value *= double(j + 1) / double(i + j + 2);
            }
        }
    }
};

template <class R, int D>
struct Flow {
    typedef typename Wide<R>::V V;
    typedef typename Wide<R>::I I;
    typedef typename Wide<R>::Int Int;
    static constexpr int W = sizeof(V) / sizeof(R), S = D + 1, TERMS = Wide<R>::TERMS;
    // A row of the table of an image's cells: M, its norm, A, then nothing.
    static constexpr int M = 0, NORM = S * S, A = NORM + 1, ROW = D == 2 ? 16 : 32;
    static constexpr Series<R, TERMS> SERIES{};
    static constexpr R FAR = R(1e30);

    struct State {
        V weight[S], left;
        I cell, lost;  // lost: the end is not a number
    };
    struct Piece {
        V weight[S], time;
        I cell;
        int terms;
    };

    const Paths& p;
    R* tables = nullptr;   // (B, cells, ROW)
    R* corners = nullptr;  // (cells, S, D): the generators of each cell

    explicit Flow(const Paths& paths) : p(paths) {}
    ~Flow() { free(tables), free(corners); }

    bool prepare() {
        tables = static_cast<R*>(malloc(size_t(p.batch * p.cells) * ROW * sizeof(R)));
        corners = static_cast<R*>(malloc(size_t(p.cells) * S * D * sizeof(R)));
        if (!tables || !corners) return false;
        for (i64 c = 0; c < p.cells; c++)
            for (int k = 0; k < S; k++)
                for (int a = 0; a < D; a++) corners[(c * S + k) * D + a] = R(p.generators[p.slots[c * S + k] * D + a]);
        for_tasks(p.batch, double(p.batch) * double(p.cells) * 100, SHARE, p.threads, [&](i64 b) {
            for (i64 c = 0; c < p.cells; c++) fill_row(p.velocities + b * p.vertices * D, c, tables + (b * p.cells + c) * ROW);
        });
        return true;
    }

    void fill_row(const double* velocities, i64 c, R* row) const {
        const double* to_weights = p.weights + c * S * S;
        double v[S][D] = {}, m[S][S], a[D][D] = {};
        for (int k = 0; k < S; k++)
            if (p.slots[c * S + k] < p.vertices)
                for (int e = 0; e < D; e++) v[k][e] = velocities[p.slots[c * S + k] * D + e];
        double norm = 0;
        for (int k = 0; k < S; k++) {
            double column = 0;
            for (int i = 0; i < S; i++) {
                m[i][k] = 0;
                for (int e = 0; e < D; e++) m[i][k] += to_weights[i * S + e] * v[k][e];
                column += fabs(m[i][k]);
                row[M + i * S + k] = R(m[i][k]);
            }
            if (!(column <= norm)) norm = column;
        }
        for (int k = 0; k < S; k++)
            for (int e = 0; e < D; e++)
                for (int f = 0; f < D; f++) a[e][f] += v[k][e] * to_weights[k * S + f];
        for (int e = 0; e < D; e++)
            for (int f = 0; f < D; f++) row[A + e * D + f] = R(a[e][f]);
        row[NORM] = norm <= 1e30 ? R(norm > 1e-30 ? norm : 1e-30) : R(NAN);  // NaN where there is no number to go by
        for (int e = A + D * D; e < ROW; e++) row[e] = 0;
    }

    i64 block() const {
        i64 share = (p.points + MOST_BLOCKS - 1) / MOST_BLOCKS;
        return share < BLOCK ? BLOCK : (share + W - 1) / W * W;
    }

    // COUNT numbers from the rows of the lanes' cells.
    template <int COUNT>
    static STN_INLINE void gather(const R* rows, int row, I cell, V* to) {
        alignas(64) Int ids[W];
        memcpy(ids, &cell, sizeof cell);
        for (int e = 0; e < COUNT; e++) to[e] = rows[ids[0] * row + e] - V{};
        for (int l = 1; l < W; l++) {
            if (ids[l] == ids[l - 1]) continue;
            I mine = cell == ids[l];
            for (int e = 0; e < COUNT; e++) to[e] = mine ? rows[ids[l] * row + e] - V{} : to[e];
        }
    }

    static STN_INLINE V root(V x) {
        alignas(64) R all[W];
        memcpy(all, &x, sizeof x);
        for (int l = 0; l < W; l++) all[l] = R(sizeof(R) == 4 ? sqrtf(float(all[l])) : sqrt(double(all[l])));
        memcpy(&x, all, sizeof x);
        return x;
    }
    static STN_INLINE V size_of(V x) { return V(I(x) & ~(Wide<R>::SIGN + I{})); }
    static STN_INLINE V least(V a, V b) { return a < b ? a : b; }

    // Positions from weights. Compiled once: a point that rests has to get the same bits twice.
    STN_SHARED void place(const State& s, V* at) const {
        V corner[S * D];
        gather<S * D>(corners, S * D, s.cell, corner);
        for (int a = 0; a < D; a++) {
            at[a] = V{};
            for (int k = 0; k < S; k++) at[a] += s.weight[k] * corner[k * D + a];
        }
    }

    // Where points of the frame lie; others come to its border.
    void locate(const V* point, State& s, I& box) const {
        V within[D];
        I odd[D];
        box = I{};
        for (int a = D - 1; a >= 0; a--) {
            V at = point[a] > R(-1) ? point[a] : R(-1) + V{};
            at = at < R(1) ? at : R(1) + V{};
            at = (at + R(1)) * (R(p.boxes[a]) / 2);
            I index = __builtin_convertvector(at, I);
            Int last = Int(p.boxes[a] - 1);
            index = index < last ? index : last + I{};
            box = box * Int(p.boxes[a]) + index;
            within[a] = at - __builtin_convertvector(index, V);
            odd[a] = -(index & 1);
        }
        V* w = s.weight;
        if constexpr (D == 2) {
            // Two of four corners about the centre: one on each diagonal.
            V x = within[0] - R(0.5), y = within[1] - R(0.5), sum = x + y, difference = x - y;
            I right = I(sum >= R(0)), up = I(difference >= R(0));
            V first = size_of(sum), second = size_of(difference);
            I swapped = odd[0] ^ odd[1];
            w[1] = swapped ? second : first;
            w[2] = swapped ? first : second;
            w[0] = R(1) - first - second;
            s.cell = box * 4 + (right ? (up ? 1 + I{} : 2 + I{}) : (up ? I{} : 3 + I{}));
        } else {
            // The middle tetrahedron, with at most one weight below zero: then the one behind that face.
            I mirrored = odd[0] ^ odd[1] ^ odd[2];
            V x = mirrored ? R(1) - within[0] : within[0], y = within[1], z = within[2];
            V m[4] = {R(1) - (x + y + z) / 2, (x + y - z) / 2, (x + z - y) / 2, (y + z - x) / 2};
            V below = V{};
            I part = I{};
            for (int k = 0; k < 4; k++) {
                below += m[k] < R(0) ? m[k] : V{};
                part = m[k] < R(0) ? 4 - k + I{} : part;
            }
            for (int k = 0; k < 4; k++) m[k] += below - (m[k] < R(0) ? 4 * m[k] : V{});
            for (int k = 0; k < 4; k++) w[k] = odd[1] ? m[k ^ 1] : m[k];
            for (int k = 0; k < 2; k++) {
                V low = w[k];
                w[k] = odd[2] ? w[k + 2] : low;
                w[k + 2] = odd[2] ? low : w[k + 2];
            }
            s.cell = box * 5 + part;
        }
    }

    // A point beyond the frame: its cell out of those that lie beyond its box.
    STN_SHARED void locate_outside(const R* point, i64 box, Int& cell, R* weight) const {
        double at[S];
        int side = 0;
        for (int a = D - 1; a >= 0; a--) {
            at[a] = double(point[a]);
            side = side * 3 + (at[a] < -1 ? 0 : at[a] > 1 ? 2 : 1);
            at[a] = at[a] > -FAR ? at[a] : -FAR;  // with weights that are numbers
            at[a] = at[a] < FAR ? at[a] : FAR;
        }
        at[D] = 1;
        int sides = D == 2 ? 9 : 27;
        double best = -2 * double(FAR);
        for (int n = 0; n < 2; n++) {
            int candidate = p.outside[(box * sides + side) * 2 + n];
            if (candidate < 0) continue;
            double w[S], worst = double(FAR);
            for (int k = 0; k < S; k++) {
                w[k] = 0;
                for (int e = 0; e < S; e++) w[k] += p.weights[(candidate * S + k) * S + e] * at[e];
                if (w[k] < worst) worst = w[k];
            }
            if (worst > best) {
                best = worst, cell = candidate;
                for (int k = 0; k < S; k++) weight[k] = R(w[k] > 0 ? w[k] : 0);
            }
        }
    }

    void begin(const V* point, i64 count, State& s) const {
        I box, outside = I{};
        locate(point, s, box);
        for (int a = 0; a < D; a++) outside |= I(size_of(point[a]) > R(1));
        s.lost = I{};
        for (int a = 0; a < D; a++) s.lost |= I(point[a] != point[a]);
        for (int l = 0; l < W; l++) s.left[l] = l < count && !s.lost[l];
        if (any(outside))
            for (int l = 0; l < W; l++) {
                if (!outside[l]) continue;
                R at[D], weight[S];
                Int cell = s.cell[l];
                for (int a = 0; a < D; a++) at[a] = point[a][l];
                for (int k = 0; k < S; k++) weight[k] = s.weight[k][l];
                locate_outside(at, box[l], cell, weight);
                s.cell[l] = cell;
                for (int k = 0; k < S; k++) s.weight[k][l] = weight[k];
            }
    }

    // The terms (t M)^k / k! w up to k = `terms`.
    static STN_INLINE void expand(const V* m, V time, const V* weight, int terms, V (*term)[S]) {
        V scaled[S * S];
        for (int e = 0; e < S * S; e++) scaled[e] = m[e] * time;
        for (int i = 0; i < S; i++) term[0][i] = weight[i];
        for (int k = 1; k <= terms; k++)
            for (int i = 0; i < S; i++) {
                V sum = scaled[i * S] * term[k - 1][0];
                for (int j = 1; j < S; j++) sum += scaled[i * S + j] * term[k - 1][j];
                term[k][i] = sum * SERIES.inverse[k];
            }
    }

    static STN_INLINE R largest(V x) {
        R most = x[0];
        for (int l = 1; l < W; l++) most = x[l] > most ? x[l] : most;
        return most;
    }

    // One piece of each path: to the first face, or as far as the terms reach.
    STN_INLINE void advance(const R* table, State& s, V& slack, Piece& piece) const {
        V row[NORM + 1], term[TERMS + 1][S], low[S];
        gather<NORM + 1>(table, ROW, s.cell, row);
        I unknown = ~I(row[NORM] > R(0)) & I(s.left > R(0));
        if (any(unknown)) {
            s.lost |= unknown;
            s.left = unknown ? V{} : s.left;
        }
        V time = least(s.left, SERIES.reach[TERMS] / row[NORM]);
        time = s.left > R(0) ? time : V{};
        R size = largest(time * row[NORM]);
        int terms = 3;
        while (terms < TERMS && size > SERIES.reach[terms]) terms++;
        expand(row, time, s.weight, terms, term);

        // Which faces may be reached, and by whom.
        I open = I{};
        bool in_reach[S];
        for (int i = 0; i < S; i++) {
            low[i] = 2 * term[2][i];
            for (int k = 3; k <= terms; k++) low[i] -= SERIES.twice[k] * size_of(term[k][i]);
            V lowest = term[0][i] + slack + (term[1][i] < R(0) ? term[1][i] : V{}) + R(0.5) * (low[i] < R(0) ? low[i] : V{});
            I mine = I(lowest <= R(0)) & I(time > R(0));
            in_reach[i] = any(mine);
            open |= mine;
        }
        V u = open ? V{} : R(1) + V{};
        I face = -1 + I{};
        for (int step = 0; any(open); step++) {
            V next = R(1) + V{};
            for (int i = 0; i < S; i++) {
                if (!in_reach[i]) continue;
                V f = term[0][i], d = term[1][i];
                if (step) {
                    f = term[terms][i], d = V{};
                    for (int k = terms - 1; k >= 0; k--) d = d * u + f, f = f * u + term[k][i];
                }
                I leaves = I(f <= R(-0.5) * slack) & I(d < R(0)) & open;
                face = leaves ? i + I{} : face;
                f += slack;
                f = f > R(0) ? f : V{};
                V inside = d * d - 2 * low[i] * f;
                V square = root(inside > R(0) ? inside : V{});
                I falls = I(d < R(0));
                V first = (falls ? 2 * f : d + square) / (falls ? square - d : -low[i]);
                I reached = falls ? I(inside >= R(0)) : I(low[i] < R(0));
                next = least(next, reached ? first : R(1) + V{});
            }
            open &= I(face < 0) & I(u < R(1));
            if (step == MOST_STEPS) break;
            u = open ? least(u + next, R(1) + V{}) : u;
        }
        for (int i = 0; i < S; i++) {
            V f = term[terms][i];
            for (int k = terms - 1; k >= 0; k--) f = f * u + term[k][i];
            s.weight[i] = f;
        }
        piece.time = u * time;
        piece.terms = terms;
        s.left -= piece.time;
        I crosses = I(face >= 0) & I(s.left > R(0));
        if (any(crosses)) {
            // Faces that are crossed without any way between them: a little further each time, so that it ends.
            slack = crosses && (piece.time <= R(1e-3) * time) ? slack * R(1.5) : Wide<R>::SLACK + V{};
            cross(s, face, crosses);
        }
    }

    STN_SHARED void cross(State& s, I face, I crosses) const {
        for (int l = 0; l < W; l++) {
            if (!crosses[l]) continue;
            i64 at = i64(s.cell[l]) * S + i64(face[l]);
            int beyond = p.beyond[at], order = p.order[at];
            if (beyond < 0) continue;
            R weight[S], sum = 0;
            for (int k = 0; k < S; k++) {
                weight[k] = k == face[l] ? R(0) : s.weight[k][l];
                if (p.slots[i64(s.cell[l]) * S + k] < p.vertices) sum += weight[k];
            }
            for (int k = 0; k < S; k++) {
                int from = order >> 2 * k & 3;
                s.weight[k][l] = p.slots[i64(beyond) * S + k] < p.vertices ? weight[from] / sum : weight[from];
            }
            s.cell[l] = Int(beyond);
        }
    }

    static constexpr bool IN_PAIRS = D == 2 && sizeof(R) == 4;

    void load_lanes(const R* from, i64 step, i64 axis, i64 count, V* to) const {
        if constexpr (IN_PAIRS)
            if (count == W && step == 2 && axis == 1) {
                V low = load<V>(from), high = load<V>(from + W);
                to[0] = evens(low, high), to[1] = odds(low, high);
                return;
            }
        for (int a = 0; a < D; a++)
            for (int l = 0; l < W; l++) to[a][l] = l < count ? from[l * step + a * axis] : R(0);
    }
    void store_lanes(R* to, i64 count, const V* from) const {
        if constexpr (IN_PAIRS)
            if (count == W) {
                I second = I{};
                for (int l = 1; l < W; l += 2) second[l] = -1;
                store(to, second ? twice_low(from[1]) : twice_low(from[0]));
                store(to + W, second ? twice_high(from[1]) : twice_high(from[0]));
                return;
            }
        for (int a = 0; a < D; a++)
            for (int l = 0; l < count; l++) to[l * D + a] = from[a][l];
    }

    // Follows the paths to their ends. `record(piece)` sees each piece.
    template <class F>
    STN_INLINE bool follow(const R* table, State& s, F record) const {
        V slack = Wide<R>::SLACK + V{};
        for (int n = 0; any(I(s.left > R(0))); n++) {
            if (n == MOST_PIECES) {
                s.lost |= I(s.left > R(0));
                break;
            }
            Piece piece;
            for (int k = 0; k < S; k++) piece.weight[k] = s.weight[k];
            piece.cell = s.cell;
            advance(table, s, slack, piece);
            if (!record(piece)) return false;
        }
        return true;
    }

    Status forward() const {
        const i64 span = block(), blocks = (p.points + span - 1) / span;
        for_tasks(p.batch * blocks, double(p.batch) * double(p.points) * 8, SHARE, p.threads, [&](i64 task) {
            const i64 b = task / blocks, from = task % blocks * span, until = from + span < p.points ? from + span : p.points;
            const R* table = tables + b * p.cells * ROW;
            for (i64 n = from; n < until; n += W) {
                i64 count = until - n < W ? until - n : W;
                V point[D], first[D], last[D];
                load_lanes(static_cast<const R*>(p.start) + b * p.start_batch + n * p.start_point, p.start_point, p.start_axis, count, point);
                State s;
                begin(point, count, s);
                place(s, first);
                follow(table, s, [](const Piece&) { return true; });
                place(s, last);
                for (int a = 0; a < D; a++) last[a] = s.lost ? R(NAN) + V{} : point[a] + (last[a] - first[a]);
                store_lanes(static_cast<R*>(p.end) + (b * p.points + n) * D, count, last);
            }
        });
        return DONE;
    }

    // The pieces of a vector of paths.
    struct Record {
        Piece* pieces = nullptr;
        i64 count = 0, room = 0;
        ~Record() { free(pieces); }
        bool add(const Piece& piece) {
            if (count == room) {
                room = room ? 2 * room : 32;
                void* larger = aligned_alloc(64, size_t(room) * sizeof(Piece));
                if (!larger) return false;
                if (count) memcpy(larger, pieces, size_t(count) * sizeof(Piece));
                free(pieces);
                pieces = static_cast<Piece*>(larger);
            }
            pieces[count++] = piece;
            return true;
        }
    };

    // Takes the gradient of a piece's end to its start; adds what its cell's vertices get to sums (cells, D, S).
    void pull(const R* table, const Piece& piece, V* grad, double* sums) const {
        static constexpr Betas<R, TERMS> BETA{};
        const int terms = piece.terms;
        V row[A + D * D], term[TERMS + 1][S], total[D][S], back[D], matrix[D * D];
        gather<A + D * D>(table, ROW, piece.cell, row);
        expand(row + M, piece.time, piece.weight, terms, term);
        for (int e = 0; e < D * D; e++) matrix[e] = row[A + e] * piece.time;
        for (int a = 0; a < D; a++) {
            back[a] = grad[a];
            for (int k = 0; k < S; k++) total[a][k] = V{};
        }
        for (int i = 0; i <= terms; i++) {
            V weighted[S];
            for (int k = 0; k < S; k++) {
                weighted[k] = V{};
                for (int j = 0; j <= terms - i; j++) weighted[k] += BETA.of[i][j] * term[j][k];
            }
            for (int a = 0; a < D; a++)
                for (int k = 0; k < S; k++) total[a][k] += back[a] * weighted[k];
            if (i == terms) break;
            V next[D];
            for (int a = 0; a < D; a++) {
                next[a] = matrix[a] * back[0];
                for (int e = 1; e < D; e++) next[a] += matrix[e * D + a] * back[e];
                next[a] *= SERIES.inverse[i + 1];
            }
            for (int a = 0; a < D; a++) back[a] = next[a], grad[a] += (piece.time > R(0)) ? next[a] : V{};
        }
        for (int a = 0; a < D; a++)
            for (int k = 0; k < S; k++) total[a][k] = piece.time > R(0) ? total[a][k] * piece.time : V{};
        alignas(64) Int ids[W];
        alignas(64) R lanes[D * S][W];
        memcpy(ids, &piece.cell, sizeof ids);
        for (int e = 0; e < D * S; e++) memcpy(lanes[e], &total[e / S][e % S], sizeof(V));
        for (int l = 0; l < W;) {
            int end = l + 1;
            while (end < W && ids[end] == ids[l]) end++;
            double* to = sums + i64(ids[l]) * D * S;
            for (int e = 0; e < D * S; e++) {
                double sum = 0;
                for (int m = l; m < end; m++) sum += double(lanes[e][m]);
                to[e] += sum;
            }
            l = end;
        }
    }

    Status backward() const {
        const i64 span = block(), blocks = (p.points + span - 1) / span, each = p.vertices * D;
        double* partial = static_cast<double*>(calloc(size_t(p.batch * blocks * each), sizeof(double)));
        if (!partial) return NO_MEMORY;
        int failed = 0;
        for_tasks(p.batch * blocks, double(p.batch) * double(p.points) * 24, SHARE, p.threads, [&](i64 task) {
            const i64 b = task / blocks, from = task % blocks * span, until = from + span < p.points ? from + span : p.points;
            const R* table = tables + b * p.cells * ROW;
            double* sums = static_cast<double*>(calloc(size_t(p.cells) * D * S, sizeof(double)));
            Record record;
            bool fine = sums;
            for (i64 n = from; fine && n < until; n += W) {
                i64 count = until - n < W ? until - n : W;
                V point[D], grad[D];
                load_lanes(static_cast<const R*>(p.start) + b * p.start_batch + n * p.start_point, p.start_point, p.start_axis, count, point);
                load_lanes(static_cast<const R*>(p.gradient) + (b * p.points + n) * D, D, 1, count, grad);
                State s;
                begin(point, count, s);
                record.count = 0;
                fine = follow(table, s, [&](const Piece& piece) { return record.add(piece); });
                if (!fine) break;
                if (any(s.lost))
                    for (int l = 0; l < count; l++)
                        for (int a = 0; s.lost[l] && a < D; a++) {
                            if (grad[a][l] == 0) continue;
                            grad[a][l] = R(NAN);
                            for (int k = 0; k < S; k++) sums[i64(s.cell[l]) * D * S + a * S + k] = NAN;
                        }
                for (i64 k = record.count - 1; k >= 0; k--) pull(table, record.pieces[k], grad, sums);
                if (p.for_start) store_lanes(static_cast<R*>(p.for_start) + (b * p.points + n) * D, count, grad);
            }
            for (i64 c = 0; fine && c < p.cells; c++)
                for (int k = 0; k < S; k++)
                    if (p.slots[c * S + k] < p.vertices)
                        for (int a = 0; a < D; a++) partial[task * each + p.slots[c * S + k] * D + a] += sums[(c * D + a) * S + k];
            free(sums);
            if (!fine) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        });
        for (i64 b = 0; b < p.batch; b++)
            for (i64 e = 0; e < each; e++) {
                double sum = 0;
                for (i64 k = 0; k < blocks; k++) sum += partial[(b * blocks + k) * each + e];
                p.for_velocities[b * each + e] = sum;
            }
        free(partial);
        return failed ? NO_MEMORY : DONE;
    }
};

template <class R, int D>
Status run_flow(const Paths& p) {
    Flow<R, D> flow(p);
    if (!flow.prepare()) return NO_MEMORY;
    return p.gradient ? flow.backward() : flow.forward();
}

template <class R>
Status run_flow(const Paths& p) { return p.ndim == 2 ? run_flow<R, 2>(p) : run_flow<R, 3>(p); }

}  // namespace
}  // namespace stn::STN_SET

namespace stn {

#define STN_JOIN_(a, b) a##b
#define STN_JOIN(a, b) STN_JOIN_(a, b)

Status STN_JOIN(follow_, STN_SET)(const Paths& p) { return p.type == F64 ? STN_SET::run_flow<double>(p) : STN_SET::run_flow<float>(p); }

}  // namespace stn
