// Pooling and its gradients, in tiles. Windows are clipped at the borders, so no padding is ever read.
#include <algorithm>
#include <limits>

#include "machine.h"

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

void max_pool(const max_pool_row& i, Memory& m, Part part) {
  const bool twos = i.kernel_y == 2 && i.kernel_x == 2 && i.stride_y == 2 && i.stride_x == 2 && i.pad_y == 0 &&
                    i.pad_x == 0 && i.dilation_y == 1 && i.dilation_x == 1 && 2 * i.out_height <= i.height &&
                    2 * i.out_width <= i.width;
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    for (i64 channel = part.row; channel < part.rows; ++channel) {
      const vec* const in = m.activations + i.in + tile * i.in_tile + channel * i.in_channel;
      vec* const out = m.activations + i.out + tile * i.out_tile + channel * i.out_channel;
      if (twos) {
        for (i64 y = 0; y < i.out_height; ++y) {
          const vec *const upper = in + 2 * y * i.in_row, *const lower = upper + i.in_row;
          for (i64 x = 0; x < i.out_width; ++x)
            out[y * i.out_row + x] =
                most_of(most_of(upper[2 * x], upper[2 * x + 1]), most_of(lower[2 * x], lower[2 * x + 1]));
        }
        continue;
      }
      for (i64 y = 0; y < i.out_height; ++y) {
        const Side down = clipped(y * i.stride_y - i.pad_y, i.kernel_y, i.dilation_y, i.height);
        for (i64 x = 0; x < i.out_width; ++x) {
          const Side across = clipped(x * i.stride_x - i.pad_x, i.kernel_x, i.dilation_x, i.width);
          vec most = all(-std::numeric_limits<float>::infinity());
          for (i64 a = 0; a < down.count; ++a) {
            const vec* at = in + (down.from + a * i.dilation_y) * i.in_row + across.from;
            for (i64 b = 0; b < across.count; ++b, at += i.dilation_x) most = most_of(*at, most);
          }
          out[y * i.out_row + x] = most;
        }
      }
    }
  }
}

namespace {

// Whether all maxima of a channel are numbers.
bool all_numbers(const vec* most, i64 row, i64 height, i64 width) {
  ivec fine = all_int(-1);
  for (i64 y = 0; y < height; ++y)
    for (i64 x = y * row; x < y * row + width; ++x) fine = fine & (most[x] == most[x]);
  return all_of(fine);
}

}  // namespace

// The first of a window's maxima gets the window's gradient, or the last that is no number, as in PyTorch.
void max_pool_gradient(const max_pool_gradient_row& i, Memory& m, Part part) {
  const bool tiling = i.kernel_y == i.stride_y && i.kernel_x == i.stride_x && i.pad_y == 0 && i.pad_x == 0 &&
                      i.dilation_y == 1 && i.dilation_x == 1 && i.out_height * i.kernel_y == i.height &&
                      i.out_width * i.kernel_x == i.width && !i.accumulate;
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    for (i64 channel = part.row; channel < part.rows; ++channel) {
      const vec* const in = m.activations + i.in + tile * i.in_tile + channel * i.in_channel;
      const vec* const out = m.activations + i.out + tile * i.out_tile + channel * i.out_channel;
      const vec* const grad = m.activations + i.grad + tile * i.grad_tile + channel * i.grad_channel;
      vec* const into = m.activations + i.into + tile * i.into_tile + channel * i.into_channel;
      if (!tiling && !i.accumulate)
        for (i64 y = 0; y < i.height; ++y) std::fill_n(into + y * i.into_row, i.width, vec{});
      const bool fine = all_numbers(out, i.out_row, i.out_height, i.out_width);
      for (i64 y = 0; y < i.out_height; ++y) {
        const Side down = clipped(y * i.stride_y - i.pad_y, i.kernel_y, i.dilation_y, i.height);
        for (i64 x = 0; x < i.out_width; ++x) {
          const Side across = clipped(x * i.stride_x - i.pad_x, i.kernel_x, i.dilation_x, i.width);
          const vec most = out[y * i.out_row + x];
          vec rest = grad[y * i.grad_row + x];  // until a maximum has taken it
          if (i.gate >= 0 && !i.accumulate) rest = passing(rest, most);
          for (i64 a = 0; a < down.count; ++a) {
            const i64 row = down.from + a * i.dilation_y;
            for (i64 b = 0; b < across.count; ++b) {
              const i64 column = across.from + b * i.dilation_x;
              const ivec here = in[row * i.in_row + column] == most;
              vec& place = into[row * i.into_row + column];
              const vec share = where(here, rest, vec{});
              place = tiling ? share : place + share;
              rest = where(here, vec{}, rest);
            }
          }
          if (fine) continue;
          rest = where(most == most, vec{}, grad[y * i.grad_row + x]);
          for (i64 a = down.count; a-- > 0;) {
            for (i64 b = across.count; b-- > 0;) {
              const i64 at = (down.from + a * i.dilation_y), column = across.from + b * i.dilation_x;
              const vec value = in[at * i.in_row + column];
              vec& place = into[at * i.into_row + column];
              place += where(value == value, vec{}, rest);
              rest = where(value == value, rest, vec{});
            }
          }
        }
      }
      // What others have added before is zeroed afterwards.
      if (i.accumulate) rectify_rows(into, gate_of(i.gate, i.into, into), i.into_row, i.height, i.width);
    }
  }
}

void unpool(const unpool_row& i, Memory& m, Part part) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    for (i64 channel = part.row; channel < part.rows; ++channel) {
      const vec* const grad = m.activations + i.grad + tile * i.grad_tile + channel * i.grad_channel;
      const ivec* const codes =
          reinterpret_cast<const ivec*>(m.activations + i.codes + tile * i.codes_tile + channel * i.codes_channel);
      vec* const into = m.activations + i.into + tile * i.into_tile + channel * i.into_channel;
      for (i64 y = 0; y < i.height; ++y) {
        vec *const upper = into + 2 * y * i.into_row, *const lower = upper + i.into_row;
        for (i64 x = 0; x < i.width; ++x) {
          const vec value = grad[y * i.grad_row + x];
          const ivec code = codes[y * i.codes_row + x];
          upper[2 * x] = where(code == all_int(0), value, vec{});
          upper[2 * x + 1] = where(code == all_int(1), value, vec{});
          lower[2 * x] = where(code == all_int(2), value, vec{});
          lower[2 * x + 1] = where(code == all_int(3), value, vec{});
        }
      }
    }
  }
}

void average_pool(const average_pool_row& i, Memory& m, Part part) {
  const i32 *const down = m.lists + i.windows_y, *const across = m.lists + i.windows_x;
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    for (i64 channel = part.row; channel < part.rows; ++channel) {
      const vec* const in = m.activations + i.in + tile * i.in_tile + channel * i.in_channel;
      vec* const out = m.activations + i.out + tile * i.out_tile + channel * i.out_channel;
      for (i64 y = 0; y < i.out_height; ++y) {
        for (i64 x = 0; x < i.out_width; ++x) {
          vec total{};
          for (i64 row = down[2 * y]; row < down[2 * y + 1]; ++row)
            for (i64 column = across[2 * x]; column < across[2 * x + 1]; ++column) total += in[row * i.in_row + column];
          const i64 size = (down[2 * y + 1] - down[2 * y]) * (across[2 * x + 1] - across[2 * x]);
          out[y * i.out_row + x] = total * (1.0f / static_cast<float>(i.divisor ? i.divisor : size));
        }
      }
    }
  }
}

void average_pool_gradient(const average_pool_gradient_row& i, Memory& m, Part part) {
  const i32 *const down = m.lists + i.windows_y, *const across = m.lists + i.windows_x;
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    for (i64 channel = part.row; channel < part.rows; ++channel) {
      const vec* const grad = m.activations + i.grad + tile * i.grad_tile + channel * i.grad_channel;
      const i64 there = tile * i.into_tile + channel * i.into_channel;
      vec* const into = m.activations + i.into + there;
      if (!i.accumulate)
        for (i64 y = 0; y < i.height; ++y) std::fill_n(into + y * i.into_row, i.width, vec{});
      for (i64 y = 0; y < i.out_height; ++y) {
        for (i64 x = 0; x < i.out_width; ++x) {
          const i64 size = (down[2 * y + 1] - down[2 * y]) * (across[2 * x + 1] - across[2 * x]);
          const vec share = grad[y * i.grad_row + x] * (1.0f / static_cast<float>(i.divisor ? i.divisor : size));
          for (i64 row = down[2 * y]; row < down[2 * y + 1]; ++row)
            for (i64 column = across[2 * x]; column < across[2 * x + 1]; ++column)
              into[row * i.into_row + column] += share;
        }
      }
      rectify_rows(into, gate_of(i.gate, i.into, into), i.into_row, i.height, i.width);
    }
  }
}

}  // namespace lthfunc
