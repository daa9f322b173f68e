#pragma once
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
