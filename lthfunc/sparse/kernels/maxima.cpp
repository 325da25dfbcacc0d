// Gradients of maxima over whole rows, in tiles: to all places that are equal to the maximum, or to the first of them.
#include "verify.h"

namespace lthfunc {
namespace {

// The rows of one maximum.
struct Rows {
  const vec* in;
  vec* into;
  const vec* gate;
  i64 in_row, into_row, height, width;
  bool accumulate;

  template <typename Function>
  LTHFUNC_INLINE void each_place(Function function) const {
    for (i64 y = 0; y < height; ++y)
      for (i64 x = 0; x < width; ++x) function(in[y * in_row + x], y * into_row + x);
  }
  LTHFUNC_INLINE void write(i64 at, vec value) const {
    if (accumulate) value += into[at];
    into[at] = gated(value, gate, at);
  }
};

// Of a NaN no share is a number, as in PyTorch, whose shares are zero divided by none. there: lanes of examples.
void write_shares(Rows rows, vec most, vec grad, ivec there) {
  vec count{};
  rows.each_place([&](vec value, i64) { count += where(value == most, broadcast(1.0f), vec{}); });
  const vec share = grad / count;
  rows.each_place([&](vec value, i64 at) {
    rows.write(at, where(there, where(value == most, broadcast(1.0f), vec{}) * share, vec{}));
  });
}

// NaN is the largest, and the first of several gets the gradient.
void write_to_first(Rows rows, vec most, vec grad) {
  vec rest = grad;
  rows.each_place([&](vec value, i64 at) {
    const vec given = where(value == most, rest, where(value == value, vec{}, rest));
    rows.write(at, given);
    rest = where(value == most, vec{}, where(value == value, rest, vec{}));
  });
}

}  // namespace

// in, into and its gate: (channels, height, width), out, grad: (channels, height / window, 1) of each tile; into is
// none of the others.
void verify(const maxima_gradient_row& op, Verifier& v) {
  v.require(op.window > 0 && op.height % op.window == 0, "window: divides the height");
  LTHFUNC_INSIDE(in, op.rows, op.height, op.width);
  LTHFUNC_INSIDE(out, op.rows, op.height / op.window, 1);
  LTHFUNC_INSIDE(grad, op.rows, op.height / op.window, 1);
  LTHFUNC_GATED(into, op.rows, op.height, op.width);
}

void maxima_gradient(const maxima_gradient_row& op, Workspace& m, Part part) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    const ivec there = first_lanes(m.examples - tile * LANES);
    for (i64 channel = part.row; channel < part.rows; ++channel) {
      const vec* const in = m.activations + op.in + tile * op.in_tile + channel * op.in_channel;
      const vec* const out = m.activations + op.out + tile * op.out_tile + channel * op.out_channel;
      const vec* const grad = m.activations + op.grad + tile * op.grad_tile + channel * op.grad_channel;
      vec* const into = m.activations + op.into + tile * op.into_tile + channel * op.into_channel;
      for (i64 y = 0; y < op.height / op.window; ++y) {
        vec* const to = into + y * op.window * op.into_row;
        const Rows rows{in + y * op.window * op.in_row,
                        to,
                        gate_of(op.gate, op.into, to),
                        op.in_row,
                        op.into_row,
                        op.window,
                        op.width,
                        op.accumulate != 0};
        if (op.shared)
          write_shares(rows, out[y * op.out_row], grad[y * op.grad_row], there);
        else
          write_to_first(rows, out[y * op.out_row], grad[y * op.grad_row]);
      }
    }
  }
}

}  // namespace lthfunc
