// A tile's sums for batch normalisation, lane by lane, as registers hold them. Two of each, taken in turn: one would
// wait for itself.
#pragma once

#include "regions.h"

namespace lthfunc {

// Of a value, shifted by one of its own, so that squares don't cancel where the mean is large.
struct ValueSums {
  vec shift, sum[2] = {}, squares[2] = {};

  LTHFUNC_INLINE void begin(vec first) {
    shift = where((first < broadcast(__builtin_inff())) & (first > broadcast(-__builtin_inff())), first, vec{});
  }
  LTHFUNC_INLINE void read(const vec* at) {
    shift = at[0];
    sum[0] = at[1];
    squares[0] = at[2];
  }
  LTHFUNC_INLINE void add(vec value, i64 place) {
    const vec off = value - shift;
    sum[place & 1] += off;
    squares[place & 1] += off * off;
  }
  LTHFUNC_INLINE void write(vec* at) const {
    at[0] = shift;
    at[1] = sum[0] + sum[1];
    at[2] = squares[0] + squares[1];
  }
};

// Of a gradient, and of its products with what was normalised (less its mean).
struct GradientSums {
  vec sum[2] = {}, dot[2] = {};

  LTHFUNC_INLINE void read(const vec* at) {
    sum[0] = at[0];
    dot[0] = at[1];
  }
  LTHFUNC_INLINE void add(vec gradient, vec off, i64 place) {
    sum[place & 1] += gradient;
    dot[place & 1] += gradient * off;
  }
  LTHFUNC_INLINE void write(vec* at) const {
    at[0] = sum[0] + sum[1];
    at[1] = dot[0] + dot[1];
  }
};

// What a gradient meets behind a batch normalisation, of constants from `saved` on: ReLU, and the sums of what passes.
// Without ReLU all gradients pass, since 1 is above zero (and NaN, of endless values, not below): a branch at each
// place would double what is compiled.
struct BehindNorm {
  float mean = 0.0f, factor = 0.0f, summand = 1.0f;

  BehindNorm() = default;
  BehindNorm(const float* saved, bool relu) : mean(saved[mean_of]) {
    if (!relu) return;
    factor = saved[factor_of];
    summand = saved[summand_of];
  }
  // What passes of a gradient at a place where this was normalised.
  LTHFUNC_INLINE vec add(vec gradient, vec value, i64 place, GradientSums& sums) const {
    const vec passed = passing(gradient, value * factor + summand);
    sums.add(passed, value - mean, place);
    return passed;
  }
};

// What batch normalisation wants of a stretch of outputs: their tile's sums, of all channels; where the stretch is the
// tile's first; and, of a gradient, what was normalised, at the first channel.
struct Norm {
  vec* sums;
  bool first;
  const vec* value;
  const halves* half;  // the same, of numbers of 16 bits; one of both, or neither
};
inline Norm norm_of(const products_row& op, const Workspace& m, i64 tile, i64 y, i64 x) {
  if (op.sums < 0) return {nullptr, false, nullptr, nullptr};
  const i64 value = op.norm + tile * op.norm_tile + y * op.norm_row + x;
  return {m.activations + op.sums + tile * op.sums_tile, !op.goes_on && y == 0 && x == 0,
          op.norm < 0 || op.norm_half ? nullptr : m.activations + value,
          op.norm < 0 || !op.norm_half ? nullptr : reinterpret_cast<const halves*>(m.activations) + value};
}

// What becomes of a value's sums that nothing else is done to before they are written, as this kind.
template <typename Kind, int Sums>
LTHFUNC_INLINE void finish_value(vec (&sum)[Sums], const Norm& norm, i64 row) {
  LTHFUNC_UNROLL
  for (int s = 0; s < Sums; ++s) sum[s] = as_held<Kind>(sum[s]);
  if (!norm.sums) return;
  vec* const at = norm.sums + row * VALUE_SUMS;
  ValueSums sums;
  if (norm.first)
    sums.begin(sum[0]);
  else
    sums.read(at);
  LTHFUNC_UNROLL
  for (int s = 0; s < Sums; ++s) sums.add(sum[s], s);
  sums.write(at);
}

// What becomes of a row's sums before they are written, and where batch normalisation wants them added up: what is
// written, of this kind.
template <typename Kind, int Sums>
LTHFUNC_INLINE void finish(vec (&sum)[Sums], const products_row& op, const Workspace& m, const Region& region,
                           const Norm& norm, i64 row, i64 row_out) {
  finish<Kind>(sum, op, m, region, row, row_out);
  if (!norm.value && !norm.half) return finish_value<Kind>(sum, norm, row);
  LTHFUNC_UNROLL
  for (int s = 0; s < Sums; ++s) sum[s] = as_held<Kind>(sum[s]);
  vec* const at = norm.sums + row * GRADIENT_SUMS;
  const BehindNorm behind_norm(m.constants + op.norm_saved + row * SAVED, op.norm_relu);
  GradientSums sums;
  if (!norm.first) sums.read(at);
  const auto add = [&](const auto* normalised) {
    LTHFUNC_UNROLL
    for (int s = 0; s < Sums; ++s) sum[s] = behind_norm.add(sum[s], lthfunc::read(normalised[s]), s, sums);
  };
  if (norm.half)
    add(norm.half + row * op.norm_channel);
  else
    add(norm.value + row * op.norm_channel);
  sums.write(at);
}

// sums: VALUE_SUMS vectors a row and tile, or GRADIENT_SUMS, with `norm` beside each output.
inline void verify_sums(const products_row& op, const Verifier& v) {
  v.require(!op.across && !op.pool, "sums: of a convolution");
  v.require(op.goes_on == 0 || op.goes_on == 1, "goes_on: 0 or 1");
  const i64 each = op.norm < 0 ? VALUE_SUMS : GRADIENT_SUMS;
  v.activations("sums", op.sums, {{v.tiles, op.sums_tile}, {op.rows * each, 1}});
  if (op.norm < 0) return;
  v.activations_of("norm", op.norm_half, op.norm,
                   {{v.tiles, op.norm_tile}, {op.rows, op.norm_channel}, {op.ny, op.norm_row}, {op.nx, 1}});
  v.constants("norm_saved", op.norm_saved, op.rows * SAVED);
}

}  // namespace lthfunc
