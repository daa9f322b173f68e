// The division of work among threads.
#pragma once
#include "api.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace stn::STN_SET {
namespace {

// Runs f(task) for every task on up to `most` threads, each of which has at least `share` of the work.
template <class F>
void for_tasks(i64 tasks, double work, double share, int most, F f) {
    i64 worth = i64(work / share) + 1;
    int threads = int(worth < most ? worth : most);
    if (threads > tasks) threads = int(tasks);
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
        for (i64 task = 0; task < tasks; task++) f(task);
        return;
    }
#endif
    for (i64 task = 0; task < tasks; task++) f(task);
}

}  // namespace
}  // namespace stn::STN_SET
