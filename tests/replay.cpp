// Runs warps that standard input describes, and writes their results to standard output: the kernels of another processor, under an
// emulator, where there is no Python.
//
// A case is 64-bit numbers, the seven options and how many arrays are given; then type, rank and shape of each of them and of the
// result; then the bytes of those that are given.
#include <cstdio>
#include <vector>

#include "arrays.h"

namespace {

using stn::i64;

constexpr std::size_t SIZE[] = {4, 8, 2, 2, 1};

bool read(void* into, std::size_t bytes) { return std::fread(into, 1, bytes, stdin) == bytes; }

struct Kept {
    i64 type, rank;
    i64 shape[8];
    std::vector<char> data;

    bool describe() {
        if (!read(&type, 8) || !read(&rank, 8) || rank > 8 || !read(shape, std::size_t(rank) * 8)) return false;
        i64 count = 1;
        for (i64 a = 0; a < rank; a++) count *= shape[a];
        data.resize(std::size_t(count) * SIZE[type]);
        return true;
    }
    stn::Array array() { return {int(type), int(rank), shape, data.data()}; }
};

int fail(const char* reason) {
    std::fprintf(stderr, "%s\n", reason);
    return 1;
}

}  // namespace

int main() {
    i64 head[stn::OPTIONS + 1];
    while (read(head, sizeof(head))) {
        std::vector<Kept> kept(std::size_t(head[stn::OPTIONS]) + 1);
        for (Kept& one : kept)
            if (!one.describe()) return fail("a case ends in the middle");
        std::vector<stn::Array> given;
        for (std::size_t k = 0; k + 1 < kept.size(); k++) {
            if (!read(kept[k].data.data(), kept[k].data.size())) return fail("a case ends in the middle");
            given.push_back(kept[k].array());
        }
        const stn::Options options = {head[0], head[1], head[2], head[3], head[4], head[5], head[6]};
        const char* wrong = stn::run_arrays(options, {given.data(), int(given.size()), kept.back().array()});
        if (wrong) return fail(wrong);
        std::fwrite(kept.back().data.data(), 1, kept.back().data.size(), stdout);
    }
    return 0;
}
