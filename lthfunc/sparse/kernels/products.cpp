// Sparse × dense: rows of outputs from lists of surviving weights.
//
// A few outputs of one row stay in registers while the row's list runs: each weight is one broadcast and as many
// multiply-adds with memory operands. No lane depends on the mask, so no pattern of survivors is slower than another.
#include <algorithm>

#include "machine.h"

namespace lthfunc {
namespace {

template <int Sums, bool Unit, bool Indexed>
LTHFUNC_INLINE void run_list(vec (&sum)[Sums], const vec* in, i64 step, const i32* offset, const i32* which,
                             const float* value, i64 count) {
  for (i64 k = 0; k < count; ++k) {
    const vec* place = in + offset[k];
    const vec weight = all(Indexed ? value[which[k]] : value[k]);
    LTHFUNC_UNROLL
    for (int s = 0; s < Sums; ++s) sum[s] += weight * place[Unit ? s : s * step];
  }
}

struct Walk {
  const vec* in;
  vec* out;
  const vec* gate;
  i64 in_step, out_step;
};

// All rows of one stretch of outputs.
template <int Sums, bool Unit, bool Indexed>
void stretch(const products_row& i, const Memory& m, Walk walk, i64 from, i64 to) {
  const i32* const starts = m.lists + i.starts;
  const i32* const offsets = m.lists + i.offsets;
  const i32* const which = m.lists + i.which;
  const i32* const row_out = m.lists + i.row_out;
  const float* const values = m.values + i.values;
  for (i64 block = 0; block < i.blocks; ++block) {
    const i32* const start = starts + block * i.rows;
    const bool first = block == 0, last = block == i.blocks - 1;
    for (i64 row = from; row < to; ++row) {
      vec* const out = walk.out + row_out[row];
      vec sum[Sums];
      if (!first || i.accumulate) {
        LTHFUNC_UNROLL
        for (int s = 0; s < Sums; ++s) sum[s] = out[s * walk.out_step];
      } else {
        const vec bias = all(i.bias < 0 ? 0.0f : m.values[i.bias + row]);
        LTHFUNC_UNROLL
        for (int s = 0; s < Sums; ++s) sum[s] = bias;
      }
      const i64 begin = start[row];
      run_list<Sums, Unit, Indexed>(sum, walk.in, walk.in_step, offsets + begin, which + begin,
                                    Indexed ? values : values + begin, start[row + 1] - begin);
      if (last && i.relu) {
        LTHFUNC_UNROLL
        for (int s = 0; s < Sums; ++s) sum[s] = larger(sum[s], vec{});
      }
      if (last && walk.gate) {
        const vec* const gate = walk.gate + row_out[row];
        LTHFUNC_UNROLL
        for (int s = 0; s < Sums; ++s) sum[s] = gate[s * walk.out_step] > vec{} ? sum[s] : vec{};
      }
      LTHFUNC_UNROLL
      for (int s = 0; s < Sums; ++s) out[s * walk.out_step] = sum[s];
    }
  }
}

using Stretch = void (*)(const products_row&, const Memory&, Walk, i64, i64);

template <int Sums>
Stretch choose(bool unit, bool indexed) {
  if (unit) return indexed ? stretch<Sums, true, true> : stretch<Sums, true, false>;
  return indexed ? stretch<Sums, false, true> : stretch<Sums, false, false>;
}

template <int... Sums>
Stretch choose_among(i64 sums, bool unit, bool indexed) {
  Stretch found = nullptr;
  (void)((sums == Sums ? (found = choose<Sums>(unit, indexed), true) : false) || ...);
  return found;
}

Stretch stretch_of(i64 sums, bool unit, bool indexed) {
#ifdef __AVX512F__
  return choose_among<1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16>(sums, unit, indexed);
#else
  return choose_among<1, 2, 3, 4, 5, 6>(sums, unit, indexed);
#endif
}

}  // namespace

void products(const products_row& i, Memory& m, Part part) {
  const i64 nx = i.across ? m.tiles : i.nx;
  // Linear layers: as many tiles at once as a block of inputs is cut for, so that it stays in the first cache.
  const i64 most = i.across ? std::min<i64>(i.across, MOST_SUMS) : MOST_SUMS;
  const i64 pieces = (nx + most - 1) / most;
  const i64 least = nx / pieces, longer = nx % pieces;
  const bool unit = i.in_x == 1;
  const Stretch of_least = stretch_of(least, unit, i.which >= 0);
  const Stretch of_longer = longer ? stretch_of(least + 1, unit, i.which >= 0) : of_least;
  const i64 first = i.across ? 0 : part.tile, end = i.across ? 1 : part.tiles;
  for (i64 tile = first; tile < end; ++tile) {
    for (i64 y = 0; y < i.ny; ++y) {
      for (i64 piece = 0, x = 0; piece < pieces; ++piece) {
        const bool is_longer = piece < longer;
        const i64 out = i.out_tile * tile + i.out_y * y + i.out_x * x;
        const Walk walk{m.activations + i.in + i.in_tile * tile + i.in_y * y + i.in_x * x, m.activations + i.out + out,
                        i.gate < 0 ? nullptr : m.activations + i.gate + out, i.in_x, i.out_x};
        (is_longer ? of_longer : of_least)(i, m, walk, part.row, part.rows);
        x += least + is_longer;
      }
    }
  }
}

}  // namespace lthfunc
