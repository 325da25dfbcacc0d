// Products of lists that leave out what lies outside the image (sparse_products.cpp).
#pragma once

#include <algorithm>

#include "batch_sums.h"

namespace lthfunc {
namespace {

// run_list for the sums from Left on, but for the last Right.
template <int Left, int Right, int Sums>
LTHFUNC_INLINE void run_window(vec (&sum)[Sums], const vec* in, const i32* offset, const i32* which, const float* value,
                               i64 count) {
  if constexpr (Left + Right < Sums) {
    for (i64 k = 0; k < count; ++k) {
      const i64 bytes = offset[k];
      const vec weight = broadcast(value[which[k]]);
      LTHFUNC_UNROLL
      for (int s = Left; s < Sums - Right; ++s) sum[s] += weight * behind(in, bytes + s * BYTES);
    }
  }
}

// Kernel columns in turn, each with what it lacks of a stretch at its left and at its right end; and the kernel rows
// that lie inside the image.
struct Window {
  const i32* columns;
  i64 first, size;  // of the stretch
  i64 part;         // of the channels
  i64 from, to;     // kernel rows

  i64 left(i64 column) const { return std::max<i64>(columns[2 * column] - first, 0); }
  i64 right(i64 column) const { return std::max<i64>(first + size - columns[2 * column + 1], 0); }
};

// One list for the sums inside its window. A window's number is left · (MAX_MISSING + 1) + right.
template <int Sums>
LTHFUNC_INLINE void run_windowed(i64 window, vec (&sum)[Sums], const vec* in, const i32* offset, const i32* which,
                                 const float* value, i64 count) {
#define LTHFUNC_WINDOW(left, right) \
  case left*(MAX_MISSING + 1) + right: return run_window<left, right>(sum, in, offset, which, value, count)
  switch (window) {
    LTHFUNC_WINDOW(0, 0);
    LTHFUNC_WINDOW(0, 1);
    LTHFUNC_WINDOW(0, 2);
    LTHFUNC_WINDOW(0, 3);
    LTHFUNC_WINDOW(0, 4);
    LTHFUNC_WINDOW(1, 0);
    LTHFUNC_WINDOW(1, 1);
    LTHFUNC_WINDOW(1, 2);
    LTHFUNC_WINDOW(1, 3);
    LTHFUNC_WINDOW(2, 0);
    LTHFUNC_WINDOW(2, 1);
    LTHFUNC_WINDOW(2, 2);
    LTHFUNC_WINDOW(3, 0);
    LTHFUNC_WINDOW(3, 1);
    LTHFUNC_WINDOW(4, 0);
    default: __builtin_trap();  // no program that is verified has another one
  }
#undef LTHFUNC_WINDOW
}

// All rows of one stretch, whose sums stay in registers while one kernel column after the other adds to those of them
// that lie inside the image for it.
template <int Sums>
void windowed_stretch(const products_row& op, const Workspace& m, Region region, const Norm& norm, Window window,
                      i64 from, i64 to) {
  const i32* const row_out = m.lists + op.row_out;
  const float* const values = m.values + op.values;
  const i64 in_part = op.kernel_x * op.kernel_y, parts = op.blocks / in_part;
  const i32* const starts = m.lists + op.starts + window.part * in_part;
  const bool fresh = window.part == 0 && !op.accumulate;
  for (i64 row = from; row < to; ++row) {
    vec* const out = region.out + row_out[row];
    vec sum[Sums];
    const vec bias = broadcast(op.bias < 0 ? 0.0f : m.values[op.bias + row]);
    LTHFUNC_UNROLL
    for (int s = 0; s < Sums; ++s) sum[s] = fresh ? bias : out[s * region.out_step];
    for (i64 column = 0; column < op.kernel_x; ++column) {
      const i32* const at = starts + row * op.blocks + column * op.kernel_y;
      const i64 begin = at[window.from], count = at[window.to] - begin;
      if (count == 0) continue;
      run_windowed(window.left(column) * (MAX_MISSING + 1) + window.right(column), sum, region.in,
                   m.lists + op.offsets + begin, m.lists + op.which + begin, values, count);
    }
    if (window.part == parts - 1) finish<vec>(sum, op, m, region, norm, row, row_out[row]);
    LTHFUNC_UNROLL
    for (int s = 0; s < Sums; ++s) out[s * region.out_step] = sum[s];
  }
}

// The kernel for a stretch's number of sums.
template <int Sums = MAX_SUMS>
auto windowed_of(i64 sums) {
  if constexpr (Sums > 1) {
    if (sums < Sums) return windowed_of<Sums - 1>(sums);
  }
  return windowed_stretch<Sums>;
}

// Without the entries that would read outside the image. `limits`: the positions (from, to) inside it for all kernel
// columns, then those for all kernel rows.
void windowed(const products_row& op, const Workspace& m, i64 tile, i64 y, Part part) {
  const i32* const columns = m.lists + op.limits;
  const i32* const rows = columns + 2 * op.kernel_x;
  i64 from = 0, to = op.kernel_y;
  while (from < to && !(rows[2 * from] <= y && y < rows[2 * from + 1])) ++from;
  while (to > from && !(rows[2 * to - 2] <= y && y < rows[2 * to - 1])) --to;
  stretches(op, m, tile, y, op.nx, MAX_SUMS, [&](const Region& region, i64 x, i64 size) {
    const auto kernel = windowed_of(size);
    const Norm norm = norm_of(op, m, tile, y, x);
    for (i64 channels = 0; channels < op.blocks / (op.kernel_x * op.kernel_y); ++channels)
      kernel(op, m, region, norm, {columns, x, size, channels, from, to}, part.row, part.rows);
  });
}

}  // namespace
}  // namespace lthfunc
