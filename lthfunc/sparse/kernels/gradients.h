// Sums of gradients over positions and tiles, for some survivors of a row at once.
#pragma once

#include <algorithm>

#include "bitmasks.h"

namespace lthfunc {

// Survivors summed at once, positions held, and vectors of both for which there are registers; and survivors of a
// linear layer, which leave room for the positions of all tiles.
#ifdef __AVX512F__
constexpr int MOST = 16, HELD = 8, ROOM = 24, MOST_ACROSS = 16;
#else
constexpr int MOST = 6, HELD = 2, ROOM = 7, MOST_ACROSS = 4;
#endif

struct Sides {
  const vec* in;
  const vec* grad;
  i64 in_step, grad_step;
};

template <int Count, int Held, bool Unit, int Ways>
LTHFUNC_INLINE void add_places(vec (&sum)[Count][Ways], const vec (&held)[Held], const vec* in, i64 step,
                               const i32* offset) {
  const vec* from[Unit ? 1 : Held];
  LTHFUNC_UNROLL
  for (int p = 0; p < (Unit ? 1 : Held); ++p) from[p] = in + p * step;
  LTHFUNC_UNROLL
  for (int k = 0; k < Count; ++k) {
    const i64 bytes = offset[k];
    LTHFUNC_UNROLL
    for (int p = 0; p < Held; ++p)
      sum[k][p % Ways] += held[p] * behind(from[Unit ? 0 : p], bytes + (Unit ? p * BYTES : 0));
  }
}

template <int Held, bool Unit>
LTHFUNC_INLINE void hold(vec (&held)[Held], const vec* grad, i64 step) {
  LTHFUNC_UNROLL
  for (int p = 0; p < Held; ++p) held[p] = grad[Unit ? p : p * step];
}

// Offsets of `count` survivors for a kernel of more, which sums the last one again.
LTHFUNC_INLINE const i32* padded(const i32* offset, i64 count, i64 built, i32* memory) {
  if (count == built) return offset;
  for (i64 k = 0; k < built; ++k) memory[k] = offset[k < count ? k : count - 1];
  return memory;
}

// Lanes added up and the first `count` sums written.
template <int Count>
LTHFUNC_INLINE void write(const vec (&sum)[Count], float* gradient, i64 count, bool again) {
  vec total = sums_of(sum);
#ifdef __AVX512F__
  const __mmask16 some = low_bits(static_cast<int>(count));
  if (again) total += _mm512_maskz_loadu_ps(some, gradient);
  _mm512_mask_storeu_ps(gradient, some, total);
#else
  for (i64 k = 0; k < count; ++k) gradient[k] = total[k] + (again ? gradient[k] : 0.0f);
#endif
}

// All survivors of a linear layer's rows, whose positions are the tiles (linear_gradients.cpp).
using Across = void (*)(Sides, i64 tiles, const i32* offset, i64 left, float* gradient);
Across across_of(i64 tiles);

}  // namespace lthfunc
