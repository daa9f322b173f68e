// The read of multi-scale deformable attention: plain data, as api.h.
#pragma once
#include "api.h"

namespace stn {

constexpr int MOST_LEVELS = 64;

// All arrays are dense. `type`: F32 or F64, of all of them.
struct Deformed {
    int type, threads;
    i64 batch, heads, channels, queries, levels, points;
    i64 positions;                   // of a value, S: those of all maps
    i64 size[MOST_LEVELS][2];        // (H, W) of each map
    i64 first[MOST_LEVELS];          // its first position
    const void* value;               // (B, S, heads, C)
    const void* locations;           // (B, Q, heads, levels, points, 2): x, y in [0, 1]
    const void* weights;             // (B, Q, heads, levels, points)
    void* output;                    // (B, Q, heads, C), written where there is no gradient
    const void* gradient;            // of the output, or null
    void *for_value, *for_locations, *for_weights;  // as what they are the gradients of; the first cleared
};

using Deform = Status (*)(const Deformed&);

}  // namespace stn
