// Which instruction set runs: the newest one that was built and that this processor has.
#include <cstring>

#include "api.h"
#include "machine.h"

namespace stn {

// CMakeLists.txt defines STN_BUILT_... for what it builds.
#define STN_DECLARE(set)                 \
    Status run_##set##_f32(const Problem&);  \
    Status run_##set##_f64(const Problem&);  \
    Status run_##set##_bf16(const Problem&); \
    Status run_##set##_f16(const Problem&);  \
    Status run_##set##_u8(const Problem&);   \
    Status polynomials_##set##_f32(const Problem&); \
    Status polynomials_##set##_f64(const Problem&);
#define STN_TABLE(set) {run_##set##_f32, run_##set##_f64, run_##set##_bf16, run_##set##_f16, run_##set##_u8, polynomials_##set##_f32, polynomials_##set##_f64}

STN_DECLARE(baseline)
#if defined(STN_BUILT_V3)
STN_DECLARE(v3)
#endif
#if defined(STN_BUILT_V4)
STN_DECLARE(v4)
#endif

namespace {

const Run built[][TYPES + 2] = {  // in the order of INSTRUCTION_SETS, empty where not built
    STN_TABLE(baseline),
#if defined(STN_BUILT_V3)
    STN_TABLE(v3),
#else
    {},
#endif
#if defined(STN_BUILT_V4)
    STN_TABLE(v4),
#else
    {},
#endif
};
constexpr int SETS = sizeof(built) / sizeof(built[0]);

int current = 0;

}  // namespace

bool is_built(int set) { return built[set][0] != nullptr; }

const char* choose(const char* limit) {
    int most = newest();
    if (*limit) {
        int named = 0;
        while (named < SETS && std::strcmp(limit, INSTRUCTION_SETS[named])) named++;
        if (named == SETS) return nullptr;
        most = named < most ? named : most;
    }
    while (!is_built(most)) most--;
    current = most;
    return instruction_set();
}

const char* instruction_set() { return INSTRUCTION_SETS[current]; }

Run chosen(int type) { return built[current][type]; }

Run chosen_polynomials(int type) { return built[current][TYPES + type]; }

}  // namespace stn
