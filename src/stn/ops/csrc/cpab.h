// Points that follow a velocity which is continuous and affine in each cell: plain data, as api.h.
#pragma once
#include "api.h"

namespace stn {

// The mesh is that of stn/tessellation.py; all arrays are dense. `type`: F32 or F64, of points, results and gradients.
struct Paths {
    int ndim, type, threads;
    i64 batch, points;
    i64 boxes[3];  // along x, y, z
    i64 cells, vertices;
    const double* generators;  // (G, d)
    const int* slots;          // (cells, d+1)
    const int* beyond;         // (cells, d+1)
    const int* order;          // (cells, d+1)
    const double* weights;     // (cells, d+1, d+1)
    const int* outside;        // (boxes, 3^d, 2)
    const double* velocities;  // (B, vertices, d)
    const void* start;         // (B, N, d), with these strides in elements
    i64 start_batch, start_point, start_axis;
    void* end;             // (B, N, d), written where there is no gradient
    const void* gradient;  // (B, N, d) of the ends, or null
    double* for_velocities;  // (B, vertices, d)
    void* for_start;         // (B, N, d), or null
};

using Follow = Status (*)(const Paths&);

}  // namespace stn
