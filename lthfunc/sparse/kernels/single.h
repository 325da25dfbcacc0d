// Programs for one example at a time, on the memory of a program for tiles.
#pragma once

#include "machine.h"

namespace lthfunc {

// Whether every instruction of a program, without gradients, has a kernel for one example.
bool has_single(const i64* program, i64 width, i64 count);
void run_single(const i64* program, i64 width, i64 count, Memory& memory);

}  // namespace lthfunc
