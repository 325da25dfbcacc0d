// How products of a layer region over their outputs, and what becomes of sums before they are written.
#pragma once

#include "verify.h"

namespace lthfunc {

// `half`, `half_gate`: out and gate where their numbers have 16 bits.
struct Region {
  const vec* in;
  vec* out;
  halves* half;
  const vec* gate;
  const halves* half_gate;
  const vec* added;  // what is added to the outputs, of the first channel; nullptr for nothing
  ivec* codes;
  i64 in_step, out_step;
};

template <typename Kind>
LTHFUNC_INLINE Kind* outputs(const Region& region) {
  if constexpr (std::is_same_v<Kind, halves>)
    return region.half;
  else
    return region.out;
}
template <typename Kind>
LTHFUNC_INLINE const Kind* gate_of(const Region& region) {
  if constexpr (std::is_same_v<Kind, halves>)
    return region.half_gate;
  else
    return region.gate;
}
inline bool writes_halves(const products_row& op) { return op.out_half != 0; }
inline bool writes_halves(const dense_convolutions_row&) { return false; }

// What becomes of a row's sums before they are written as this kind, which the gate has, too.
template <typename Kind, int Sums, typename Row>
LTHFUNC_INLINE void finish(vec (&sum)[Sums], const Row& op, const Workspace& m, const Region& region, i64 row,
                           i64 row_out) {
  if (op.saved >= 0) {
    const float* const saved = m.constants + op.saved + row * SAVED;
    LTHFUNC_UNROLL
    for (int s = 0; s < Sums; ++s) sum[s] = sum[s] * saved[factor_of] + saved[summand_of];
  }
  if (region.added) {
    const vec* const added = region.added + row * op.b_channel;
    LTHFUNC_UNROLL
    for (int s = 0; s < Sums; ++s) sum[s] += added[s];
  }
  if (op.relu) {
    LTHFUNC_UNROLL
    for (int s = 0; s < Sums; ++s) sum[s] = rectified(sum[s]);
  }
  const Kind* const gate = gate_of<Kind>(region);
  if (gate) {
    LTHFUNC_UNROLL
    for (int s = 0; s < Sums; ++s) sum[s] = passing(sum[s], read(gate[row_out + s * region.out_step]));
  }
}

// The maximum of a 2 × 2 window of sums (row after row), or NaN if one is among them. `codes`, where wanted, tell
// the gradient which of the four was the first maximum (the last NaN), or 4 where ReLU cut it off.
template <typename Row>
LTHFUNC_INLINE void write_maximum(const vec (&window)[4], const Row& op, const Workspace& m, const Region& region,
                                  i64 row, i64 out) {
  vec four[4] = {window[0], window[1], window[2], window[3]};
  if (op.saved >= 0) {
    const float* const saved = m.constants + op.saved + row * SAVED;
    LTHFUNC_UNROLL
    for (int s = 0; s < 4; ++s) four[s] = four[s] * saved[factor_of] + saved[summand_of];
  }
  vec most = max(max(four[0], four[1]), max(four[2], four[3]));
  const ivec fine = numbers(four[0], four[1]) & numbers(four[2], four[3]);
  most = where(fine, most, broadcast(__builtin_nanf("")));
  region.out[out] = op.relu ? rectified(most) : most;
  if (region.codes) {
    ivec code = where(four[2] == most, broadcast_int(2), broadcast_int(3));
    code = where(four[0] == most, broadcast_int(0), where(four[1] == most, broadcast_int(1), code));
    if (!all_of(fine)) {
      ivec nan_at{};
      for (int s = 1; s < 4; ++s) nan_at = where(four[s] == four[s], nan_at, broadcast_int(s));
      code = where(fine, code, nan_at);
    }
    if (op.relu) code = where(most <= vec{}, broadcast_int(4), code);
    region.codes[out] = code;
  }
}

// `count` positions in a row, in stretches of nearly even lengths, of `most` at most: each(region, first place,
// size).
template <typename Row, typename Each>
void stretches(const Row& op, const Workspace& m, i64 tile, i64 y, i64 count, i64 most, Each each) {
  const i64 pieces = (count + most - 1) / most;
  const i64 side = op.pool ? 2 : 1;  // outputs of the layer along each side of what is written
  const bool half = writes_halves(op);
  halves* const narrow = reinterpret_cast<halves*>(m.activations);
  for (i64 piece = 0, x = 0; piece < pieces; ++piece) {
    const i64 size = count / pieces + (piece < count % pieces);
    const i64 out = op.out_tile * tile + op.out_y * y + op.out_x * x;
    each(Region{m.activations + op.in + op.in_tile * tile + side * (op.in_y * y + op.in_x * x),
                half ? nullptr : m.activations + op.out + out, half ? narrow + op.out + out : nullptr,
                op.gate < 0 || half ? nullptr : m.activations + op.gate + out,
                op.gate < 0 || !half ? nullptr : narrow + op.gate + out,
                op.b < 0 ? nullptr : m.activations + op.b + op.b_tile * tile + op.b_row * y + x,
                op.codes < 0 ? nullptr : reinterpret_cast<ivec*>(m.activations + op.codes + out), op.in_x, op.out_x},
         x, size);
    x += size;
  }
}

// What is read around `in` by lists of `entries`, and rows of outputs with what belongs to them. across: the positions
// are the tiles. out is none of the others; b, the gate and the codes lie as their steps say, the latter two as out,
// whose kind the gate has.
template <typename Row>
void verify_region(const Row& op, Verifier& v, i64 entries, Range offsets, bool across) {
  const i64 side = op.pool ? 2 : 1, ny = across ? 1 : op.ny, nx = across ? 1 : op.nx;
  v.require(op.ny >= 0 && op.nx >= 0 && !(across && op.pool), "ny, nx and pool: out of range");
  if (entries > 0)
    v.activations("in", op.in, {{v.tiles, across ? op.in_x : op.in_tile}, {side * ny, op.in_y}, {side * nx, op.in_x}},
                  offsets);
  const Range rows = v.list("row_out", op.row_out, op.rows);
  const auto written = [&](const char* name, bool half, i64 first) {
    v.activations_of(name, half, first, {{v.tiles, across ? op.out_x : op.out_tile}, {ny, op.out_y}, {nx, op.out_x}},
                     rows);
  };
  written("out", writes_halves(op), op.out);
  if (op.gate >= 0) written("gate", writes_halves(op), op.gate);
  if (op.codes >= 0) written("codes", false, op.codes);
  if (op.b >= 0)
    v.activations("b", op.b, {{v.tiles, across ? 1 : op.b_tile}, {op.rows, op.b_channel}, {ny, op.b_row}, {nx, 1}});
  if (op.saved >= 0) v.constants("saved", op.saved, op.rows * SAVED);
  if (op.bias >= 0) v.values("bias", op.bias, {{op.rows, 1}});
}

}  // namespace lthfunc
