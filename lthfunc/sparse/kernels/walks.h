// How products of a layer walk over their outputs, and what becomes of sums before they are written.
#pragma once

#include "machine.h"

namespace lthfunc {

struct Walk {
  const vec* in;
  vec* out;
  const vec* gate;
  const vec* added;  // what is added to the outputs, of the first channel; nullptr for nothing
  ivec* codes;
  i64 in_step, out_step;
};

// What becomes of a row's sums before they are written.
template <int Sums, typename Row>
LTHFUNC_INLINE void finish(vec (&sum)[Sums], const Row& i, const Memory& m, const Walk& walk, i64 row, i64 row_out) {
  if (i.saved >= 0) {
    const float* const saved = m.constants + i.saved + row * SAVED;
    LTHFUNC_UNROLL
    for (int s = 0; s < Sums; ++s) sum[s] = sum[s] * saved[factor_of] + saved[summand_of];
  }
  if (walk.added) {
    const vec* const added = walk.added + row * i.b_channel;
    LTHFUNC_UNROLL
    for (int s = 0; s < Sums; ++s) sum[s] += added[s];
  }
  if (i.relu) {
    LTHFUNC_UNROLL
    for (int s = 0; s < Sums; ++s) sum[s] = rectified(sum[s]);
  }
  if (walk.gate) {
    const vec* const gate = walk.gate + row_out;
    LTHFUNC_UNROLL
    for (int s = 0; s < Sums; ++s) sum[s] = passing(sum[s], gate[s * walk.out_step]);
  }
}

// The maximum of a 2 × 2 window of sums (row after row), or what is no number among them. `codes`, where wanted, tell the
// gradient which of the four was the first maximum (the last that is no number), or 4 where ReLU cut it off.
template <typename Row>
LTHFUNC_INLINE void write_maximum(const vec (&window)[4], const Row& i, const Memory& m, const Walk& walk, i64 row, i64 out) {
  vec four[4] = {window[0], window[1], window[2], window[3]};
  if (i.saved >= 0) {
    const float* const saved = m.constants + i.saved + row * SAVED;
    LTHFUNC_UNROLL
    for (int s = 0; s < 4; ++s) four[s] = four[s] * saved[factor_of] + saved[summand_of];
  }
  vec most = larger(larger(four[0], four[1]), larger(four[2], four[3]));
  const ivec fine = numbers(four[0], four[1]) & numbers(four[2], four[3]);
  most = where(fine, most, all(__builtin_nanf("")));
  walk.out[out] = i.relu ? rectified(most) : most;
  if (walk.codes) {
    ivec code = where(four[2] == most, all_int(2), all_int(3));
    code = where(four[0] == most, all_int(0), where(four[1] == most, all_int(1), code));
    if (!all_of(fine)) {
      ivec odd{};
      for (int s = 1; s < 4; ++s) odd = where(four[s] == four[s], odd, all_int(s));
      code = where(fine, code, odd);
    }
    if (i.relu) code = where(most <= vec{}, all_int(4), code);
    walk.codes[out] = code;
  }
}

// So many places in a row, in stretches of nearly even lengths, each of at most so many: each(walk, first place, size).
template <typename Row, typename Each>
void stretches(const Row& i, const Memory& m, i64 tile, i64 y, i64 count, i64 most, Each each) {
  const i64 pieces = (count + most - 1) / most;
  const i64 side = i.pool ? 2 : 1;  // outputs of the layer along each side of what is written
  for (i64 piece = 0, x = 0; piece < pieces; ++piece) {
    const i64 size = count / pieces + (piece < count % pieces);
    const i64 out = i.out_tile * tile + i.out_y * y + i.out_x * x;
    each(Walk{m.activations + i.in + i.in_tile * tile + side * (i.in_y * y + i.in_x * x),
              m.activations + i.out + out,
              i.gate < 0 ? nullptr : m.activations + i.gate + out,
              i.b < 0 ? nullptr : m.activations + i.b + i.b_tile * tile + i.b_row * y + x,
              i.codes < 0 ? nullptr : reinterpret_cast<ivec*>(m.activations + i.codes + out),
              i.in_x,
              i.out_x},
         x, size);
    x += size;
  }
}

}  // namespace lthfunc
