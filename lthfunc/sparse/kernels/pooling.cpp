// Pooling and its gradients, in tiles. Windows are clipped at the borders, so no padding is ever read.
#include <algorithm>
#include <limits>

#include "verify.h"

namespace lthfunc {
namespace {

// Places of a window along one side: from, and how many `dilation` apart lie inside.
struct Side {
  i64 from, count;
};

LTHFUNC_INLINE Side clipped(i64 start, i64 kernel, i64 dilation, i64 size) {
  i64 skip = start < 0 ? (-start + dilation - 1) / dilation : 0;
  const i64 from = start + skip * dilation;
  const i64 room = from >= size ? 0 : (size - from + dilation - 1) / dilation;
  return {from, std::max<i64>(0, std::min(kernel - skip, room))};
}

// Rows of a finished gradient, zeroed where there is a gate that is not above zero.
void rectify_rows(vec* gradient, const vec* gate, i64 row, i64 height, i64 width) {
  if (!gate) return;
  for (i64 y = 0; y < height; ++y)
    for (i64 x = y * row; x < y * row + width; ++x) gradient[x] = gated(gradient[x], gate, x);
}

}  // namespace

// in: (channels, height, width), out: (channels, out_height, out_width) of each tile, apart. Windows may stick out.
template <typename Row>
void verify_windows(const Row& op, Verifier& v) {
  LTHFUNC_INSIDE(in, op.rows, op.height, op.width);
  LTHFUNC_INSIDE(out, op.rows, op.out_height, op.out_width);
  for (const i64 number : {op.kernel_y, op.kernel_x, op.stride_y, op.stride_x, op.dilation_y, op.dilation_x})
    v.require(number > 0 && number < 1 << 24, "kernel, stride and dilation: positive");
  for (const i64 number : {op.pad_y, op.pad_x}) v.require(number >= 0 && number < 1 << 24, "padding: not negative");
}

void verify(const max_pool_row& op, Verifier& v) { verify_windows(op, v); }

void max_pool(const max_pool_row& op, Workspace& m, Part part) {
  const bool twos = op.kernel_y == 2 && op.kernel_x == 2 && op.stride_y == 2 && op.stride_x == 2 && op.pad_y == 0 &&
                    op.pad_x == 0 && op.dilation_y == 1 && op.dilation_x == 1 && 2 * op.out_height <= op.height &&
                    2 * op.out_width <= op.width;
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    for (i64 channel = part.row; channel < part.rows; ++channel) {
      const vec* const in = m.activations + op.in + tile * op.in_tile + channel * op.in_channel;
      vec* const out = m.activations + op.out + tile * op.out_tile + channel * op.out_channel;
      if (twos) {
        for (i64 y = 0; y < op.out_height; ++y) {
          const vec *const upper = in + 2 * y * op.in_row, *const lower = upper + op.in_row;
          for (i64 x = 0; x < op.out_width; ++x)
            out[y * op.out_row + x] =
                max_or_nan(max_or_nan(upper[2 * x], upper[2 * x + 1]), max_or_nan(lower[2 * x], lower[2 * x + 1]));
        }
        continue;
      }
      for (i64 y = 0; y < op.out_height; ++y) {
        const Side down = clipped(y * op.stride_y - op.pad_y, op.kernel_y, op.dilation_y, op.height);
        for (i64 x = 0; x < op.out_width; ++x) {
          const Side across = clipped(x * op.stride_x - op.pad_x, op.kernel_x, op.dilation_x, op.width);
          vec most = broadcast(-std::numeric_limits<float>::infinity());
          for (i64 a = 0; a < down.count; ++a) {
            const vec* at = in + (down.from + a * op.dilation_y) * op.in_row + across.from;
            for (i64 b = 0; b < across.count; ++b, at += op.dilation_x) most = max_or_nan(*at, most);
          }
          out[y * op.out_row + x] = most;
        }
      }
    }
  }
}

namespace {

// Whether all maxima of a channel are numbers.
bool all_numbers(const vec* most, i64 row, i64 height, i64 width) {
  ivec fine = broadcast_int(-1);
  for (i64 y = 0; y < height; ++y)
    for (i64 x = y * row; x < y * row + width; ++x) fine = fine & (most[x] == most[x]);
  return all_of(fine);
}

}  // namespace

// grad lies as the outputs do, into and its gate as the inputs; into is none of the others.
void verify(const max_pool_gradient_row& op, Verifier& v) {
  verify_windows(op, v);
  LTHFUNC_INSIDE(grad, op.rows, op.out_height, op.out_width);
  LTHFUNC_GATED(into, op.rows, op.height, op.width);
}

// The first of a window's maxima gets the window's gradient, or the last NaN, as in PyTorch.
void max_pool_gradient(const max_pool_gradient_row& op, Workspace& m, Part part) {
  const bool tiling = op.kernel_y == op.stride_y && op.kernel_x == op.stride_x && op.pad_y == 0 && op.pad_x == 0 &&
                      op.dilation_y == 1 && op.dilation_x == 1 && op.out_height * op.kernel_y == op.height &&
                      op.out_width * op.kernel_x == op.width && !op.accumulate;
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    for (i64 channel = part.row; channel < part.rows; ++channel) {
      const vec* const in = m.activations + op.in + tile * op.in_tile + channel * op.in_channel;
      const vec* const out = m.activations + op.out + tile * op.out_tile + channel * op.out_channel;
      const vec* const grad = m.activations + op.grad + tile * op.grad_tile + channel * op.grad_channel;
      vec* const into = m.activations + op.into + tile * op.into_tile + channel * op.into_channel;
      if (!tiling && !op.accumulate)
        for (i64 y = 0; y < op.height; ++y) std::fill_n(into + y * op.into_row, op.width, vec{});
      const bool fine = all_numbers(out, op.out_row, op.out_height, op.out_width);
      for (i64 y = 0; y < op.out_height; ++y) {
        const Side down = clipped(y * op.stride_y - op.pad_y, op.kernel_y, op.dilation_y, op.height);
        for (i64 x = 0; x < op.out_width; ++x) {
          const Side across = clipped(x * op.stride_x - op.pad_x, op.kernel_x, op.dilation_x, op.width);
          const vec most = out[y * op.out_row + x];
          vec rest = grad[y * op.grad_row + x];  // until a maximum has taken it
          if (op.gate >= 0 && !op.accumulate) rest = passing(rest, most);
          for (i64 a = 0; a < down.count; ++a) {
            const i64 row = down.from + a * op.dilation_y;
            for (i64 b = 0; b < across.count; ++b) {
              const i64 column = across.from + b * op.dilation_x;
              const ivec here = in[row * op.in_row + column] == most;
              vec& place = into[row * op.into_row + column];
              const vec share = where(here, rest, vec{});
              place = tiling ? share : place + share;
              rest = where(here, vec{}, rest);
            }
          }
          if (fine) continue;
          rest = where(most == most, vec{}, grad[y * op.grad_row + x]);
          for (i64 a = down.count; a-- > 0;) {
            for (i64 b = across.count; b-- > 0;) {
              const i64 at = (down.from + a * op.dilation_y), column = across.from + b * op.dilation_x;
              const vec value = in[at * op.in_row + column];
              vec& place = into[at * op.into_row + column];
              place += where(value == value, vec{}, rest);
              rest = where(value == value, rest, vec{});
            }
          }
        }
      }
      // What others have added before is zeroed afterwards.
      if (op.accumulate) rectify_rows(into, gate_of(op.gate, op.into, into), op.into_row, op.height, op.width);
    }
  }
}

// grad, codes: (channels, height, width), into: (channels, 2 · height, 2 · width) of each tile. codes: 0 to 4 a lane.
void verify(const unpool_row& op, Verifier& v) {
  LTHFUNC_INSIDE(grad, op.rows, op.height, op.width);
  LTHFUNC_INSIDE(codes, op.rows, op.height, op.width);
  LTHFUNC_INSIDE(into, op.rows, 2 * op.height, 2 * op.width);
}

void unpool(const unpool_row& op, Workspace& m, Part part) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    for (i64 channel = part.row; channel < part.rows; ++channel) {
      const vec* const grad = m.activations + op.grad + tile * op.grad_tile + channel * op.grad_channel;
      const ivec* const codes =
          reinterpret_cast<const ivec*>(m.activations + op.codes + tile * op.codes_tile + channel * op.codes_channel);
      vec* const into = m.activations + op.into + tile * op.into_tile + channel * op.into_channel;
      for (i64 y = 0; y < op.height; ++y) {
        vec *const upper = into + 2 * y * op.into_row, *const lower = upper + op.into_row;
        for (i64 x = 0; x < op.width; ++x) {
          const vec value = grad[y * op.grad_row + x];
          const ivec code = codes[y * op.codes_row + x];
          upper[2 * x] = where(code == broadcast_int(0), value, vec{});
          upper[2 * x + 1] = where(code == broadcast_int(1), value, vec{});
          lower[2 * x] = where(code == broadcast_int(2), value, vec{});
          lower[2 * x + 1] = where(code == broadcast_int(3), value, vec{});
        }
      }
    }
  }
}

// windows_y, windows_x: (from, to) for each row and column of outputs. in, out: rows of channels of each tile, apart.
template <typename Row>
Range window_sizes(const Row& op, Verifier& v) {
  const Range down = v.list("windows_y", op.windows_y, 2 * op.out_height);
  const Range across = v.list("windows_x", op.windows_x, 2 * op.out_width);
  v.require(down.low >= 0 && across.low >= 0, "windows: not negative");
  return {down.high, across.high};
}

void verify(const average_pool_row& op, Verifier& v) {
  const Range size = window_sizes(op, v);
  LTHFUNC_INSIDE(in, op.rows, size.low, size.high);
  LTHFUNC_INSIDE(out, op.rows, op.out_height, op.out_width);
}

void average_pool(const average_pool_row& op, Workspace& m, Part part) {
  const i32 *const down = m.lists + op.windows_y, *const across = m.lists + op.windows_x;
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    for (i64 channel = part.row; channel < part.rows; ++channel) {
      const vec* const in = m.activations + op.in + tile * op.in_tile + channel * op.in_channel;
      vec* const out = m.activations + op.out + tile * op.out_tile + channel * op.out_channel;
      for (i64 y = 0; y < op.out_height; ++y) {
        for (i64 x = 0; x < op.out_width; ++x) {
          vec total{};
          for (i64 row = down[2 * y]; row < down[2 * y + 1]; ++row)
            for (i64 column = across[2 * x]; column < across[2 * x + 1]; ++column)
              total += in[row * op.in_row + column];
          const i64 size = (down[2 * y + 1] - down[2 * y]) * (across[2 * x + 1] - across[2 * x]);
          out[y * op.out_row + x] = total * (1.0f / static_cast<float>(op.divisor ? op.divisor : size));
        }
      }
    }
  }
}

// grad lies as the outputs do, into and its gate as the inputs.
void verify(const average_pool_gradient_row& op, Verifier& v) {
  const Range size = window_sizes(op, v);
  v.require(size.low <= op.height && size.high <= op.width, "windows: inside the image");
  LTHFUNC_INSIDE(grad, op.rows, op.out_height, op.out_width);
  LTHFUNC_GATED(into, op.rows, op.height, op.width);
}

void average_pool_gradient(const average_pool_gradient_row& op, Workspace& m, Part part) {
  const i32 *const down = m.lists + op.windows_y, *const across = m.lists + op.windows_x;
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    for (i64 channel = part.row; channel < part.rows; ++channel) {
      const vec* const grad = m.activations + op.grad + tile * op.grad_tile + channel * op.grad_channel;
      const i64 there = tile * op.into_tile + channel * op.into_channel;
      vec* const into = m.activations + op.into + there;
      if (!op.accumulate)
        for (i64 y = 0; y < op.height; ++y) std::fill_n(into + y * op.into_row, op.width, vec{});
      for (i64 y = 0; y < op.out_height; ++y) {
        for (i64 x = 0; x < op.out_width; ++x) {
          const i64 size = (down[2 * y + 1] - down[2 * y]) * (across[2 * x + 1] - across[2 * x]);
          const vec share = grad[y * op.grad_row + x] * (1.0f / static_cast<float>(op.divisor ? op.divisor : size));
          for (i64 row = down[2 * y]; row < down[2 * y + 1]; ++row)
            for (i64 column = across[2 * x]; column < across[2 * x + 1]; ++column)
              into[row * op.into_row + column] += share;
        }
      }
      rectify_rows(into, gate_of(op.gate, op.into, into), op.into_row, op.height, op.width);
    }
  }
}

}  // namespace lthfunc
