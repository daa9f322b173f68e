// Prints the newest instruction set of this machine, for CMakeLists.txt.
#include <cstdio>

#include "machine.h"

int main() { std::puts(stn::INSTRUCTION_SETS[stn::newest()]); }
