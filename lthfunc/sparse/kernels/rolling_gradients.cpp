// Gradients of a convolution whose rows roll: of its weights and of its image at once. Each vector of the outputs'
// gradient that a survivor reads serves both: times the weight it is a part of the image's gradient, and times the
// image one of the weight's.
#include <memory>

#include "rolling.h"

namespace lthfunc {
namespace {

// The weights in the order of the lists, and each one's gradient of a tile so far, lane by lane.
struct WeightLanes {
  const float* weights;
  vec* lanes;
};

// Of some columns of a row of the image.
template <int Columns>
void gradients_of_columns(const rolling_gradients_row& op, const Workspace& m, const Rolling& rolling, WeightLanes both,
                          i64 tile, i64 y, i64 x) {
  const i32 *const starts = m.lists + op.starts, entries = starts[op.rows * op.blocks];
  const i32* const offsets = m.lists + op.offsets + y % rolling.rows() * entries;
  const vec* const grad = rolling.room + x;
  vec* const sums = op.sums < 0 ? nullptr : m.activations + op.sums + tile * op.sums_tile;
  const bool first = x == 0 && y == 0;
  vec kept[ROWS_IN_TURN][Columns];
  in_blocks(op.rows, op.blocks, [&](i64 channel, i64 block) {
    const auto image = LTHFUNC_PLACES(image);
    vec held[Columns], sum[Columns], (&before)[Columns] = kept[channel % ROWS_IN_TURN];
    read_places(image, held);
    if (op.image_saved >= 0) {
      const float* const saved = m.constants + op.image_saved + channel * SAVED;
      LTHFUNC_UNROLL
      for (int s = 0; s < Columns; ++s) held[s] = held[s] * saved[factor_of] + saved[summand_of];
    }
    if (op.image_relu) {
      LTHFUNC_UNROLL
      for (int s = 0; s < Columns; ++s) held[s] = rectified(held[s]);
    }
    if (block) {
      LTHFUNC_UNROLL
      for (int s = 0; s < Columns; ++s) sum[s] = before[s];
    } else {
      if (channel < op.channels) {
        fetch_later<Columns>(LTHFUNC_PLACES(grad), op.halo + 1);
        if (op.saved >= 0) fetch_later<Columns>(LTHFUNC_PLACES(in), op.halo + 1);
      }
      fetch_later<Columns>(image, 1);
      LTHFUNC_UNROLL
      for (int s = 0; s < Columns; ++s) sum[s] = vec{};
    }
    const i32* const list = starts + channel * op.blocks + block;
    for (i32 k = list[0]; k < list[1]; ++k) {
      const vec weight = broadcast(both.weights[k]);
      const i64 bytes = offsets[k];
      vec total = both.lanes[k];
      LTHFUNC_UNROLL
      for (int s = 0; s < Columns; ++s) {
        const vec gradient = behind(grad, bytes + s * BYTES);
        sum[s] += weight * gradient;
        total += held[s] * gradient;
      }
      both.lanes[k] = total;
    }
    if (block < op.blocks - 1) {
      LTHFUNC_UNROLL
      for (int s = 0; s < Columns; ++s) before[s] = sum[s];
      return;
    }
    // As `finish` does it, with the same bits.
    const auto out = LTHFUNC_PLACES(out);
    vec beside[Columns];
    if (op.accumulate) {
      fetch_later<Columns>(out, 1);
      read_places(out, beside);
      LTHFUNC_UNROLL
      for (int s = 0; s < Columns; ++s) sum[s] += beside[s];
    }
    if (op.gate >= 0) {
      read_places(out.moved(op.gate - op.out), beside);
      LTHFUNC_UNROLL
      for (int s = 0; s < Columns; ++s) sum[s] = passing(sum[s], beside[s]);
    }
    if (out.half) {
      LTHFUNC_UNROLL
      for (int s = 0; s < Columns; ++s) sum[s] = as_held<halves>(sum[s]);
    }
    if (sums) {
      const auto norm = LTHFUNC_PLACES(norm);
      const BehindNorm behind_norm(m.constants + op.norm_saved + channel * SAVED, op.norm_relu);
      GradientSums added;
      if (!first) added.read(sums + channel * GRADIENT_SUMS);
      fetch_later<Columns>(norm, 1);
      read_places(norm, beside);
      LTHFUNC_UNROLL
      for (int s = 0; s < Columns; ++s) sum[s] = behind_norm.add(sum[s], beside[s], s, added);
      added.write(sums + channel * GRADIENT_SUMS);
    }
    write_places(out, sum, false);
  });
}

// A row of a channel of the gradient of a convolution's outputs: as it is, or behind a batch normalisation. there:
// which examples there are.
template <typename Grad, typename In>
void outputs_gradient_row(const rolling_gradients_row& op, const float* saved, ivec there, const Grad* grad,
                          const In* in, vec* places) {
  if (!in) {
    for (i64 x = 0; x < op.width; ++x) places[x] = read(grad[x]);
    return;
  }
  const float factor = saved[factor_of], dot = saved[grad_dot_of];
  const float shift = saved[grad_mean_of] - saved[mean_of] * dot;
  for (i64 x = 0; x < op.width; ++x)
    places[x] = where(there, (read(grad[x]) - shift - read(in[x]) * dot) * factor, vec{});
}

void gradients_of_tile(const rolling_gradients_row& op, const Workspace& m, WeightLanes both, i64 tile) {
  static constexpr decltype(&gradients_of_columns<1>) kernels[] = LTHFUNC_FOR_COLUMNS(gradients_of_columns);
  const Rolling rolling = rolling_of(op, m, tile);
  const ivec there = first_lanes(m.examples - tile * LANES);
  const auto make = [&](i64 y) {
    make_row(rolling, y, [&](i64 channel, vec* places) {
      const auto of = [&](const auto* grad) {
        if (op.saved < 0)
          return outputs_gradient_row(op, nullptr, there, grad, static_cast<const vec*>(nullptr), places);
        const auto behind_norm = [&](const auto* in) {
          outputs_gradient_row(op, m.constants + op.saved + channel * SAVED, there, grad, in, places);
        };
        LTHFUNC_EITHER(in, behind_norm);
      };
      LTHFUNC_EITHER(grad, of);
    });
  };
  roll(rolling, make, [&](i64 y) {
    in_columns(op.width, kernels, [&](i64 x, auto kernel) { kernel(op, m, rolling, both, tile, y, x); });
  });
}

// Lanes added up, of each weight. again: to what is there.
void add_lanes(const vec* lanes, const i32* which, i64 entries, float* gradients, bool again) {
  for (i64 k = 0; k < entries; k += LANES) {
    const i64 count = std::min<i64>(LANES, entries - k);
    vec some[LANES] = {};
    for (i64 i = 0; i < count; ++i) some[i] = lanes[k + i];
    const vec total = sums_of(some);
    for (i64 i = 0; i < count; ++i) {
      float& gradient = gradients[which[k + i]];
      gradient = total[i] + (again ? gradient : 0.0f);
    }
  }
}

}  // namespace

// out may be in or grad, whose rows around it were read before, but none of the others. The gate lies as it does.
void verify(const rolling_gradients_row& op, Verifier& v) {
  const i64 entries = verify_rolling(op, v);
  LTHFUNC_INSIDE_HALF(grad, op.channels, op.height, op.width);
  if (op.saved >= 0) {
    LTHFUNC_INSIDE_HALF(in, op.channels, op.height, op.width);
    v.constants("saved", op.saved, op.channels * SAVED);
  }
  LTHFUNC_INSIDE_HALF(image, op.rows, op.height, op.width);
  if (op.image_saved >= 0) v.constants("image_saved", op.image_saved, op.rows * SAVED);
  LTHFUNC_GATED_HALF(out, op.rows, op.height, op.width);
  if (op.sums >= 0) {
    LTHFUNC_INSIDE_HALF(norm, op.rows, op.height, op.width);
    v.constants("norm_saved", op.norm_saved, op.rows * SAVED);
    v.activations("sums", op.sums, {{v.tiles, op.sums_tile}, {op.rows * GRADIENT_SUMS, 1}});
  }
  const Range which = v.list("which", op.which, entries);
  v.require(entries == 0 || (which.low >= 0 && which.high < entries), "which: no such entry");
  v.values("values", op.values, {{entries, 1}});
  v.gradients("gradients", op.gradients, entries);
  v.activations("lanes", op.lanes, {{v.tiles, op.lanes_tile}, {entries, 1}});
}

void rolling_gradients(const rolling_gradients_row& op, Workspace& m, Part part) {
  const i64 entries = m.lists[op.starts + op.rows * op.blocks];
  const i32* const which = m.lists + op.which;
  const std::unique_ptr<float[]> weights(new float[static_cast<std::size_t>(entries)]);
  for (i64 k = 0; k < entries; ++k) weights[static_cast<std::size_t>(k)] = m.values[op.values + which[k]];
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    vec* const lanes = m.activations + op.lanes + tile * op.lanes_tile;
    std::fill(lanes, lanes + entries, vec{});
    gradients_of_tile(op, m, {weights.get(), lanes}, tile);
    add_lanes(lanes, which, entries, m.gradients + op.gradients, tile > 0 && !m.partials);
  }
}

}  // namespace lthfunc
