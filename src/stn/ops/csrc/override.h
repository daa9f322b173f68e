// torch's grid_sampler ops on the CPU, run here: see override.cpp.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "api.h"

namespace stn {

// Registers kernels for the four ops beside torch's own, switched off. `library`: the file of libtorch_cpu as it is loaded;
// `originals`: the symbols of torch's kernels, in the order of override.cpp. Returns what it misses, or nothing.
std::string override_grid_sampler(const std::string& library, const std::vector<std::string>& originals);

void switch_override(bool on);

// Calls that ran here while it was on, and that were passed on to torch.
std::pair<i64, i64> override_calls();

}  // namespace stn
