// What the doors to Python have in common.
#pragma once
#include <nanobind/nanobind.h>

#include <cstring>

#include "api.h"
#include "machine.h"
#include "process.h"

// Of a function that was compiled once for each instruction set, and is declared for all of them, that of the set which runs:
// STN_CHOSEN(Average, average) is average_baseline, average_v3 or average_v4, an `Average`.
#if defined(STN_BUILT_V3)
#define STN_IN_V3(name) name##_v3
#else
#define STN_IN_V3(name) nullptr
#endif
#if defined(STN_BUILT_V4)
#define STN_IN_V4(name) name##_v4
#else
#define STN_IN_V4(name) nullptr
#endif
#define STN_CHOSEN(Function, name) of_this_set<Function>(name##_baseline, STN_IN_V3(name), STN_IN_V4(name))

namespace stn {
namespace {

template <class Function>
Function of_this_set(Function baseline, Function v3, Function v4) {
    if (v4 && !std::strcmp(instruction_set(), INSTRUCTION_SETS[2])) return v4;
    if (v3 && !std::strcmp(instruction_set(), INSTRUCTION_SETS[1])) return v3;
    return baseline;
}

inline void want(bool fine, const char* what) {
    if (!fine) throw nanobind::value_error(what);
}

}  // namespace
}  // namespace stn
