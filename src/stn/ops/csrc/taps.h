#pragma once
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
