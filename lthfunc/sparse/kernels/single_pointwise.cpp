// One example: pooling, pointwise functions, additions and copies, place by place.
#include <algorithm>
#include <limits>

#include "single.h"

namespace lthfunc {
namespace {

// function(channel, y, x, count) for up to 16 positions of a row at a time.
template <typename Function>
LTHFUNC_INLINE void each_places(i64 channels, i64 height, i64 width, Function function) {
  for (i64 channel = 0; channel < channels; ++channel)
    for (i64 y = 0; y < height; ++y)
      for (i64 x = 0; x < width; x += LANES) function(channel, y, x, std::min<i64>(LANES, width - x));
}

// The same for channels of one place, which are as good as a row where they lie side by side.
template <typename Function>
LTHFUNC_INLINE void each_places(i64 channels, i64 height, i64 width, bool side_by_side, Function function) {
  if (side_by_side && height * width == 1)
    each_places(1, 1, channels, function);
  else
    each_places(channels, height, width, function);
}

}  // namespace

void max_pool_single(const max_pool_row& op, Workspace& m) {
  for (i64 channel = 0; channel < op.rows; ++channel) {
    const float* const in = place(m, op.in + channel * op.in_channel);
    float* const out = place(m, op.out + channel * op.out_channel);
    for (i64 y = 0; y < op.out_height; ++y) {
      for (i64 x = 0; x < op.out_width; ++x) {
        float most = -std::numeric_limits<float>::infinity();
        for (i64 a = 0; a < op.kernel_y; ++a) {
          const i64 row = y * op.stride_y - op.pad_y + a * op.dilation_y;
          if (row < 0 || row >= op.height) continue;
          for (i64 b = 0; b < op.kernel_x; ++b) {
            const i64 column = x * op.stride_x - op.pad_x + b * op.dilation_x;
            if (column >= 0 && column < op.width) most = max_or_nan(most, in[row * op.in_row + column]);
          }
        }
        out[y * op.out_row + x] = most;
      }
    }
  }
}

void average_pool_single(const average_pool_row& op, Workspace& m) {
  const i32 *const down = m.lists + op.windows_y, *const across = m.lists + op.windows_x;
  for (i64 channel = 0; channel < op.rows; ++channel) {
    const float* const in = place(m, op.in + channel * op.in_channel);
    float* const out = place(m, op.out + channel * op.out_channel);
    for (i64 y = 0; y < op.out_height; ++y) {
      for (i64 x = 0; x < op.out_width; ++x) {
        float total = 0;
        for (i64 row = down[2 * y]; row < down[2 * y + 1]; ++row)
          for (i64 column = across[2 * x]; column < across[2 * x + 1]; ++column) total += in[row * op.in_row + column];
        const i64 size = (down[2 * y + 1] - down[2 * y]) * (across[2 * x + 1] - across[2 * x]);
        out[y * op.out_row + x] = total / static_cast<float>(op.divisor ? op.divisor : size);
      }
    }
  }
}

#define LTHFUNC_FLOATS(name) (place(m, op.name + channel * op.name##_channel + y * op.name##_row) + x)

void pointwise_single(const pointwise_row& op, Workspace& m) {
  const Settings given = settings_at(m, op.number);
  const bool side_by_side = op.in_channel == 1 && op.out_channel == 1;
  each_places(op.rows, op.height, op.width, side_by_side, [&](i64 channel, i64 y, i64 x, i64 count) {
    store(LTHFUNC_FLOATS(out), value_of(op.kind, load(LTHFUNC_FLOATS(in)), given), count);
  });
}

void add_single(const add_row& op, Workspace& m) {
  const bool side_by_side = op.a_channel == 1 && op.b_channel == 1 && op.out_channel == 1;
  each_places(op.rows, op.height, op.width, side_by_side, [&](i64 channel, i64 y, i64 x, i64 count) {
    const vec value = load(LTHFUNC_FLOATS(a)) + load(LTHFUNC_FLOATS(b));
    store(LTHFUNC_FLOATS(out), op.relu ? rectified(value) : value, count);
  });
}

void normalise_single(const normalise_row& op, Workspace& m) {
  each_places(op.rows, op.height, op.width, [&](i64 channel, i64 y, i64 x, i64 count) {
    const float* const saved = m.constants + op.saved + channel * SAVED;
    vec value = load(LTHFUNC_FLOATS(in)) * saved[factor_of] + saved[summand_of];
    if (op.b >= 0) value += load(LTHFUNC_FLOATS(b));
    store(LTHFUNC_FLOATS(out), op.relu ? rectified(value) : value, count);
  });
}

void fill_single(const fill_row& op, Workspace& m) {
  const vec value = op.number < 0 ? vec{} : broadcast(m.constants[op.number]);
  each_places(op.rows, op.height, op.width,
              [&](i64 channel, i64 y, i64 x, i64 count) { store(LTHFUNC_FLOATS(out), value, count); });
}

void copy_single(const copy_row& op, Workspace& m) {
  for (i64 channel = 0; channel < op.rows; ++channel)
    for (i64 y = 0; y < op.height; ++y)
      for (i64 x = 0; x < op.width; ++x)
        *place(m, op.out + channel * op.out_channel + y * op.out_row + x * op.out_column) =
            *place(m, op.in + channel * op.in_channel + y * op.in_row + x * op.in_column);
}

}  // namespace lthfunc
