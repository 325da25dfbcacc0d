// Images whose rows and columns are weighted pairs of those of another image: interpolation, and borders that repeat.
#include <algorithm>

#include "single.h"
#include "verify.h"

namespace lthfunc {
namespace {

// Which two rows (or columns) of the input each one of the output reads, and their weights. Where all have one alone,
// nothing is read of the other: a NaN there is nobody's.
struct Pairs {
  const i32* from;
  const float* weight;
};

template <typename Row>
Pairs rows_of(const Row& op, const Workspace& m) {
  return {m.lists + op.taps_y, m.constants + op.weights_y};
}
template <typename Row>
Pairs columns_of(const Row& op, const Workspace& m) {
  return {m.lists + op.taps_x, m.constants + op.weights_x};
}

template <typename Row>
void verify_pairs(const Row& op, Verifier& v) {
  v.require(op.height > 0 && op.height < 1 << 24 && op.width > 0 && op.width < 1 << 24, "sides: positive");
  const Range down = v.list("taps_y", op.taps_y, 2 * op.out_height);
  const Range across = v.list("taps_x", op.taps_x, 2 * op.out_width);
  v.require(down.low >= 0 && down.high < op.height && across.low >= 0 && across.high < op.width,
            "taps: inside the image");
  v.constants("weights_y", op.weights_y, 2 * op.out_height);
  v.constants("weights_x", op.weights_x, 2 * op.out_width);
}

}  // namespace

// in: (channels, height, width), out: (channels, out_height, out_width) of each tile, apart.
void verify(const resample_row& op, Verifier& v) {
  verify_pairs(op, v);
  LTHFUNC_INSIDE(in, op.rows, op.height, op.width);
  LTHFUNC_INSIDE(out, op.rows, op.out_height, op.out_width);
}

void resample(const resample_row& op, Workspace& m, Part part) {
  const Pairs down = rows_of(op, m), across = columns_of(op, m);
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    for (i64 channel = part.row; channel < part.rows; ++channel) {
      const vec* const in = m.activations + op.in + tile * op.in_tile + channel * op.in_channel;
      vec* const out = m.activations + op.out + tile * op.out_tile + channel * op.out_channel;
      for (i64 y = 0; y < op.out_height; ++y) {
        const vec* const upper = in + down.from[2 * y] * op.in_row;
        vec* const to = out + y * op.out_row;
        if (!op.weighted) {
          for (i64 x = 0; x < op.out_width; ++x) to[x] = upper[across.from[2 * x]];
          continue;
        }
        const vec* const lower = in + down.from[2 * y + 1] * op.in_row;
        const float high = down.weight[2 * y], low = down.weight[2 * y + 1];
        for (i64 x = 0; x < op.out_width; ++x) {
          const i32 left = across.from[2 * x], right = across.from[2 * x + 1];
          const float l = across.weight[2 * x], r = across.weight[2 * x + 1];
          to[x] = (upper[left] * l + upper[right] * r) * high + (lower[left] * l + lower[right] * r) * low;
        }
      }
    }
  }
}

void resample_single(const resample_row& op, Workspace& m) {
  const Pairs down = rows_of(op, m), across = columns_of(op, m);
  for (i64 channel = 0; channel < op.rows; ++channel) {
    for (i64 y = 0; y < op.out_height; ++y) {
      const float* const upper = place(m, op.in + channel * op.in_channel + down.from[2 * y] * op.in_row);
      const float* const lower = place(m, op.in + channel * op.in_channel + down.from[2 * y + 1] * op.in_row);
      float* const to = place(m, op.out + channel * op.out_channel + y * op.out_row);
      const float high = down.weight[2 * y], low = down.weight[2 * y + 1];
      for (i64 x = 0; x < op.out_width; ++x) {
        const i32 left = across.from[2 * x], right = across.from[2 * x + 1];
        const float l = across.weight[2 * x], r = across.weight[2 * x + 1];
        to[x] = op.weighted ? (upper[left] * l + upper[right] * r) * high + (lower[left] * l + lower[right] * r) * low
                            : upper[left];
      }
    }
  }
}

// grad lies as the outputs do, into and its gate as the inputs; into is none of the others.
void verify(const resample_gradient_row& op, Verifier& v) {
  verify_pairs(op, v);
  LTHFUNC_INSIDE(grad, op.rows, op.out_height, op.out_width);
  LTHFUNC_GATED(into, op.rows, op.height, op.width);
}

void resample_gradient(const resample_gradient_row& op, Workspace& m, Part part) {
  const Pairs down = rows_of(op, m), across = columns_of(op, m);
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    for (i64 channel = part.row; channel < part.rows; ++channel) {
      const vec* const grad = m.activations + op.grad + tile * op.grad_tile + channel * op.grad_channel;
      vec* const into = m.activations + op.into + tile * op.into_tile + channel * op.into_channel;
      if (!op.accumulate)
        for (i64 y = 0; y < op.height; ++y) std::fill_n(into + y * op.into_row, op.width, vec{});
      for (i64 y = 0; y < op.out_height; ++y) {
        vec* const upper = into + down.from[2 * y] * op.into_row;
        const vec* const from = grad + y * op.grad_row;
        if (!op.weighted) {
          for (i64 x = 0; x < op.out_width; ++x) upper[across.from[2 * x]] += from[x];
          continue;
        }
        vec* const lower = into + down.from[2 * y + 1] * op.into_row;
        const float high = down.weight[2 * y], low = down.weight[2 * y + 1];
        for (i64 x = 0; x < op.out_width; ++x) {
          const i32 left = across.from[2 * x], right = across.from[2 * x + 1];
          const vec l = from[x] * across.weight[2 * x], r = from[x] * across.weight[2 * x + 1];
          upper[left] += l * high;
          upper[right] += r * high;
          lower[left] += l * low;
          lower[right] += r * low;
        }
      }
      const vec* const gate = gate_of(op.gate, op.into, into);
      if (!gate) continue;
      for (i64 y = 0; y < op.height; ++y)
        for (i64 x = y * op.into_row; x < y * op.into_row + op.width; ++x) into[x] = gated(into[x], gate, x);
    }
  }
}

}  // namespace lthfunc
