// Gradients that are added to what is there: all rows' products of a stretch are in a near cache, and what is read
// beside them comes from memory in turn, place by place and fetched ahead. In registers, as `finish` has them, there
// would be sixteen places of one after sixteen of the other, and each of these would be waited for.
#pragma once

#include "batch_sums.h"

namespace lthfunc {
namespace {

// What lies beside a stretch of outputs of one kind: the outputs, their gate, and what was normalised, of either kind.
template <typename Kind, typename Value>
struct Beside {
  Kind* out;
  const Kind* gate;
  const Value* value;
};

template <typename Kind, typename Value>
Beside<Kind, Value> beside(const products_row& op, const Region& region, const Norm& norm, i64 row, i64 row_out) {
  const Kind* const gate = gate_of<Kind>(region);
  const Value* value = nullptr;
  if constexpr (std::is_same_v<Value, halves>)
    value = norm.half;
  else
    value = norm.value;
  return {outputs<Kind>(region) + row_out, gate ? gate + row_out : nullptr,
          value ? value + row * op.norm_channel : nullptr};
}

// What `finish` does, with the same bits, of a stretch's sums in turn. later: what is fetched meanwhile.
template <typename Kind, typename Value>
void add_in_turn(const products_row& op, const Workspace& m, const vec* sums, i64 count, const Beside<Kind, Value>& at,
                 const Beside<Kind, Value>& later, const Norm& norm, i64 row) {
  BehindNorm behind_norm;
  if (at.value) behind_norm = BehindNorm(m.constants + op.norm_saved + row * SAVED, op.norm_relu);
  vec* const total = at.value ? norm.sums + row * GRADIENT_SUMS : nullptr;
  GradientSums added;
  if (total && !norm.first) added.read(total);
  for (i64 s = 0; s < count; ++s) {
    const i64 place = s * op.out_x;
    fetch(later.out + place);
    vec sum = sums[s] + read(at.out[place]);
    if (at.gate) {
      fetch(later.gate + place);
      sum = passing(sum, read(at.gate[place]));
    }
    sum = as_held<Kind>(sum);
    if (at.value) {
      fetch(later.value + s);
      sum = behind_norm.add(sum, read(at.value[s]), s, added);
    }
    write(at.out[place], sum);
  }
  if (total) added.write(total);
}

// All rows of one stretch of outputs, whose sums lie one row after the other.
template <typename Kind, typename Value>
void add_gradients(const products_row& op, const Workspace& m, const Region& region, const Norm& norm, const vec* sums,
                   i64 size, Part part) {
  const i32* const row_out = m.lists + op.row_out;
  const i64 ahead = std::max<i64>(AHEAD / size, 1);
  for (i64 row = part.row; row < part.rows; ++row, sums += size) {
    const i64 next = std::min(row + ahead, part.rows - 1);
    add_in_turn(op, m, sums, size, beside<Kind, Value>(op, region, norm, row, row_out[row]),
                beside<Kind, Value>(op, region, norm, next, row_out[next]), norm, row);
  }
}

inline void add_gradients(const products_row& op, const Workspace& m, const Region& region, const Norm& norm,
                          const vec* sums, i64 size, Part part) {
  const auto finish = op.out_half ? (op.norm_half ? add_gradients<halves, halves> : add_gradients<halves, vec>)
                                  : (op.norm_half ? add_gradients<vec, halves> : add_gradients<vec, vec>);
  finish(op, m, region, norm, sums, size, part);
}

}  // namespace
}  // namespace lthfunc
