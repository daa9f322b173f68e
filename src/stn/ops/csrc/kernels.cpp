// The kernels, compiled once for each instruction set (STN_SET) and pixel type (STN_TYPE). Everything lives in a namespace of its own and
// nothing of the C++ library is used: an inline function compiled for a newer processor must not end up in older code.
//
// An output image is a sequence of pixels, worked through in chunks. For a chunk, in this order:
//   1. positions: for each pixel and axis the integer part `i` and the fraction `t` of the position (`Positions`);
//   2. classes: whether all taps of a pixel lie inside the image (`classify`);
//   3. values: pixels inside go through a loop without a single bounds test, the others tap by tap (`Taps`).
// Kinds of coordinates only know 1, kernels and paddings only 2 and 3. Gradients take the same three steps; that of the
// coordinates then reduces the gradient of each position in a fixed order (`Positions::reduce`).
#include "api.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#define STN_CAT_(a, b) a##b
#define STN_CAT(a, b) STN_CAT_(a, b)

namespace stn {
namespace STN_SET {
namespace {

constexpr int CHUNK = 128;      // pixels; scratch for a chunk stays in the first cache
constexpr int SLACK = 64;       // vector loops may write this far past the end of a chunk
constexpr int SEGMENT = 64;     // pixels between two float64 positions
constexpr int GROUP = 8;        // channels that share the taps of a pixel at the border
constexpr int BLOCK = 32;       // chunks in a task; fixed, so that sums do not depend on the number of threads
constexpr double FAR = 1 << 30; // positions beyond are all the same far outside

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float vfloat __attribute__((vector_size(4 * LANES)));
typedef int vint __attribute__((vector_size(4 * LANES)));
typedef double vdouble __attribute__((vector_size(4 * LANES)));

template <class V, class T>
inline V load(const T* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}
template <class V, class T>
inline void store(T* p, V v) {
    memcpy(p, &v, sizeof v);
}

// Pixel types

typedef float f32;
typedef double f64;
struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };
typedef uint8_t u8;

inline float as_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
inline uint32_t as_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }

inline float get(float v) { return v; }
inline double get(double v) { return v; }
inline float get(uint8_t v) { return float(v); }
inline float get(bf16 v) { return as_float(uint32_t(v.bits) << 16); }
inline float get(f16 v) {
    uint32_t sign = uint32_t(v.bits & 0x8000) << 16, rest = uint32_t(v.bits & 0x7fff) << 13;
    float f = as_float(rest) * 0x1p112f;  // the exponent's bias; right for subnormals too
    uint32_t bits = as_bits(f);
    bits |= rest >= (0x7c00u << 13) ? 0x7f800000u : 0;
    return as_float(bits | sign);
}

inline void put(float& to, float v) { to = v; }
inline void put(double& to, double v) { to = v; }
inline void put(uint8_t& to, float v) {
    float r = v > 0 ? v : 0;  // NaN becomes 0
    r = r < 255 ? r : 255;
    int q = int(r);
    float rest = r - float(q);
    to = uint8_t(q + (rest > 0.5f || (rest == 0.5f && (q & 1))));
}
inline void put(bf16& to, float v) {
    uint32_t bits = as_bits(v);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to.bits = uint16_t(v == v ? rounded : 0x7fc0);
}
inline void put(f16& to, float v) {
    uint32_t bits = as_bits(v), sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
    // Below the smallest normal number the addition of 0.5 rounds to multiples of 2^-24 in the last bits.
    uint32_t small = as_bits(as_float(rest) + 0.5f) - as_bits(0.5f);
    uint32_t normal = (rest - (112u << 23) + 0xfff + ((rest >> 13) & 1)) >> 13;
    uint32_t half = rest < (113u << 23) ? small : normal;
    half = rest >= 0x47800000u ? (rest > 0x7f800000u ? 0x7e00 : 0x7c00) : half;
    to.bits = uint16_t(half | sign);
}

template <class T> struct Working { typedef float type; };
template <> struct Working<double> { typedef double type; };

// Kernels: the K taps of an axis begin `before` pixels to the left of the integer part.

template <int MODE> struct Kernel;
template <> struct Kernel<NEAREST> { static constexpr int K = 1, before = 0; };
template <> struct Kernel<LINEAR> { static constexpr int K = 2, before = 0; };
template <> struct Kernel<CUBIC> { static constexpr int K = 4, before = 1; };

// Keys' kernel with A = -0.75 as one cubic polynomial for each tap: constant, linear, square, cube.
constexpr double A = -0.75;
constexpr double CUBIC_POLYNOMIAL[4][4] = {{0, A, -2 * A, A}, {1, 0, -(A + 3), A + 2}, {0, -A, 2 * A + 3, -(A + 2)}, {0, 0, A, -A}};

template <int MODE, class R>
inline void axis_weights(R t, R* w, R* dw) {
    if (MODE == NEAREST) {
        w[0] = t == t ? R(1) : t;
        dw[0] = 0;
    } else if (MODE == LINEAR) {
        w[0] = 1 - t, w[1] = t;
        dw[0] = -1, dw[1] = 1;
    } else {
        for (int k = 0; k < 4; k++) {
            const double* c = CUBIC_POLYNOMIAL[k];
            w[k] = ((R(c[3]) * t + R(c[2])) * t + R(c[1])) * t + R(c[0]);
            dw[k] = (R(3 * c[3]) * t + R(2 * c[2])) * t + R(c[1]);
        }
    }
}

// The pixel that stands for an integer position, or -1 for the background.
inline i64 pad(i64 k, i64 n, int padding, bool align_corners) {
    if (k >= 0 && k < n) return k;
    if (padding == ZEROS || padding == CONSTANT) return -1;
    if (padding == BORDER) return k < 0 ? 0 : n - 1;
    if (padding == CIRCULAR) return (k % n + n) % n;
    i64 period = align_corners ? (n > 1 ? 2 * (n - 1) : 1) : 2 * n;
    i64 m = (k % period + period) % period;
    if (align_corners) {
        m = m < period - m ? m : period - m;
        return m < n - 1 ? m : n - 1;
    }
    return m < n ? m : period - 1 - m;
}

// A chunk of output pixels

// Always inline: GCC takes a function that does nothing else for one without effect and drops the calls.
#define STN_INLINE inline __attribute__((always_inline))
STN_INLINE void prefetch(const void* from, i64 bytes) {
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) + uintptr_t(bytes)));
}

template <class R>
struct Chunk {
    i64 first;  // number of the first pixel
    int count;
    i64 ahead;  // from a pixel's offset to about where the image is read a few output rows later, 0 for no prefetch
    bool sparse;  // pixels lie so far apart that each has cache lines of its own
    alignas(64) int i[3][CHUNK + SLACK];
    alignas(64) R t[3][CHUNK + SLACK];
    alignas(64) R u[3][CHUNK + SLACK];        // PROJECTIVE: the normalized position,
    alignas(64) R inverse[CHUNK + SLACK];     // and 1 / denominator, 0 where hidden
    alignas(64) i64 offset[CHUNK + SLACK];    // of the first tap, for pixels inside; else 0
    alignas(8) uint8_t inside[CHUNK + SLACK];
    alignas(8) uint8_t nothing[CHUNK + SLACK]; // the pixel reads nothing but the background
    int inside_count, nothing_count, rest;
    uint8_t others[CHUNK];                    // the remaining pixels: some of their taps are inside

    template <class T>
    STN_INLINE void prefetch_later(const T* image, const i64* offsets) const {
        if (sparse)
            for (int q = 0; q < LANES; q++) prefetch(image + offsets[q], ahead * i64(sizeof(T)));
        else if (ahead)
            for (int q = 0; q < LANES; q += 4) prefetch(image + offsets[q], ahead * i64(sizeof(T)));
    }
};

template <class R>
inline void split(R position, int base, int& i, R& t) {
    int q = int(position);
    q -= R(q) > position;
    t = position - R(q);
    i = base + q;
}

// `source` is what was given: it decides whether the fraction is a number, for in pixels it may be too large for the type.
template <class R>
inline void split_any(R position, R source, int& i, R& t) {
    R c = position > R(-FAR) ? position : R(-FAR);  // without a branch, and a NaN ends here too
    c = c < R(FAR) ? c : R(FAR);
    int q = int(c);
    q -= R(q) > c;
    t = (c - R(q)) + (source - source);
    i = q;
}

// Calls f(k, n, j, r, s) for runs of n pixels of one row, from chunk pixel k on, at output column j, row r, slice s.
template <class F>
inline void for_segments(const Problem& p, i64 first, int count, int longest, F f) {
    i64 row = first / p.out[0], j = first - row * p.out[0];
    i64 s = p.ndim == 3 ? row / p.out[1] : 0, r = row - s * p.out[1];
    for (int k = 0; k < count;) {
        i64 left = p.out[0] - j;
        int n = int(left < count - k ? left : count - k);
        n = n < longest ? n : longest;
        f(k, n, j, r, s);
        k += n;
        j += n;
        if (j == p.out[0]) {
            j = 0;
            if (++r == p.out[1]) r = 0, s++;
        }
    }
}

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

// BASIS: a product with the coefficients of TEAM images at the same time, for the basis is what takes time to read.

template <int D>
struct Products {
    typedef double Team[D][CHUNK];
    static constexpr int N = sizeof(vdouble) / 8;
    static constexpr int vectors(int team) { return (team < 4 ? 2 : 1) * (LANES == 16 ? 2 : 1); }  // as there are registers

    // Normalized positions of `count` pixels from `first` on, of images b, b + 1, ..., one team.
    template <int TEAM>
    static void positions(const Problem& p, i64 b, i64 first, int count, Team* at) {
        const double* coefficients = static_cast<const double*>(p.coords_data) + b * p.basis_size * D;
        i64 image = p.basis_size * D;
        constexpr int U = vectors(TEAM);
        int k = 0;
        for (; k + N * U <= count; k += N * U) {
            const double* from = p.basis + first + k;
            vdouble sum[TEAM][D][U] = {};
            for (i64 e = 0; e < p.basis_size; e++, from += p.basis_stride) {
                vdouble value[U];
                for (int u = 0; u < U; u++) {
                    prefetch(from + u * N, CHUNK * 8);
                    value[u] = load<vdouble>(from + u * N);
                }
                for (int g = 0; g < TEAM; g++)
                    for (int a = 0; a < D; a++)
                        for (int u = 0; u < U; u++) sum[g][a][u] += value[u] * coefficients[g * image + e * D + a];
            }
            for (int g = 0; g < TEAM; g++)
                for (int a = 0; a < D; a++)
                    for (int u = 0; u < U; u++) store(at[g][a] + k + u * N, sum[g][a][u]);
        }
        for (; k < count; k++)
            for (int g = 0; g < TEAM; g++)
                for (int a = 0; a < D; a++) {
                    double sum = 0;
                    for (i64 e = 0; e < p.basis_size; e++) sum += p.basis[e * p.basis_stride + first + k] * coefficients[g * image + e * D + a];
                    at[g][a][k] = sum;
                }
    }

    // The way back: adds the products of the basis with the positions' gradients to the sums of each image.
    template <int TEAM>
    static void sums(const Problem& p, i64 first, int count, const Team* grad, double* total, i64 apart) {
        constexpr int U = vectors(TEAM);
        int whole = count / N * N;
        i64 e = 0;
        for (; e + U <= p.basis_size; e += U) {
            const double* from = p.basis + first + e * p.basis_stride;
            vdouble sum[TEAM][D][U] = {};
            for (int k = 0; k < whole; k += N) {
                vdouble value[U];
                for (int u = 0; u < U; u++) value[u] = load<vdouble>(from + u * p.basis_stride + k);
                for (int g = 0; g < TEAM; g++)
                    for (int a = 0; a < D; a++) {
                        vdouble one = load<vdouble>(grad[g][a] + k);
                        for (int u = 0; u < U; u++) sum[g][a][u] += value[u] * one;
                    }
            }
            for (int u = 0; u < U; u++)
                for (int g = 0; g < TEAM; g++)
                    for (int a = 0; a < D; a++) {
                        double one = 0;
                        for (int n = 0; n < N; n++) one += sum[g][a][u][n];
                        for (int k = whole; k < count; k++) one += from[u * p.basis_stride + k] * grad[g][a][k];
                        total[g * apart + (e + u) * D + a] += one;
                    }
        }
        for (; e < p.basis_size; e++)
            for (int g = 0; g < TEAM; g++)
                for (int a = 0; a < D; a++) {
                    double one = 0;
                    for (int k = 0; k < count; k++) one += p.basis[e * p.basis_stride + first + k] * grad[g][a][k];
                    total[g * apart + e * D + a] += one;
                }
    }
};

// Where pixels are read: positions of image `b` in pixels, from any kind of coordinates, and the gradient's way back.
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

    Positions(const Problem& problem, i64 image, const Lattice<R>* narrow = nullptr) : p(problem), b(image), lattice(narrow) {
        for (int a = 0; a < D; a++) {
            double n = double(p.in[a]), m = double(p.out[a]);
            scale[a] = p.align_corners ? (n - 1) / 2 : n / 2;
            centre[a] = (n - 1) / 2;
            double span = p.align_corners ? (m > 1 ? m - 1 : 1) : m;
            first[a] = (1 - m) / span;
            step[a] = 2 / span;
        }
        const R* matrix = static_cast<const R*>(p.coords_data);
        if (p.coords == AFFINE) {
            matrix += b * D * (D + 1);
            for (int a = 0; a < D; a++) {
                const R* row = matrix + a * (D + 1);
                double total = double(row[D]);
                for (int c = 0; c < D; c++) total += double(row[c]) * first[c];
                origin[a] = total * scale[a] + centre[a];
                for (int c = 0; c < D; c++) along[a][c] = double(row[c]) * (step[c] * scale[a]);
            }
        } else if (p.coords == PROJECTIVE) {
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
        if (D > 1) v += along[a][1] * double(r);
        if (D > 2) v += along[a][2] * double(s);
        return v;
    }

    i64 ahead() const {
        constexpr double ROWS = 6;
        double at[3] = {0, ROWS * double(p.in[1]) / double(p.out[1]), 0};
        if (p.coords == AFFINE && D > 1)
            for (int a = 0; a < D; a++) at[a] = fabs(along[a][1]) < 1e4 ? ROWS * along[a][1] : 0;
        i64 total = 0;
        for (int a = 0; a < D; a++) total += i64(at[a]) * p.image_stride[a];
        return total;
    }

    bool sparse() const {
        double area = double(p.in[0]) * double(p.in[1]) / (double(p.out[0]) * double(p.out[1]));
        if (p.coords == AFFINE && D == 2) area = fabs(along[0][0] * along[1][1] - along[0][1] * along[1][0]);
        return area > 2;
    }

    // Whether pixels of the chunk may read rows from `from` to `to` of the slowest axis; only ever wrong with yes.
    bool touches(const Chunk<R>& c, i64 from, i64 to) const {
        if (p.coords != AFFINE) return true;
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

    void fill(Chunk<R>& c) const {
        c.ahead = ahead();
        c.sparse = sparse();
        switch (p.coords) {
            case AFFINE: affine(c); break;
            case PROJECTIVE: projective(c); break;
            case BASIS: basis(c); break;
            default: grid(c);
        }
        if (p.mode == NEAREST)  // ties to even
            for (int a = 0; a < D; a++) {
                int* i = c.i[a];
                const R* t = c.t[a];
                for (int k = 0, n = c.count; k < n; k++) i[k] += (t[k] > R(0.5)) | ((t[k] == R(0.5)) & i[k] & 1);
            }
    }

    void affine(Chunk<R>& c) const {
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
        const R* data = static_cast<const R*>(p.coords_data) + b * p.grid_batch;
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

    // Sums that a task adds up: for each row of the matrix those of its entries, or one for each coefficient.
    i64 sums() const { return p.coords == AFFINE ? D * (D + 1) : p.coords == PROJECTIVE ? (D + 1) * (D + 1) : p.coords == BASIS ? p.basis_size * D : 0; }

    // Adds the gradient of a chunk's positions (in pixels) to the sums; a grid's is written where it belongs.
    void reduce(const Chunk<R>& c, R (*grad)[CHUNK + SLACK], double* total, bool more = false) const {
        if (p.coords == GRID) {
            R* to = static_cast<R*>(p.grad_coords) + (b * p.out[0] * p.out[1] * p.out[2] + c.first) * D;
            for (int a = 0; a < D; a++) {
                R size = R(scale[a]);
                for (int k = 0; k < c.count; k++) to[k * D + a] = (more ? to[k * D + a] : 0) + grad[a][k] * size;
            }
            return;
        }
        if (p.coords == BASIS) {
            alignas(64) typename Products<D>::Team mine;
            auto& wide = team ? *team : mine;
            for (int a = 0; a < D; a++)
                for (int k = 0; k < c.count; k++) wide[a][k] = double(grad[a][k]) * scale[a];
            if (!team) Products<D>::template sums<1>(p, c.first, c.count, &mine, total, 0);
            return;
        }
        int rows = D;
        alignas(64) R last[CHUNK + SLACK];
        if (p.coords == PROJECTIVE) {  // of the numerators and the denominator
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
            double left = first[0] + step[0] * double(j), y = D > 1 ? first[1] + step[1] * double(r) : 0, z = D > 2 ? first[2] + step[2] * double(s) : 0;
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
                if (D > 1) to[1] += y * sum;
                if (D > 2) to[2] += z * sum;
                to[D] += sum;
            }
        });
    }

    void finish(const double* total) const {
        i64 n = sums();
        if (p.coords == BASIS) {
            double* to = static_cast<double*>(p.grad_coords) + b * n;
            for (i64 e = 0; e < n; e++) to[e] = total[e];
            return;
        }
        R* to = static_cast<R*>(p.grad_coords) + b * n;
        for (i64 e = 0; e < n; e++) to[e] = R(total[e] * (p.coords == AFFINE ? scale[e / (D + 1)] : 1));
    }
};

// Classes. `from` and `to` bound the slowest axis: a gradient's owner only looks after its own part of the image.
template <class R, int D, int MODE>
void classify(const Problem& p, Chunk<R>& c, bool contiguous, i64 from, i64 to) {
    constexpr int K = Kernel<MODE>::K, before = Kernel<MODE>::before;
    int low[D];
    unsigned range[D], near[D];  // places of the integer part: all taps inside, some tap inside
    bool any = contiguous;
    for (int a = 0; a < D; a++) {
        i64 begin = a == D - 1 ? from : 0, end = a == D - 1 ? to : p.in[a];
        i64 places = end - begin - K + 1;
        low[a] = int(begin) + before;
        range[a] = places > 0 ? unsigned(places) : 0;
        near[a] = unsigned(end - begin + K - 1);
        any &= places > 0;
    }
    int n = c.count, padded = (n + LANES - 1) / LANES * LANES;
    const int *__restrict x = c.i[0], *__restrict y = c.i[D > 1 ? 1 : 0], *__restrict z = c.i[D - 1];
    uint8_t *__restrict inside = c.inside, *__restrict nothing = c.nothing;
    c.inside_count = c.nothing_count = c.rest = 0;
    if (any) {
        i64 base = 0;
        for (int a = 0; a < D; a++) base += -before * p.image_stride[a];
        i64* __restrict offset = c.offset;
        i64 sx = p.image_stride[0], sy = p.image_stride[1], sz = p.image_stride[2];
        int found = 0;
        for (int k = 0; k < n; k++) {
            bool in = unsigned(x[k] - low[0]) < range[0];
            if (D > 1) in &= unsigned(y[k] - low[D > 1 ? 1 : 0]) < range[D > 1 ? 1 : 0];
            if (D > 2) in &= unsigned(z[k] - low[D - 1]) < range[D - 1];
            inside[k] = in;
            found += in;
        }
        for (int k = 0; k < n; k++) {
            i64 at = base + x[k] * sx;
            if (D > 1) at += y[k] * sy;
            if (D > 2) at += z[k] * sz;
            offset[k] = inside[k] ? at : 0;
        }
        for (int k = n; k < padded; k++) inside[k] = 0, offset[k] = 0;
        c.inside_count = found;
    } else {
        for (int k = 0; k < padded; k++) inside[k] = 0, c.offset[k] = 0;
    }
    if (c.inside_count == n) return;
    for (int k = n; k < padded; k++) nothing[k] = 0;
    if (p.padding == ZEROS || p.padding == CONSTANT) {
        bool unowned = p.what == GRAD_IMAGE;  // a NaN gives nothing to the image, but is what the output has to be
        int found = 0;
        for (int k = 0; k < n; k++) {
            bool some = unsigned(x[k] - low[0] + (K - 1)) < near[0];
            if (D > 1) some &= unsigned(y[k] - low[D > 1 ? 1 : 0] + (K - 1)) < near[D > 1 ? 1 : 0];
            if (D > 2) some &= unsigned(z[k] - low[D - 1] + (K - 1)) < near[D - 1];
            R total = c.t[0][k];
            if (D > 1) total += c.t[D > 1 ? 1 : 0][k];
            if (D > 2) total += c.t[D - 1][k];
            bool counts = some | !(unowned | (total == total));
            nothing[k] = !counts;
            found += nothing[k];
        }
        c.nothing_count = found;
    } else if (p.what == GRAD_IMAGE && (from > 0 || to < p.in[D - 1])) {
        // Another part owns what has all taps within the image, but none here; padding does not come in.
        const int* last = c.i[D - 1];
        int all = int(p.in[D - 1]) - K, first = int(from) - K, end = int(to), found = 0;
        for (int k = 0; k < n; k++) {
            int begin = last[k] - before;
            nothing[k] = (begin >= 0) & (begin <= all) & ((begin <= first) | (begin >= end));
            found += nothing[k];
        }
        c.nothing_count = found;
    } else {
        for (int k = 0; k < n; k++) nothing[k] = 0;
    }
    if (c.inside_count + c.nothing_count == n) return;
    for (int k = 0; k < n; k += 8) {
        if ((load<uint64_t>(inside + k) | load<uint64_t>(nothing + k)) == 0x0101010101010101u) continue;
        for (int q = k; q < k + 8 && q < n; q++)
            if (!inside[q] && !nothing[q]) c.others[c.rest++] = uint8_t(q);
    }
}

// The taps of one pixel, wherever they lie.
template <class R, int D, int MODE>
struct Taps {
    static constexpr int K = Kernel<MODE>::K;
    static constexpr int N = D == 1 ? K : D == 2 ? K * K : K * K * K;
    int count = 0;
    i64 offset[N];
    R weight[N], slope[D][N];
    R fill_weight = 0, fill_slope[D] = {};

    Taps(const Problem& p, const Chunk<R>& c, int k, bool slopes, i64 from, i64 to) {
        i64 at[3][K];
        R w[3][K], dw[3][K];
        for (int a = 0; a < D; a++) {
            axis_weights<MODE>(c.t[a][k], w[a], dw[a]);
            for (int e = 0; e < K; e++) {
                i64 place = pad(i64(c.i[a][k]) - Kernel<MODE>::before + e, p.in[a], p.padding, p.align_corners);
                if (a == D - 1 && (place < from || place >= to)) place = -1;
                at[a][e] = place < 0 ? -1 : place * p.image_stride[a];
            }
        }
        for (int e = 0; e < N; e++) {
            int q[3] = {e % K, D > 1 ? e / K % K : 0, D > 2 ? e / (K * K) : 0};
            R product = 1;
            i64 where = 0;
            bool in = true;
            for (int a = 0; a < D; a++) {
                product *= w[a][q[a]];
                in &= at[a][q[a]] >= 0;
                where += at[a][q[a]];
            }
            if (in) {
                offset[count] = where;
                weight[count] = product;
            } else {
                fill_weight += product;
            }
            if (slopes)
                for (int a = 0; a < D; a++) {
                    R one = dw[a][q[a]];
                    for (int o = 0; o < D; o++)
                        if (o != a) one *= w[o][q[o]];
                    if (in) slope[a][count] = one;
                    else fill_slope[a] += one;
                }
            count += in;
        }
        if (fill_weight != fill_weight) count = 0;
    }
};

template <class R, int D>
inline bool is_finite(const Chunk<R>& c, int k) {
    R total = c.t[0][k];
    for (int a = 1; a < D; a++) total += c.t[a][k];
    return total == total;
}

// Pixels inside, rows contiguous: loops without bounds tests, specialized where it pays.

// As a sum of weighted pixels: a + t * (b - a) would turn infinite pixels into NaN.
template <class V>
inline V mix(V a, V b, V s, V t) { return s * a + t * b; }

#if defined(__clang__) || __GNUC__ >= 12
#define STN_SHUFFLES 1
#endif

// float, linear: (x, x + 1) is one load of 64 bits; rows are blended before the pairs are taken apart.
#if STN_SHUFFLES
typedef double double2 __attribute__((vector_size(16)));
typedef double double4 __attribute__((vector_size(32)));
inline double2 two(const float* p, const i64* o) { return double2{load<double>(p + o[0]), load<double>(p + o[1])}; }
#if defined(__AVX512F__)
inline vfloat pairs(const float* p, const i64* o) {
    double2 a = two(p, o), b = two(p, o + 2), c = two(p, o + 4), d = two(p, o + 6);
    double4 low = __builtin_shufflevector(a, b, 0, 1, 2, 3), high = __builtin_shufflevector(c, d, 0, 1, 2, 3);
    return vfloat(__builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7));
}
inline vfloat evens(vfloat a, vfloat b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30); }
inline vfloat odds(vfloat a, vfloat b) { return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31); }
inline vfloat twice_low(vfloat a) { return __builtin_shufflevector(a, a, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7); }
inline vfloat twice_high(vfloat a) { return __builtin_shufflevector(a, a, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15); }
#elif defined(__AVX__)
inline vfloat pairs(const float* p, const i64* o) {
    vdouble v = {load<double>(p + o[0]), load<double>(p + o[1]), load<double>(p + o[2]), load<double>(p + o[3])};
    return vfloat(v);
}
// Within halves of 128 bits, which one instruction does; `twice` and the offsets follow the same order.
inline vfloat evens(vfloat a, vfloat b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14); }
inline vfloat odds(vfloat a, vfloat b) { return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15); }
inline vfloat twice_low(vfloat a) { return __builtin_shufflevector(a, a, 0, 0, 1, 1, 2, 2, 3, 3); }
inline vfloat twice_high(vfloat a) { return __builtin_shufflevector(a, a, 4, 4, 5, 5, 6, 6, 7, 7); }
#else
inline vfloat pairs(const float* p, const i64* o) {
    vdouble v = {load<double>(p + o[0]), load<double>(p + o[1])};
    return vfloat(v);
}
inline vfloat evens(vfloat a, vfloat b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6); }
inline vfloat odds(vfloat a, vfloat b) { return __builtin_shufflevector(a, b, 1, 3, 5, 7); }
inline vfloat twice_low(vfloat a) { return __builtin_shufflevector(a, a, 0, 0, 1, 1); }
inline vfloat twice_high(vfloat a) { return __builtin_shufflevector(a, a, 2, 2, 3, 3); }
#endif
#endif

// Keeps the offsets in memory: hoisted out of a loop over channels there are more of them than registers.
#define STN_REREAD(pointer) asm("" : "+r"(pointer))

inline bool none(const uint8_t* inside, int n) {
    bool some = false;
    for (int k = 0; k < n; k++) some |= inside[k];
    return !some;
}

// Offsets of the rows that the taps of a pixel touch, from its first tap.
template <int D, int MODE>
struct Rows {
    static constexpr int K = Kernel<MODE>::K;
    static constexpr int N = D == 1 ? 1 : D == 2 ? K : K * K;
    i64 at[N];
    explicit Rows(const Problem& p) {
        for (int r = 0; r < N; r++) at[r] = (r % K) * p.image_stride[1] + (D > 2 ? r / K * p.image_stride[2] : 0);
    }
};

// `values[c * apart + k]` for the pixels inside, for `channels` planes; g alike.
template <class T, class R, int D, int MODE>
struct Inside {
    static constexpr int K = Kernel<MODE>::K, NR = Rows<D, MODE>::N;
    typedef R vec __attribute__((vector_size(4 * sizeof(R))));

    static inline void weights(const Chunk<R>& c, int a, int k, R* w, R* dw) { axis_weights<MODE>(c.t[a][k], w, dw); }

    static void forward(const Problem& p, const Chunk<R>& c, const T* image, int channels, R* values, i64 apart) {
        Rows<D, MODE> rows(p);
        for (int k = 0; k < c.count; k++) {
            if (!c.inside[k]) continue;
            R w[3][K], dw[3][K];
            for (int a = 0; a < D; a++) weights(c, a, k, w[a], dw[a]);
            R row_weight[NR];
            for (int r = 0; r < NR; r++) row_weight[r] = (D > 1 ? w[D > 1 ? 1 : 0][r % K] : 1) * (D > 2 ? w[D - 1][r / K] : 1);
            for (int ch = 0; ch < channels; ch++) {
                const T* from = image + ch * p.image_channel + c.offset[k];
                R sum[K] = {};
                for (int r = 0; r < NR; r++)
                    for (int e = 0; e < K; e++) sum[e] += row_weight[r] * get(from[rows.at[r] + e]);
                R total = 0;
                for (int e = 0; e < K; e++) total += sum[e] * w[0][e];
                values[ch * apart + k] = total;
            }
        }
    }

    // grad[a][k] = d/d position of the sum over channels of g * value
    static void slopes(const Problem& p, const Chunk<R>& c, const T* image, int channels, const R* g, i64 apart, R (*grad)[CHUNK + SLACK], bool more) {
        Rows<D, MODE> rows(p);
        for (int k = 0; k < c.count; k++) {
            if (!c.inside[k]) continue;
            R w[3][K], dw[3][K];
            for (int a = 0; a < D; a++) weights(c, a, k, w[a], dw[a]);
            R dot[NR][K] = {};
            for (int ch = 0; ch < channels; ch++) {
                const T* from = image + ch * p.image_channel + c.offset[k];
                R one = g[ch * apart + k];
                for (int r = 0; r < NR; r++)
                    for (int e = 0; e < K; e++) dot[r][e] += one * get(from[rows.at[r] + e]);
            }
            for (int a = 0; a < D; a++) {
                R total = 0;
                for (int r = 0; r < NR; r++) {
                    R row = 0;
                    for (int e = 0; e < K; e++) row += dot[r][e] * (a == 0 ? dw[0][e] : w[0][e]);
                    R factor = 1;
                    if (D > 1) factor *= a == 1 ? dw[D > 1 ? 1 : 0][r % K] : w[D > 1 ? 1 : 0][r % K];
                    if (D > 2) factor *= a == 2 ? dw[D - 1][r / K] : w[D - 1][r / K];
                    total += factor * row;
                }
                grad[a][k] = more ? grad[a][k] + total : total;
            }
        }
    }
};

#if STN_SHUFFLES
// The derivative by each axis of the value between corners.
template <int D>
inline void linear_slopes(const Chunk<float>& c, int k, const vfloat* left, const vfloat* right, vfloat* total) {
    constexpr int NR = 1 << (D - 1);
    vfloat x = load<vfloat>(c.t[0] + k), y = load<vfloat>(c.t[D > 1 ? 1 : 0] + k), z = load<vfloat>(c.t[D - 1] + k);
    vfloat x_ = 1 - x, y_ = 1 - y, z_ = 1 - z;
    if (D == 2) {
        total[0] = mix(right[0] - left[0], right[1] - left[1], y_, y);
        total[D - 1] = mix(left[1] - left[0], right[1] - right[0], x_, x);
    } else {
        constexpr int B = NR - 2, C = NR - 1;
        total[0] = mix(mix(right[0] - left[0], right[1] - left[1], y_, y), mix(right[B] - left[B], right[C] - left[C], y_, y), z_, z);
        vfloat m[NR];
        for (int r = 0; r < NR; r++) m[r] = mix(left[r], right[r], x_, x);
        total[1] = mix(m[1] - m[0], m[C] - m[B], z_, z);
        total[D - 1] = mix(m[B] - m[0], m[C] - m[1], y_, y);
    }
}

// The pairs at LANES offsets, left ones and right ones apart.
template <class T>
struct Pairs {
    vfloat left, right;
    inline Pairs(const T* p, const i64* o) {
        T a[LANES], b[LANES];
        for (int q = 0; q < LANES; q++) a[q] = p[o[q]], b[q] = p[o[q] + 1];
        for (int q = 0; q < LANES; q++) left[q] = get(a[q]), right[q] = get(b[q]);
    }
};
template <>
inline Pairs<bf16>::Pairs(const bf16* p, const i64* o) {
#define STN_PAIR(q) load<int>(p + o[q])
#if defined(__AVX512F__)
    vint both = {STN_PAIR(0), STN_PAIR(1), STN_PAIR(2), STN_PAIR(3), STN_PAIR(4), STN_PAIR(5), STN_PAIR(6), STN_PAIR(7), STN_PAIR(8), STN_PAIR(9), STN_PAIR(10), STN_PAIR(11), STN_PAIR(12), STN_PAIR(13), STN_PAIR(14), STN_PAIR(15)};
#elif defined(__AVX__)
    vint both = {STN_PAIR(0), STN_PAIR(1), STN_PAIR(2), STN_PAIR(3), STN_PAIR(4), STN_PAIR(5), STN_PAIR(6), STN_PAIR(7)};
#else
    vint both = {STN_PAIR(0), STN_PAIR(1), STN_PAIR(2), STN_PAIR(3)};
#endif
#undef STN_PAIR
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    left = vfloat(both << 16), right = vfloat(both & int(0xffff0000));
#else
    right = vfloat(both << 16), left = vfloat(both & int(0xffff0000));
#endif
}

template <class T, int D>
struct InsideHalf {
    static constexpr int NR = Rows<D, LINEAR>::N;

    static void forward(const Problem& p, const Chunk<float>& c, const T* image, int channels, float* values, i64 apart) {
        Rows<D, LINEAR> rows(p);
        for (int k = 0; k < c.count; k += LANES) {
            if (c.inside_count != c.count && none(c.inside + k, LANES)) continue;
            vfloat x = load<vfloat>(c.t[0] + k), y = load<vfloat>(c.t[D > 1 ? 1 : 0] + k), z = load<vfloat>(c.t[D - 1] + k);
            vfloat x_ = 1 - x, y_ = 1 - y, z_ = 1 - z;
            for (int ch = 0; ch < channels; ch++) {
                const T* from = image + ch * p.image_channel;
                const i64* o = c.offset + k;
                STN_REREAD(o);
                c.prefetch_later(from, o);
                Pairs<T> a(from, o), b(from + rows.at[1], o);
                vfloat left = mix(a.left, b.left, y_, y), right = mix(a.right, b.right, y_, y);
                if (D > 2) {
                    Pairs<T> e(from + rows.at[NR - 2], o), f(from + rows.at[NR - 1], o);
                    left = mix(left, mix(e.left, f.left, y_, y), z_, z);
                    right = mix(right, mix(e.right, f.right, y_, y), z_, z);
                }
                store(values + ch * apart + k, mix(left, right, x_, x));
            }
        }
    }

    static void slopes(const Problem& p, const Chunk<float>& c, const T* image, int channels, const float* g, i64 apart, float (*grad)[CHUNK + SLACK], bool more) {
        Rows<D, LINEAR> rows(p);
        for (int k = 0; k < c.count; k += LANES) {
            if (c.inside_count != c.count && none(c.inside + k, LANES)) continue;
            vfloat left[NR] = {}, right[NR] = {}, total[D];
            const i64* o = c.offset + k;
            for (int ch = 0; ch < channels; ch++) {
                const T* from = image + ch * p.image_channel;
                STN_REREAD(o);
                c.prefetch_later(from, o);
                vfloat one = load<vfloat>(g + ch * apart + k);
                for (int r = 0; r < NR; r++) {
                    Pairs<T> a(from + rows.at[r], o);
                    left[r] += one * a.left;
                    right[r] += one * a.right;
                }
            }
            linear_slopes<D>(c, k, left, right, total);
            for (int a = 0; a < D; a++) store(grad[a] + k, more ? load<vfloat>(grad[a] + k) + total[a] : total[a]);
        }
    }
};
template <int D> struct Inside<bf16, float, D, LINEAR> : InsideHalf<bf16, D> {};

template <int D>
struct Inside<float, float, D, LINEAR> {
    static constexpr int NR = Rows<D, LINEAR>::N;

    static void forward(const Problem& p, const Chunk<float>& c, const float* image, int channels, float* values, i64 apart) {
        Rows<D, LINEAR> rows(p);
        for (int k = 0; k < c.count; k += LANES) {
            if (c.inside_count != c.count && none(c.inside + k, LANES)) continue;
            vfloat x = load<vfloat>(c.t[0] + k), y = load<vfloat>(c.t[D > 1 ? 1 : 0] + k), z = load<vfloat>(c.t[D - 1] + k);
            vfloat y0 = twice_low(y), y1 = twice_high(y), z0 = twice_low(z), z1 = twice_high(z);
            vfloat x_ = 1 - x, y0_ = 1 - y0, y1_ = 1 - y1, z0_ = 1 - z0, z1_ = 1 - z1;
            for (int ch = 0; ch < channels; ch++) {
                const float* from = image + ch * p.image_channel;
                const i64* o = c.offset + k;
                STN_REREAD(o);
                c.prefetch_later(from, o);
                vfloat a0 = mix(pairs(from, o), pairs(from + rows.at[1], o), y0_, y0);
                vfloat a1 = mix(pairs(from, o + LANES / 2), pairs(from + rows.at[1], o + LANES / 2), y1_, y1);
                if (D > 2) {
                    const float *c2 = from + rows.at[NR - 2], *c3 = from + rows.at[NR - 1];
                    a0 = mix(a0, mix(pairs(c2, o), pairs(c3, o), y0_, y0), z0_, z0);
                    a1 = mix(a1, mix(pairs(c2, o + LANES / 2), pairs(c3, o + LANES / 2), y1_, y1), z1_, z1);
                }
                store(values + ch * apart + k, mix(evens(a0, a1), odds(a0, a1), x_, x));
            }
        }
    }

    static void slopes(const Problem& p, const Chunk<float>& c, const float* image, int channels, const float* g, i64 apart, float (*grad)[CHUNK + SLACK], bool more) {
        Rows<D, LINEAR> rows(p);
        for (int k = 0; k < c.count; k += LANES) {
            if (c.inside_count != c.count && none(c.inside + k, LANES)) continue;
            vfloat dot[NR][2] = {};
            const i64* o = c.offset + k;
            for (int ch = 0; ch < channels; ch++) {
                const float* from = image + ch * p.image_channel;
                STN_REREAD(o);
                c.prefetch_later(from, o);
                vfloat one = load<vfloat>(g + ch * apart + k), g0 = twice_low(one), g1 = twice_high(one);
                for (int r = 0; r < NR; r++) {
                    dot[r][0] += g0 * pairs(from + rows.at[r], o);
                    dot[r][1] += g1 * pairs(from + rows.at[r], o + LANES / 2);
                }
            }
            vfloat left[NR], right[NR], total[D];
            for (int r = 0; r < NR; r++) left[r] = evens(dot[r][0], dot[r][1]), right[r] = odds(dot[r][0], dot[r][1]);
            linear_slopes<D>(c, k, left, right, total);
            for (int a = 0; a < D; a++) store(grad[a] + k, more ? load<vfloat>(grad[a] + k) + total[a] : total[a]);
        }
    }
};
#endif

// float and double, cubic: four pixels of a row are one vector.
template <class R, int D>
struct InsideCubic {
    static constexpr int NR = Rows<D, CUBIC>::N;
    typedef R vec __attribute__((vector_size(4 * sizeof(R))));

    static inline void weights(R t, vec& w, vec& dw) {
        const auto& c = CUBIC_POLYNOMIAL;
        const vec c0 = {R(c[0][0]), R(c[1][0]), R(c[2][0]), R(c[3][0])}, c1 = {R(c[0][1]), R(c[1][1]), R(c[2][1]), R(c[3][1])};
        const vec c2 = {R(c[0][2]), R(c[1][2]), R(c[2][2]), R(c[3][2])}, c3 = {R(c[0][3]), R(c[1][3]), R(c[2][3]), R(c[3][3])};
        w = ((c3 * t + c2) * t + c1) * t + c0;
        dw = (3 * c3 * t + 2 * c2) * t + c1;
    }
    static inline R sum(vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }

    static void forward(const Problem& p, const Chunk<R>& c, const R* image, int channels, R* values, i64 apart) {
        Rows<D, CUBIC> rows(p);
        for (int k = 0; k < c.count; k++) {
            if (!c.inside[k]) continue;
            vec w[3], dw;
            for (int a = 0; a < D; a++) weights(c.t[a][k], w[a], dw);
            for (int ch = 0; ch < channels; ch++) {
                const R* from = image + ch * p.image_channel + c.offset[k];
                vec total = {};
                if (D == 2) {
                    for (int r = 0; r < 4; r++) total += w[1][r] * load<vec>(from + rows.at[r]);
                } else {
                    for (int s = 0; s < 4; s++) {
                        vec plane = {};
                        for (int r = 0; r < 4; r++) plane += w[1][r] * load<vec>(from + rows.at[(s * 4 + r) % NR]);
                        total += w[D - 1][s] * plane;
                    }
                }
                values[ch * apart + k] = sum(total * w[0]);
            }
        }
    }

    static void slopes(const Problem& p, const Chunk<R>& c, const R* image, int channels, const R* g, i64 apart, R (*grad)[CHUNK + SLACK], bool more) {
        Rows<D, CUBIC> rows(p);
        for (int k = 0; k < c.count; k++) {
            if (!c.inside[k]) continue;
            vec w[3], dw[3], dot[NR] = {};
            for (int a = 0; a < D; a++) weights(c.t[a][k], w[a], dw[a]);
            for (int ch = 0; ch < channels; ch++) {
                const R* from = image + ch * p.image_channel + c.offset[k];
                for (int r = 0; r < NR; r++) dot[r] += g[ch * apart + k] * load<vec>(from + rows.at[r]);
            }
            for (int a = 0; a < D; a++) {
                vec wy = a == 1 ? dw[1] : w[1], wz = D > 2 ? (a == 2 ? dw[D - 1] : w[D - 1]) : w[0], total = {};
                for (int s = 0; s < NR / 4; s++) {
                    vec plane = {};
                    for (int r = 0; r < 4; r++) plane += wy[r] * dot[s * 4 + r];
                    total += D > 2 ? wz[s] * plane : plane;
                }
                R one = sum(total * (a == 0 ? dw[0] : w[0]));
                grad[a][k] = more ? grad[a][k] + one : one;
            }
        }
    }
};
template <int D> struct Inside<float, float, D, CUBIC> : InsideCubic<float, D> {};
template <int D> struct Inside<double, double, D, CUBIC> : InsideCubic<double, D> {};

// A frame is a small image, or a stripe of one, copied with its padding around it: no pixel needs a bounds test, and
// whatever the type and layout of the image, the frame is dense and of the working type.

constexpr i64 FRAME_BYTES = 640 << 10;

inline void* scratch() {  // one a thread, kept
    static thread_local void* memory = nullptr;
    if (!memory && posix_memalign(&memory, 64, FRAME_BYTES + 4096)) memory = nullptr;
    return memory;
}

template <class R, int MODE>
struct Frame {
    static constexpr int K = Kernel<MODE>::K, MARGIN = MODE == CUBIC ? 4 : 2;
    Problem p;      // as of the frame, for the loops that read it
    i64 width, height, plane, from, to, left, wide;
    R* data;

    // Rows from..to of the problem's image, `cell` numbers for each pixel; all columns, or `columns` from `start` on.
    Frame(const Problem& problem, i64 first, i64 last, int cell = 1, i64 start = 0, i64 columns = -1) : p(problem), from(first), to(last), left(start) {
        wide = columns < 0 ? problem.in[0] : columns;
        width = wide + 2 * MARGIN;
        height = to - from + 2 * MARGIN;
        plane = width * height * cell;
        p.image_stride[0] = cell;
        p.image_stride[1] = width * cell;
        p.image_channel = plane;
        data = static_cast<R*>(scratch());
    }

    static i64 bytes(i64 columns, i64 rows, int cell = 1) {
        return (columns + 2 * MARGIN) * (rows + 2 * MARGIN) * cell * i64(sizeof(R));
    }

    template <class T>
    void copy(const T* image, const Problem& source, int channels, i64 first_channel) {
        for (int ch = 0; ch < channels; ch++) {
            R background = source.fill ? static_cast<const R*>(source.fill)[first_channel + ch] : 0;
            const T* plane_from = image + ch * source.image_channel;
            for (i64 y = -MARGIN; y < to - from + MARGIN; y++) {
                R* row = data + ch * plane + (y + MARGIN) * width;
                i64 line = y < 0 ? 0 : y < to - from ? y : to - from - 1;
                if (line != y && source.padding != BORDER) {
                    for (i64 x = 0; x < width; x++) row[x] = background;
                    continue;
                }
                const T* at = plane_from + line * source.image_stride[1];
                R* __restrict inner = row + MARGIN;
                if (source.image_stride[0] == 1)
                    for (i64 x = 0; x < wide; x++) inner[x] = get(at[x]);
                else
                    for (i64 x = 0; x < wide; x++) inner[x] = get(at[x * source.image_stride[0]]);
                R left = source.padding == BORDER ? inner[0] : background;
                R right = source.padding == BORDER ? inner[wide - 1] : background;
                for (int x = 0; x < MARGIN; x++) row[x] = left, inner[wide + x] = right;
            }
        }
    }

    // Offsets into the frame, for every pixel: those far outside read the margin. True if no position is NaN.
    bool place(Chunk<R>& c) const {
        constexpr int before = Kernel<MODE>::before, low = MODE == CUBIC ? -3 : -2, beyond = MODE == CUBIC ? 1 : 0;
        int last_x = int(wide) + beyond, last_y = int(to - from) + beyond, begin = int(left), top = int(from), n = c.count;
        int cell = int(p.image_stride[0]), line = int(p.image_stride[1]);
        const int *__restrict x = c.i[0], *__restrict y = c.i[1];
        i64* __restrict offset = c.offset;
        int bad = 0;
        for (int k = 0; k < n; k++) {
            int u = x[k] - begin, v = y[k] - top;
            u = u < low ? low : u;
            u = u > last_x ? last_x : u;
            v = v < low ? low : v;
            v = v > last_y ? last_y : v;
            offset[k] = (v + (MARGIN - before)) * line + (u + (MARGIN - before)) * cell;
            c.inside[k] = 1;
        }
        for (int k = 0; k < n; k++) {
            R total = c.t[0][k] + c.t[1][k];
            bad |= total != total;
        }
        for (int k = n; k < (n + LANES - 1) / LANES * LANES; k++) offset[k] = 0, c.inside[k] = 0;
        c.inside_count = n;
        c.nothing_count = c.rest = 0;
        c.ahead = 0, c.sparse = false;
        return !bad;
    }
};

// Many channels: LANES of them are one vector, and those of a pixel lie next to each other.

constexpr int SHARE = 64;  // channels that are worked on at the same time, at most
constexpr int NEXT = 32;   // pixels ahead in every plane: more planes than the processor's own prefetcher follows

template <class A, class B> struct Exactly { static constexpr bool yes = false; };
template <class A> struct Exactly<A, A> { static constexpr bool yes = true; };

template <int... I> struct Order {};
#if defined(__AVX512F__)
typedef Order<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15> Lanes;
#elif defined(__AVX__)
typedef Order<0, 1, 2, 3, 4, 5, 6, 7> Lanes;
#else
typedef Order<0, 1, 2, 3> Lanes;
#endif

// Exchanges the upper half of every 2 S lanes of a with the lower half of those of b.
template <int S, int... I>
inline void exchange(vfloat& a, vfloat& b, Order<I...>) {
#if STN_SHUFFLES
    vfloat low = __builtin_shufflevector(a, b, ((I & S) ? LANES + (I ^ S) : I)...);
    b = __builtin_shufflevector(a, b, ((I & S) ? LANES + I : (I ^ S))...);
    a = low;
#else
    vfloat low = {((I & S) ? b[I ^ S] : a[I])...};
    b = vfloat{((I & S) ? b[I] : a[I ^ S])...};
    a = low;
#endif
}

template <int S = 1>
inline void transpose(vfloat* v) {
    if constexpr (S < LANES) {
        for (int k = 0; k < LANES; k++)
            if (!(k & S)) exchange<S>(v[k], v[k + S], Lanes());
        transpose<2 * S>(v);
    }
}

// Lane k of the result is the sum of the lanes of v[k].
template <int S = 1>
inline vfloat sums_of(vfloat* v) {
    if constexpr (S < LANES) {
        for (int k = 0; k < LANES; k += 2 * S) {
            exchange<S>(v[k], v[k + S], Lanes());
            v[k] += v[k + S];
        }
        return sums_of<2 * S>(v);
    }
    return v[0];
}

// The first n of LANES numbers `step` apart, and back.
template <class T>
inline vfloat read_lanes(const T* p, i64 step, int n) {
    alignas(64) float v[LANES] = {};
    if (step == 1 && n == LANES)
        for (int q = 0; q < LANES; q++) v[q] = get(p[q]);
    else
        for (int q = 0; q < n; q++) v[q] = get(p[q * step]);
    return load<vfloat>(v);
}
inline vfloat read_lanes(const float* p, i64 step, int n) {
    return step == 1 && n == LANES ? load<vfloat>(p) : read_lanes<float>(p, step, n);
}
template <class T>
inline void write_lanes(T* p, i64 step, int n, vfloat value) {
    alignas(64) float v[LANES];
    store(v, value);
    if (step == 1 && n == LANES)
        for (int q = 0; q < LANES; q++) put(p[q], v[q]);
    else
        for (int q = 0; q < n; q++) put(p[q * step], v[q]);
}
inline void write_lanes(float* p, i64 step, int n, vfloat value) {
    if (step == 1 && n == LANES) store(p, value);
    else write_lanes<float>(p, step, n, value);
}

// Between planes and pixels: `count` pixels, at most LANES, of `channels` channels; those missing to full vectors are 0.
template <class T>
inline void gather_planes(const T* planes, i64 channel, i64 step, int count, int channels, float* to, i64 cell) {
    for (int ch = 0; ch < channels; ch += LANES) {
        vfloat v[LANES];
        for (int e = 0; e < LANES; e++) {
            if (ch + e < channels) prefetch(planes + (ch + e) * channel, NEXT * step * i64(sizeof(T)));
            v[e] = ch + e < channels ? read_lanes(planes + (ch + e) * channel, step, count) : vfloat{};
        }
        transpose(v);
        for (int q = 0; q < count; q++) store(to + q * cell + ch, v[q]);
    }
}
template <class T>
inline void scatter_planes(const float* from, i64 cell, int count, int channels, T* planes, i64 channel, i64 step) {
    for (int ch = 0; ch < channels; ch += LANES) {
        vfloat v[LANES];
        for (int q = 0; q < LANES; q++) v[q] = q < count ? load<vfloat>(from + q * cell + ch) : vfloat{};
        transpose(v);
        for (int e = 0; e < LANES; e++)
            if (ch + e < channels) {
                prefetch(planes + (ch + e) * channel, NEXT * step * i64(sizeof(T)));
                write_lanes(planes + (ch + e) * channel, step, count, v[e]);
            }
    }
}

// Linear, in two dimensions: the four pixels around a position, and their weights.
struct Corners {
    i64 right, down;
    vfloat w[4];

    Corners(i64 to_right, i64 to_below) : right(to_right), down(to_below) {}

    inline void weigh(float x, float y) {
        float x_ = 1 - x, y_ = 1 - y, one[4] = {x_ * y_, x * y_, x_ * y, x * y};
        for (int e = 0; e < 4; e++) w[e] = one[e] - vfloat{};
    }

    // `ahead`: from here to where a later row of the output reads; 0 in a frame, which lies in the cache.
    inline void blend(const float* at, int channels, float* to, i64 ahead = 0) const {
        const float* below = at + down;
        for (int ch = 0; ch < channels; ch += LANES) {
            if (ahead) prefetch(at + ch, ahead * 4);
            store(to + ch, w[0] * load<vfloat>(at + ch) + w[1] * load<vfloat>(at + right + ch) +
                               (w[2] * load<vfloat>(below + ch) + w[3] * load<vfloat>(below + right + ch)));
        }
    }

    // Products of g with the derivatives of the value, not yet added up over lanes.
    inline void slopes(const float* at, const float* g, int channels, float x, float y, vfloat& by_x, vfloat& by_y, i64 ahead = 0) const {
        const float* below = at + down;
        vfloat a = {}, b = {}, c = {}, d = {};
        for (int ch = 0; ch < channels; ch += LANES) {
            if (ahead) prefetch(at + ch, ahead * 4);
            vfloat one = load<vfloat>(g + ch);
            a += one * load<vfloat>(at + ch), b += one * load<vfloat>(at + right + ch);
            c += one * load<vfloat>(below + ch), d += one * load<vfloat>(below + right + ch);
        }
        by_x = (1 - y) * (b - a) + y * (d - c);
        by_y = (1 - x) * (c - a) + x * (d - b);
    }

    inline void spread(float* at, const float* g, int channels, i64 ahead = 0) const {
        float* below = at + down;
        for (int ch = 0; ch < channels; ch += LANES) {
            if (ahead) prefetch(at + ch, ahead * 4);
            vfloat one = load<vfloat>(g + ch);
            vfloat a = load<vfloat>(at + ch) + w[0] * one, b = load<vfloat>(at + right + ch) + w[1] * one;
            vfloat c = load<vfloat>(below + ch) + w[2] * one, d = load<vfloat>(below + right + ch) + w[3] * one;
            store(at + ch, a), store(at + right + ch, b), store(below + ch, c), store(below + right + ch, d);
        }
    }
};

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

template <class T, int D>
int run_mode(const Problem& p) {
    typedef typename Working<T>::type R;
    switch (p.mode) {
        case NEAREST: return Op<T, R, D, NEAREST>(p).run();
        case LINEAR: return Op<T, R, D, LINEAR>(p).run();
        default: return Op<T, R, D, CUBIC>(p).run();
    }
}

}  // namespace
}  // namespace STN_SET

int STN_CAT(STN_CAT(run_, STN_SET), STN_CAT(_, STN_TYPE))(const Problem& p) {
    return p.ndim == 2 ? STN_SET::run_mode<STN_SET::STN_TYPE, 2>(p) : STN_SET::run_mode<STN_SET::STN_TYPE, 3>(p);
}

}  // namespace stn
