// Gradients of linear layers' surviving weights: the gradients of all tiles stay in registers for a whole row.
#include "gradients.h"

namespace lthfunc {
namespace {

// More: with more tiles than Held.
template <int Count, int Held, bool More>
LTHFUNC_INLINE void across_tiles(const vec (&held)[Held], const Sides& at, i64 tiles, const i32* offset, i64 count,
                                 float* gradient) {
  vec sum[Count][1] = {}, whole[Count];
  add_places<Count, Held, false, 1>(sum, held, at.in, at.in_step, offset);
  if constexpr (More) {
    for (i64 p = Held; p < tiles; ++p) {
      const vec one[1] = {at.grad[p * at.grad_step]};
      add_places<Count, 1, false, 1>(sum, one, at.in + p * at.in_step, 0, offset);
    }
  }
  LTHFUNC_UNROLL
  for (int k = 0; k < Count; ++k) whole[k] = sum[k][0];
  write(whole, gradient, count, false);
}

// All survivors of one row.
template <int Held, bool More = false>
void across(Sides at, i64 tiles, const i32* offset, i64 left, float* gradient) {
  vec held[Held];
  hold<Held, false>(held, at.grad, at.grad_step);
  i32 memory[MOST_ACROSS];
  for (i64 count = MOST_ACROSS; left > 0; left -= count, offset += count, gradient += count) {
    count = std::min<i64>(left, MOST_ACROSS);
    const i64 built = count > 8 ? MOST_ACROSS : count > 4 ? 8 : 4;
    const i32* const from = padded(offset, count, built, memory);
    if (built == MOST_ACROSS)
      across_tiles<MOST_ACROSS, Held, More>(held, at, tiles, from, count, gradient);
    else if (MOST_ACROSS > 8 && built == 8)
      across_tiles<(MOST_ACROSS > 8 ? 8 : MOST_ACROSS), Held, More>(held, at, tiles, from, count, gradient);
    else
      across_tiles<4, Held, More>(held, at, tiles, from, count, gradient);
  }
}

}  // namespace

Across across_of(i64 tiles) {
  switch (tiles) {
    case 1: return across<1>;
    case 2: return across<2>;
#ifdef __AVX512F__
    case 3: return across<3>;
    case 5: return across<5>;
    case 6: return across<6>;
    case 7: return across<7>;
    case 8: return across<8>;
    default: return across<4, true>;
#else
    default: return across<2, true>;
#endif
  }
}

}  // namespace lthfunc
