// One example: pooling, pointwise functions, additions and copies, place by place.
#include <algorithm>
#include <limits>

#include "single.h"

namespace lthfunc {
namespace {

// function(channel, y, x, count) for up to 16 places of a row at a time.
template <typename Function>
LTHFUNC_INLINE void each_places(i64 channels, i64 height, i64 width, Function function) {
  for (i64 channel = 0; channel < channels; ++channel)
    for (i64 y = 0; y < height; ++y)
      for (i64 x = 0; x < width; x += LANES) function(channel, y, x, std::min<i64>(LANES, width - x));
}

}  // namespace

void max_pool_single(const max_pool_row& i, Memory& m) {
  for (i64 channel = 0; channel < i.rows; ++channel) {
    const float* const in = place(m, i.in + channel * i.in_channel);
    float* const out = place(m, i.out + channel * i.out_channel);
    for (i64 y = 0; y < i.out_height; ++y) {
      for (i64 x = 0; x < i.out_width; ++x) {
        float most = -std::numeric_limits<float>::infinity();
        for (i64 a = 0; a < i.kernel_y; ++a) {
          const i64 row = y * i.stride_y - i.pad_y + a * i.dilation_y;
          if (row < 0 || row >= i.height) continue;
          for (i64 b = 0; b < i.kernel_x; ++b) {
            const i64 column = x * i.stride_x - i.pad_x + b * i.dilation_x;
            if (column >= 0 && column < i.width) most = most_of(most, in[row * i.in_row + column]);
          }
        }
        out[y * i.out_row + x] = most;
      }
    }
  }
}

void average_pool_single(const average_pool_row& i, Memory& m) {
  const i32 *const down = m.lists + i.windows_y, *const across = m.lists + i.windows_x;
  for (i64 channel = 0; channel < i.rows; ++channel) {
    const float* const in = place(m, i.in + channel * i.in_channel);
    float* const out = place(m, i.out + channel * i.out_channel);
    for (i64 y = 0; y < i.out_height; ++y) {
      for (i64 x = 0; x < i.out_width; ++x) {
        float total = 0;
        for (i64 row = down[2 * y]; row < down[2 * y + 1]; ++row)
          for (i64 column = across[2 * x]; column < across[2 * x + 1]; ++column) total += in[row * i.in_row + column];
        const i64 size = (down[2 * y + 1] - down[2 * y]) * (across[2 * x + 1] - across[2 * x]);
        out[y * i.out_row + x] = total / static_cast<float>(i.divisor ? i.divisor : size);
      }
    }
  }
}

#define LTHFUNC_FLOATS(name) (place(m, i.name + channel * i.name##_channel + y * i.name##_row) + x)

void pointwise_single(const pointwise_row& i, Memory& m) {
  const float number = m.constants[i.number];
  each_places(i.rows, i.height, i.width, [&](i64 channel, i64 y, i64 x, i64 count) {
    store(LTHFUNC_FLOATS(out), value_of(i.kind, load(LTHFUNC_FLOATS(in)), number), count);
  });
}

void add_single(const add_row& i, Memory& m) {
  each_places(i.rows, i.height, i.width, [&](i64 channel, i64 y, i64 x, i64 count) {
    const vec value = load(LTHFUNC_FLOATS(a)) + load(LTHFUNC_FLOATS(b));
    store(LTHFUNC_FLOATS(out), i.relu ? rectified(value) : value, count);
  });
}

void normalise_single(const normalise_row& i, Memory& m) {
  each_places(i.rows, i.height, i.width, [&](i64 channel, i64 y, i64 x, i64 count) {
    const float* const saved = m.constants + i.saved + channel * SAVED;
    vec value = load(LTHFUNC_FLOATS(in)) * saved[factor_of] + saved[summand_of];
    if (i.b >= 0) value += load(LTHFUNC_FLOATS(b));
    store(LTHFUNC_FLOATS(out), i.relu ? rectified(value) : value, count);
  });
}

void copy_single(const copy_row& i, Memory& m) {
  for (i64 channel = 0; channel < i.rows; ++channel)
    for (i64 y = 0; y < i.height; ++y)
      for (i64 x = 0; x < i.width; ++x)
        *place(m, i.out + channel * i.out_channel + y * i.out_row + x * i.out_column) =
            *place(m, i.in + channel * i.in_channel + y * i.in_row + x * i.in_column);
}

}  // namespace lthfunc
