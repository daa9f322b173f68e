// What a call has to know of its process: forks, and fresh memory.
#pragma once
#include "pages.h"
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace stn {

// The OpenMP pool does not survive a fork: the child would wait for threads that it does not have.
#if defined(__unix__) || defined(__APPLE__)
inline const pid_t home = getpid();
inline bool forked() { return getpid() != home; }
#else
inline bool forked() { return false; }
#endif

}  // namespace stn
