// Pointwise functions, additions and copies, a channel's rows at a time.
#include <algorithm>

#include "pointwise_functions.h"
#include "randomness.h"
#include "verify.h"

namespace lthfunc {
namespace {

// Calls function(tile, channel, y) for every row of the part.
template <typename Function>
LTHFUNC_INLINE void each_row(Part part, i64 height, Function function) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile)
    for (i64 channel = part.row; channel < part.rows; ++channel)
      for (i64 y = 0; y < height; ++y) function(tile, channel, y);
}

// A row of numbers by a function that is known when this is compiled: a call for each vector costs more than some.
// there: lanes of examples.
template <i64 Kind>
void value_row(const vec* in, vec* out, i64 width, Settings given, ivec there) {
  for (i64 x = 0; x < width; ++x) {
    const vec value = inlined_value(Kind, in[x], given);
    out[x] = is_infinite(Kind) ? where(there, value, vec{}) : value;
  }
}
constexpr void (*value_rows[])(const vec*, vec*, i64, Settings, ivec) = {
#define POINTWISE(name) value_row<pointwise_##name>,
#include "instructions.def"
};

struct GradientRow {
  const vec *in, *grad, *gate;
  vec* into;
  i64 width;
  Settings given;
  bool accumulate;
  ivec there;
};
template <i64 Kind>
void gradient_row(GradientRow row) {
  for (i64 x = 0; x < row.width; ++x) {
    vec value = gradient_of(Kind, row.grad[x], row.in[x], row.given);
    if (is_infinite(Kind)) value = where(row.there, value, vec{});
    if (row.accumulate) value += row.into[x];
    row.into[x] = gated(value, row.gate, x);
  }
}
constexpr void (*gradient_rows[])(GradientRow) = {
#define POINTWISE(name) gradient_row<pointwise_##name>,
#include "instructions.def"
};
constexpr i64 KINDS = sizeof(value_rows) / sizeof(*value_rows);

}  // namespace

vec value_of(i64 kind, vec x, Settings given) { return inlined_value(kind, x, given); }

// All of these: (channels, height, width) of each tile, with steps of their own; what is written may be what is read.
void verify(const pointwise_row& op, Verifier& v) {
  LTHFUNC_INSIDE(in, op.rows, op.height, op.width);
  LTHFUNC_INSIDE(out, op.rows, op.height, op.width);
  v.require(op.kind >= 0 && op.kind < KINDS, "kind: a known one");
  v.constants("number", op.number, 2);
}

void pointwise(const pointwise_row& op, Workspace& m, Part part) {
  const Settings given = settings_at(m, op.number);
  each_row(part, op.height, [&](i64 tile, i64 channel, i64 y) {
    const vec* const in = LTHFUNC_AT(in);
    value_rows[op.kind](in, LTHFUNC_AT(out), op.width, given, first_lanes(m.examples - tile * LANES));
  });
}

void verify(const pointwise_gradient_row& op, Verifier& v) {
  LTHFUNC_INSIDE(in, op.rows, op.height, op.width);
  LTHFUNC_INSIDE(grad, op.rows, op.height, op.width);
  LTHFUNC_GATED(into, op.rows, op.height, op.width);
  v.require(op.kind >= 0 && op.kind < KINDS, "kind: a known one");
  v.constants("number", op.number, 2);
}

void pointwise_gradient(const pointwise_gradient_row& op, Workspace& m, Part part) {
  const Settings given = settings_at(m, op.number);
  each_row(part, op.height, [&](i64 tile, i64 channel, i64 y) {
    const vec *const in = LTHFUNC_AT(in), *const grad = LTHFUNC_AT(grad);
    vec* const into = LTHFUNC_AT(into);
    gradient_rows[op.kind]({in, grad, gate_of(op.gate, op.into, into), into, op.width, given, op.accumulate != 0,
                            first_lanes(m.examples - tile * LANES)});
  });
}

void verify(const add_row& op, Verifier& v) {
  LTHFUNC_INSIDE(a, op.rows, op.height, op.width);
  LTHFUNC_INSIDE(b, op.rows, op.height, op.width);
  LTHFUNC_INSIDE(out, op.rows, op.height, op.width);
}

void add(const add_row& op, Workspace& m, Part part) {
  each_row(part, op.height, [&](i64 tile, i64 channel, i64 y) {
    const vec *const a = LTHFUNC_AT(a), *const b = LTHFUNC_AT(b);
    vec* const out = LTHFUNC_AT(out);
    for (i64 x = 0; x < op.width; ++x) {
      const vec value = a[x] + b[x];
      out[x] = op.relu ? rectified(value) : value;
    }
  });
}

// Columns of in and out have steps of their own; the gate lies as out does, and has numbers of its kind.
void verify(const copy_row& op, Verifier& v) {
  const auto held = [&](const char* name, i64 half, i64 first, i64 tile, i64 channel, i64 row, i64 column) {
    v.activations_of(name, half, first, {{v.tiles, tile}, {op.rows, channel}, {op.height, row}, {op.width, column}});
  };
  held("in", op.in_half, op.in, op.in_tile, op.in_channel, op.in_row, op.in_column);
  held("out", op.out_half, op.out, op.out_tile, op.out_channel, op.out_row, op.out_column);
  if (op.gate >= 0) held("gate", op.out_half, op.gate, op.out_tile, op.out_channel, op.out_row, op.out_column);
}

void copy(const copy_row& op, Workspace& m, Part part) {
  each_row(part, op.height, [&](i64 tile, i64 channel, i64 y) {
    const auto row = [&](const auto* in, auto* out) {
      const auto* const gate = gate_of(op.gate, op.out, out);
      const i64 ahead = LTHFUNC_AHEAD(in);
      for (i64 x = 0; x < op.width; ++x) {
        const i64 to = x * op.out_column;
        fetch(in + ahead + x * op.in_column);
        vec value = read(in[x * op.in_column]);
        if (op.accumulate) value += read(out[to]);
        write_as_held(out[to], gated(value, gate, to));
      }
    };
    const auto of = [&](const auto* in) {
      const auto into = [&](auto* out) { row(in, out); };
      LTHFUNC_EITHER(out, into);
    };
    LTHFUNC_EITHER(in, of);
  });
}

void verify(const dropout_row& op, Verifier& v) {
  LTHFUNC_INSIDE(in, op.rows, op.height, op.width);
  LTHFUNC_GATED(out, op.rows, op.height, op.width);
  v.constants("scale", op.scale);
  v.require(op.tiles >= 0 && op.length <= op.tiles * LANES, "length: of tokens in a sequence's tiles");
}

void dropout(const dropout_row& op, Workspace& m, Part part) {
  const float scale = m.constants[op.scale];
  each_row(part, op.height, [&](i64 tile, i64 channel, i64 y) {
    const vec* const in = LTHFUNC_AT(in);
    vec* const out = LTHFUNC_AT(out);
    const vec* const gate = gate_of(op.gate, op.out, out);
    for (i64 x = 0; x < op.width; ++x) {
      const i64 place = (channel * op.height + y) * op.width + x;
      const i64 before = tile * op.rows * op.height * op.width;
      const ivec kept = op.tiles ? kept_tokens(m, op.number, op.threshold, tile / op.tiles,
                                               place * op.length + tile % op.tiles * LANES, 1)
                                 : kept_lanes(m, op.number, op.threshold, before + place);
      vec value = in[x] * where(kept, broadcast(scale), vec{});
      if (op.accumulate) value += out[x];
      out[x] = gated(value, gate, x);
    }
  });
}

void verify(const fill_row& op, Verifier& v) {
  LTHFUNC_INSIDE_HALF(out, op.rows, op.height, op.width);
  if (op.number >= 0) v.constants("number", op.number);
}

void fill(const fill_row& op, Workspace& m, Part part) {
  const vec value = op.number < 0 ? vec{} : broadcast(m.constants[op.number]);
  each_row(part, op.height, [&](i64 tile, i64 channel, i64 y) {
    // An infinite number would make NaN of the gradients of lanes without an example.
    const vec there = where(first_lanes(m.examples - tile * LANES), value, vec{});
    const auto row = [&](auto* out) {
      for (i64 x = 0; x < op.width; ++x) write_as_held(out[x], there);
    };
    LTHFUNC_EITHER(out, row);
  });
}

void verify(const rectify_row& op, Verifier& v) { LTHFUNC_GATED_HALF(out, op.rows, op.height, op.width); }

void rectify(const rectify_row& op, Workspace& m, Part part) {
  each_row(part, op.height, [&](i64 tile, i64 channel, i64 y) {
    const auto row = [&](auto* out) {
      const auto* const gate = gate_of(op.gate, op.out, out);
      for (i64 x = 0; x < op.width; ++x) write(out[x], gated(read(out[x]), gate, x));
    };
    LTHFUNC_EITHER(out, row);
  });
}

}  // namespace lthfunc
