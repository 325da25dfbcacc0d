// Cells of recurrent layers: what a unit makes of its gates at one step of a sequence, and the gradient of that.
//
// Gates are the inputs' and the state's products with their weights; they are overwritten by what they become, which
// the gradient needs. Equations: Hochreiter & Schmidhuber 1997 with Gers et al.'s forget gates, and Cho et al. 2014, in
// the order of PyTorch's weights.
#include <algorithm>

#include "single.h"

namespace lthfunc {
namespace {

enum Recurrent : i64 {
#define RECURRENT(name) recurrent_##name,
#include "instructions.def"
  recurrent_kinds
};

i64 gates_of(i64 kind) { return kind == recurrent_lstm ? 4 : kind == recurrent_gru ? 3 : 1; }

// A buffer of `each` numbers for each unit, one channel each, at one place of each tile.
#define LTHFUNC_UNITS(name, first, each) \
  v.activations(#first, op.first, {{v.tiles, op.name##_tile}, {(each) * op.rows, op.name##_channel}})
#define LTHFUNC_UNIT(name, first, number) \
  (m.activations + op.first + tile * op.name##_tile + ((number) * op.rows + unit) * op.name##_channel)

template <typename Row>
void verify_cell(const Row& op, Verifier& v) {
  v.require(op.kind >= 0 && op.kind < recurrent_kinds, "kind: a known one");
  LTHFUNC_UNITS(gates, gates, gates_of(op.kind));
  LTHFUNC_UNITS(state, state, 1);
  if (op.state_before >= 0) LTHFUNC_UNITS(state, state_before, 1);
  if (op.kind == recurrent_lstm) {
    LTHFUNC_UNITS(cell, cell, 1);
    if (op.cell_before >= 0) LTHFUNC_UNITS(cell, cell_before, 1);
  }
  if (op.kind == recurrent_gru) LTHFUNC_UNITS(hidden, hidden, 3);
}

}  // namespace

// gates: the inputs' products, and but for GRUs the state's as well, whose bias is added here. hidden: GRUs' products
// of the state, where there is one before. All of them apart, but for a step and the one before, which may lie in one
// place: a unit is read before it is written.
void verify(const recurrent_cell_row& op, Verifier& v) {
  verify_cell(op, v);
  if (op.bias >= 0) v.values("bias", op.bias, {{gates_of(op.kind) * op.rows, 1}});
}

namespace {

// A step of 16 units, or of one unit of 16 examples. units: reads and writes them, by where a buffer begins, its steps
// to the next tile and channel, and which of a unit's numbers is meant.
template <typename Units>
LTHFUNC_INLINE void take_step(const recurrent_cell_row& op, const Units& units) {
  const auto gate = [&](i64 number) { return units.read(op.gates, op.gates_tile, op.gates_channel, number); };
  const auto keep_gate = [&](i64 number, vec value) {
    units.write(op.gates, op.gates_tile, op.gates_channel, number, value);
  };
  const auto bias = [&](i64 number) { return units.bias(op.bias, number); };
  vec state;
  if (op.kind == recurrent_lstm) {
    const vec in = logistic(gate(0) + bias(0)), keep = logistic(gate(1) + bias(1));
    const vec value = tangent(gate(2) + bias(2)), out = logistic(gate(3) + bias(3));
    vec cell = in * value;
    if (op.cell_before >= 0) cell += keep * units.read(op.cell_before, op.cell_tile, op.cell_channel, 0);
    keep_gate(0, in);
    keep_gate(1, keep);
    keep_gate(2, value);
    keep_gate(3, out);
    units.write(op.cell, op.cell_tile, op.cell_channel, 0, cell);
    state = out * tangent(cell);
  } else if (op.kind == recurrent_gru) {
    const auto hidden = [&](i64 number) {
      if (op.state_before < 0) return bias(number);
      return units.read(op.hidden, op.hidden_tile, op.hidden_channel, number) + bias(number);
    };
    const vec reset = logistic(gate(0) + hidden(0)), update = logistic(gate(1) + hidden(1));
    const vec candidate = hidden(2), value = tangent(gate(2) + reset * candidate);
    state = (1.0f - update) * value;
    if (op.state_before >= 0) state += update * units.read(op.state_before, op.state_tile, op.state_channel, 0);
    keep_gate(0, reset);
    keep_gate(1, update);
    keep_gate(2, value);
    units.write(op.hidden, op.hidden_tile, op.hidden_channel, 2, candidate);
  } else {
    const vec sum = gate(0) + bias(0);
    state = op.kind == recurrent_tanh ? tangent(sum) : rectified(sum);
  }
  units.write(op.state, op.state_tile, op.state_channel, 0, state);
}

// A unit of 16 examples.
struct UnitOfTile {
  const Workspace& m;
  i64 rows, tile, unit;

  LTHFUNC_INLINE vec& at(i64 first, i64 tile_step, i64 channel, i64 number) const {
    return m.activations[first + tile * tile_step + (number * rows + unit) * channel];
  }
  LTHFUNC_INLINE vec read(i64 first, i64 tile_step, i64 channel, i64 number) const {
    return at(first, tile_step, channel, number);
  }
  LTHFUNC_INLINE void write(i64 first, i64 tile_step, i64 channel, i64 number, vec value) const {
    at(first, tile_step, channel, number) = value;
  }
  LTHFUNC_INLINE vec bias(i64 first, i64 number) const {
    return broadcast(first < 0 ? 0.0f : m.values[first + number * rows + unit]);
  }
};

// Up to 16 units of one example, which lie side by side where there is one step, and a sequence apart otherwise.
struct UnitsOfExample {
  const Workspace& m;
  i64 rows, unit, count;

  LTHFUNC_INLINE float* at(i64 first, i64 channel, i64 number) const {
    return place(m, first) + (number * rows + unit) * channel;
  }
  LTHFUNC_INLINE vec read(i64 first, i64, i64 channel, i64 number) const {
    const float* const from = at(first, channel, number);
    if (channel == 1) return load(from, count);
    float found[LANES] = {};
    for (i64 k = 0; k < count; ++k) found[k] = from[k * channel];
    return load(found);
  }
  LTHFUNC_INLINE void write(i64 first, i64, i64 channel, i64 number, vec value) const {
    float* const to = at(first, channel, number);
    if (channel == 1) return store(to, value, count);
    for (i64 k = 0; k < count; ++k) to[k * channel] = value[k];
  }
  LTHFUNC_INLINE vec bias(i64 first, i64 number) const {
    return first < 0 ? vec{} : load(m.values + first + number * rows + unit, count);
  }
};

}  // namespace

void recurrent_cell(const recurrent_cell_row& op, Workspace& m, Part part) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile)
    for (i64 unit = part.row; unit < part.rows; ++unit) take_step(op, UnitOfTile{m, op.rows, tile, unit});
}

void recurrent_cell_single(const recurrent_cell_row& op, Workspace& m) {
  for (i64 unit = 0; unit < op.rows; unit += LANES)
    take_step(op, UnitsOfExample{m, op.rows, unit, std::min<i64>(LANES, op.rows - unit)});
}

// grad: of the states; what goes to the one before by other ways than products is added there (grad_before). carry: the
// gradient of an LSTM's cells, from one step to the one before; fresh: none has come yet. into: the gates' gradients,
// and into_hidden: those of GRUs' products of the state. None is one of the others.
void verify(const recurrent_cell_gradient_row& op, Verifier& v) {
  verify_cell(op, v);
  LTHFUNC_UNITS(grad, grad, 1);
  if (op.kind == recurrent_gru && op.state_before >= 0) LTHFUNC_UNITS(grad, grad_before, 1);
  LTHFUNC_UNITS(into, into, gates_of(op.kind));
  if (op.kind == recurrent_lstm) LTHFUNC_UNITS(carry, carry, 1);
  if (op.kind == recurrent_gru) LTHFUNC_UNITS(into_hidden, into_hidden, 3);
}

void recurrent_cell_gradient(const recurrent_cell_gradient_row& op, Workspace& m, Part part) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    for (i64 unit = part.row; unit < part.rows; ++unit) {
      const vec grad = *LTHFUNC_UNIT(grad, grad, 0), state = *LTHFUNC_UNIT(state, state, 0);
      const auto gate = [&](i64 number) { return *LTHFUNC_UNIT(gates, gates, number); };
      const auto into = [&](i64 number) -> vec& { return *LTHFUNC_UNIT(into, into, number); };
      if (op.kind == recurrent_lstm) {
        const vec in = gate(0), keep = gate(1), value = gate(2), out = gate(3);
        const vec bent = tangent(*LTHFUNC_UNIT(cell, cell, 0));
        vec cell = grad * out * (1.0f - bent * bent);
        vec& carry = *LTHFUNC_UNIT(carry, carry, 0);
        if (!op.fresh) cell += carry;
        const vec before = op.cell_before < 0 ? vec{} : *LTHFUNC_UNIT(cell, cell_before, 0);
        into(0) = cell * value * in * (1.0f - in);
        into(1) = cell * before * keep * (1.0f - keep);
        into(2) = cell * in * (1.0f - value * value);
        into(3) = grad * bent * out * (1.0f - out);
        carry = cell * keep;
      } else if (op.kind == recurrent_gru) {
        const vec reset = gate(0), update = gate(1), value = gate(2), candidate = *LTHFUNC_UNIT(hidden, hidden, 2);
        const vec before = op.state_before < 0 ? vec{} : *LTHFUNC_UNIT(state, state_before, 0);
        const vec of_value = grad * (1.0f - update) * (1.0f - value * value);
        const vec of_update = grad * (before - value) * update * (1.0f - update);
        const vec of_reset = of_value * candidate * reset * (1.0f - reset);
        const auto hidden = [&](i64 number) -> vec& { return *LTHFUNC_UNIT(into_hidden, into_hidden, number); };
        into(0) = hidden(0) = of_reset;
        into(1) = hidden(1) = of_update;
        into(2) = of_value;
        hidden(2) = of_value * reset;
        if (op.state_before >= 0) *LTHFUNC_UNIT(grad, grad_before, 0) += grad * update;
      } else {
        into(0) = op.kind == recurrent_tanh ? grad * (1.0f - state * state) : passing(grad, state);
      }
    }
  }
}

}  // namespace lthfunc
