// Coordinates from a basis: products with the coefficients of TEAM images at the same time, for the basis is what takes
// time to read.
#pragma once
#include "chunk.h"

namespace stn::STN_SET {
namespace {

template <int D>
struct Products {
    typedef double Team[D][CHUNK];
    static constexpr int N = sizeof(vdouble) / 8;
    static constexpr int vectors(int team) { return (team < 4 ? 2 : 1) * (LANES == 16 ? 2 : 1); }  // as there are registers

    // Normalized positions of `count` pixels from `first` on, of images b, b + 1, ..., one team.
    template <int TEAM>
    static void positions(const Problem& p, i64 b, i64 first, int count, Team* at) {
        const double* coefficients = static_cast<const double*>(p.coordinates) + b * p.basis_size * D;
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

}  // namespace
}  // namespace stn::STN_SET
