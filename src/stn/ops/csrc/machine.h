// The instruction sets, from the oldest on, and what this processor has. They are named as the compilers name them.
#pragma once

namespace stn {

constexpr const char* INSTRUCTION_SETS[] = {"baseline", "x86-64-v3", "x86-64-v4"};

// Index of the newest one that this processor has.
inline int newest() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2"))) return 0;
    bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return wide ? 2 : 1;
#else
    return 0;
#endif
}

}  // namespace stn
