// Sparse × dense, of an image that batch normalisation makes: a convolution whose rows roll.
#include "rolling.h"

namespace lthfunc {
namespace {

// Outputs of some columns of a row.
template <int Columns>
void outputs_of_columns(const rolling_products_row& op, const Workspace& m, const Rolling& rolling, i64 tile, i64 y,
                        i64 x) {
  const i32 *const starts = m.lists + op.starts, entries = starts[op.rows * op.blocks];
  const i32* const offsets = m.lists + op.offsets + y % rolling.rows() * entries;
  const float* const values = m.values + op.values;
  const vec* const in = rolling.room + x;
  const Norm norm{op.sums < 0 ? nullptr : m.activations + op.sums + tile * op.sums_tile, x == 0 && y == 0, nullptr,
                  nullptr};
  vec kept[ROWS_IN_TURN][Columns];
  in_blocks(op.rows, op.blocks, [&](i64 channel, i64 block) {
    vec sum[Columns], (&before)[Columns] = kept[channel % ROWS_IN_TURN];
    if (block) {
      LTHFUNC_UNROLL
      for (int s = 0; s < Columns; ++s) sum[s] = before[s];
    } else {
      if (channel < op.channels) {
        fetch_later<Columns>(LTHFUNC_PLACES(in), op.halo + 1);
        if (op.b >= 0) fetch_later<Columns>(LTHFUNC_PLACES(b), op.halo + 1);
      }
      const vec bias = broadcast(op.bias < 0 ? 0.0f : m.values[op.bias + channel]);
      LTHFUNC_UNROLL
      for (int s = 0; s < Columns; ++s) sum[s] = bias;
    }
    const i32* const list = starts + channel * op.blocks + block;
    for (i32 k = list[0]; k < list[1]; ++k) {
      const vec weight = broadcast(values[k]);
      const i64 bytes = offsets[k];
      LTHFUNC_UNROLL
      for (int s = 0; s < Columns; ++s) sum[s] += weight * behind(in, bytes + s * BYTES);
    }
    if (block < op.blocks - 1) {
      LTHFUNC_UNROLL
      for (int s = 0; s < Columns; ++s) before[s] = sum[s];
      return;
    }
    const auto out = LTHFUNC_PLACES(out);
    if (out.half)
      finish_value<halves>(sum, norm, channel);
    else
      finish_value<vec>(sum, norm, channel);
    write_places(out, sum, op.streamed);
  });
}

// A row of a channel of the normalised image.
template <typename In, typename Added, typename Copy>
void normalised_row(const rolling_products_row& op, const float* saved, const In* in, const Added* b, Copy* copy,
                    vec* places) {
  const float factor = saved[factor_of], summand = saved[summand_of];
  for (i64 x = 0; x < op.width; ++x) {
    vec value = read(in[x]) * factor + summand;
    if (b) value += read(b[x]);
    if (op.relu) value = rectified(value);
    if (copy) {
      value = as_held<Copy>(value);
      op.copy_streamed ? stream(copy[x], value) : write(copy[x], value);
    }
    places[x] = value;
  }
}

}  // namespace

// copy and out are none of what is read.
void verify(const rolling_products_row& op, Verifier& v) {
  const i64 entries = verify_rolling(op, v);
  LTHFUNC_INSIDE_HALF(in, op.channels, op.height, op.width);
  if (op.b >= 0) LTHFUNC_INSIDE_HALF(b, op.channels, op.height, op.width);
  if (op.copy >= 0) LTHFUNC_INSIDE_HALF(copy, op.channels, op.height, op.width);
  LTHFUNC_INSIDE_HALF(out, op.rows, op.height, op.width);
  v.constants("saved", op.saved, op.channels * SAVED);
  v.values("values", op.values, {{entries, 1}});
  if (op.bias >= 0) v.values("bias", op.bias, {{op.rows, 1}});
  if (op.sums >= 0) v.activations("sums", op.sums, {{v.tiles, op.sums_tile}, {op.rows * VALUE_SUMS, 1}});
}

void rolling_products(const rolling_products_row& op, Workspace& m, Part part) {
  static constexpr decltype(&outputs_of_columns<1>) kernels[] = LTHFUNC_FOR_COLUMNS(outputs_of_columns);
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    const Rolling rolling = rolling_of(op, m, tile);
    const auto make = [&](i64 y) {
      make_row(rolling, y, [&](i64 channel, vec* places) {
        const auto with = [&](const auto* in, const auto* b, auto* copy) {
          normalised_row(op, m.constants + op.saved + channel * SAVED, in, b, copy, places);
        };
        const auto of = [&](const auto* in) {
          const auto added = [&](const auto* b) {
            if (op.copy < 0) return with(in, b, static_cast<vec*>(nullptr));
            const auto kept = [&](auto* copy) { with(in, b, copy); };
            LTHFUNC_EITHER(copy, kept);
          };
          if (op.b < 0) return added(static_cast<const vec*>(nullptr));
          LTHFUNC_EITHER(b, added);
        };
        LTHFUNC_EITHER(in, of);
      });
    };
    roll(rolling, make, [&](i64 y) {
      in_columns(op.width, kernels, [&](i64 x, auto kernel) { kernel(op, m, rolling, tile, y, x); });
    });
  }
  if (op.streamed || op.copy_streamed) end_streams();
}

}  // namespace lthfunc
