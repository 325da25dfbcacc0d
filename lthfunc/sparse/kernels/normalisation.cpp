// Batch normalisation (Ioffe & Szegedy 2015, alg. 1 and 2), a channel a row, in tiles.
#include <algorithm>

#include "verify.h"

namespace lthfunc {
namespace {

// Sums of a few thousand floats stay in floats; those of rows are added up in doubles.
LTHFUNC_INLINE double total(vec v) {
  double result = 0;
  for (int lane = 0; lane < LANES; ++lane) result += static_cast<double>(v[lane]);
  return result;
}

// Weights and biases, one a channel, where there are any.
void verify_affine(i64 weight, i64 bias, i64 channels, const Verifier& v) {
  if (weight >= 0) v.values("weight", weight, {{channels, 1}});
  if (bias >= 0) v.values("bias", bias, {{channels, 1}});
}

}  // namespace

// in: (channels, height, width) of each tile, read in training alone. saved: SAVED constants a channel, side by side.
void verify(const batch_statistics_row& op, Verifier& v) {
  if (op.training) LTHFUNC_INSIDE(in, op.rows, op.height, op.width);
  v.require(op.height > 0 && op.width > 0, "height and width: positive");
  v.constants("saved", op.saved, op.rows * SAVED);
  v.constants("running_mean", op.running_mean, op.rows);
  v.constants("running_variance", op.running_variance, op.rows);
  v.constants("momentum", op.momentum);
  v.constants("epsilon", op.epsilon);
  verify_affine(op.weight, op.bias, op.rows, v);
}

void batch_statistics(const batch_statistics_row& op, Workspace& m, Part part) {
  const double count = static_cast<double>(m.examples * op.height * op.width);
  for (i64 channel = part.row; channel < part.rows; ++channel) {
    float* const saved = m.constants + op.saved + channel * SAVED;
    float &running_mean = m.constants[op.running_mean + channel],
          &running_variance = m.constants[op.running_variance + channel];
    double mean = static_cast<double>(running_mean), variance = static_cast<double>(running_variance);
    if (op.training) {
      // Shifted by a value of its own, so that squares don't cancel where the mean is large.
      const float first = m.activations[op.in + channel * op.in_channel][0],
                  shift = std::isfinite(first) ? first : 0.0f;
      double sum = 0, squares = 0;
      for (i64 tile = 0; tile < m.tiles; ++tile) {
        const ivec there = first_lanes(m.examples - tile * LANES);
        vec tile_sum[2] = {}, tile_squares[2] = {};
        for (i64 y = 0; y < op.height; ++y) {
          const vec* const in = LTHFUNC_AT(in);
          for (i64 x = 0; x < op.width; ++x) {
            const vec value = in[x] - shift;
            tile_sum[x & 1] += value;
            tile_squares[x & 1] += value * value;
          }
        }
        const vec both = tile_sum[0] + tile_sum[1], both_squares = tile_squares[0] + tile_squares[1];
        sum += total(where(there, both, vec{}));
        squares += total(where(there, both_squares, vec{}));
      }
      mean = sum / count;
      variance = squares / count - mean * mean;
      if (variance < 0.0) variance = 0.0;  // of rounding; NaN stays NaN
      mean += static_cast<double>(shift);
      const double momentum = static_cast<double>(m.constants[op.momentum]);
      const double unbiased = count > 1 ? variance * count / (count - 1) : variance;
      running_mean = static_cast<float>(static_cast<double>(running_mean) * (1 - momentum) + mean * momentum);
      running_variance =
          static_cast<float>(static_cast<double>(running_variance) * (1 - momentum) + unbiased * momentum);
    }
    const double deviation = 1.0 / std::sqrt(variance + static_cast<double>(m.constants[op.epsilon]));
    const double weight = op.weight < 0 ? 1.0 : static_cast<double>(m.values[op.weight + channel]);
    const double bias = op.bias < 0 ? 0.0 : static_cast<double>(m.values[op.bias + channel]);
    saved[mean_of] = static_cast<float>(mean);
    saved[deviation_of] = static_cast<float>(deviation);
    saved[factor_of] = static_cast<float>(weight * deviation);
    saved[summand_of] = static_cast<float>(bias - mean * weight * deviation);
  }
}

// in, b, out: (channels, height, width) of each tile, each with steps of its own; out may be in or b.
void verify(const normalise_row& op, Verifier& v) {
  LTHFUNC_INSIDE(in, op.rows, op.height, op.width);
  LTHFUNC_INSIDE(out, op.rows, op.height, op.width);
  if (op.b >= 0) LTHFUNC_INSIDE(b, op.rows, op.height, op.width);
  v.constants("saved", op.saved, op.rows * SAVED);
}

void normalise(const normalise_row& op, Workspace& m, Part part) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    for (i64 channel = part.row; channel < part.rows; ++channel) {
      const float* const saved = m.constants + op.saved + channel * SAVED;
      const float factor = saved[factor_of], summand = saved[summand_of];
      for (i64 y = 0; y < op.height; ++y) {
        const vec* const in = LTHFUNC_AT(in);
        const vec* const b = op.b < 0 ? nullptr : LTHFUNC_AT(b);
        vec* const out = LTHFUNC_AT(out);
        for (i64 x = 0; x < op.width; ++x) {
          vec value = in[x] * factor + summand;
          if (b) value += b[x];
          out[x] = op.relu ? rectified(value) : value;
        }
      }
    }
  }
}

// in, grad: as above. Gradients: one number a channel, side by side.
void verify(const normalise_sums_row& op, Verifier& v) {
  LTHFUNC_INSIDE(in, op.rows, op.height, op.width);
  LTHFUNC_INSIDE(grad, op.rows, op.height, op.width);
  v.constants("saved", op.saved, op.rows * SAVED);
  if (op.weight_gradient >= 0) v.gradients("weight_gradient", op.weight_gradient, op.rows);
  if (op.bias_gradient >= 0) v.gradients("bias_gradient", op.bias_gradient, op.rows);
}

void normalise_sums(const normalise_sums_row& op, Workspace& m, Part part) {
  const double count = static_cast<double>(m.examples * op.height * op.width);
  for (i64 channel = part.row; channel < part.rows; ++channel) {
    float* const saved = m.constants + op.saved + channel * SAVED;
    const float mean = saved[mean_of];
    double sum = 0, dot = 0;
    for (i64 tile = 0; tile < m.tiles; ++tile) {
      vec tile_sum[2] = {}, tile_dot[2] = {};
      for (i64 y = 0; y < op.height; ++y) {
        const vec *const in = LTHFUNC_AT(in), *const grad = LTHFUNC_AT(grad);
        for (i64 x = 0; x < op.width; ++x) {
          tile_sum[x & 1] += grad[x];
          tile_dot[x & 1] += grad[x] * (in[x] - mean);
        }
      }
      sum += total(tile_sum[0] + tile_sum[1]);
      dot += total(tile_dot[0] + tile_dot[1]);
    }
    const double deviation = static_cast<double>(saved[deviation_of]);
    saved[grad_mean_of] = op.training ? static_cast<float>(sum / count) : 0.0f;
    saved[grad_dot_of] = op.training ? static_cast<float>(dot * deviation * deviation / count) : 0.0f;
    if (op.weight_gradient >= 0) m.gradients[op.weight_gradient + channel] = static_cast<float>(dot * deviation);
    if (op.bias_gradient >= 0) m.gradients[op.bias_gradient + channel] = static_cast<float>(sum);
  }
}

// in, grad, into: as above; into may be grad. The gate lies as into does.
void verify(const normalise_gradient_row& op, Verifier& v) {
  LTHFUNC_INSIDE(in, op.rows, op.height, op.width);
  LTHFUNC_INSIDE(grad, op.rows, op.height, op.width);
  LTHFUNC_GATED(into, op.rows, op.height, op.width);
  v.constants("saved", op.saved, op.rows * SAVED);
}

void normalise_gradient(const normalise_gradient_row& op, Workspace& m, Part part) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    const ivec there = first_lanes(m.examples - tile * LANES);
    const bool full = m.examples - tile * LANES >= LANES;
    for (i64 channel = part.row; channel < part.rows; ++channel) {
      const float* const saved = m.constants + op.saved + channel * SAVED;
      const float factor = saved[factor_of], dot = saved[grad_dot_of];
      const float shift = saved[grad_mean_of] - saved[mean_of] * dot;
      for (i64 y = 0; y < op.height; ++y) {
        const vec *const in = LTHFUNC_AT(in), *const grad = LTHFUNC_AT(grad);
        vec* const into = LTHFUNC_AT(into);
        const vec* const gate = gate_of(op.gate, op.into, into);
        for (i64 x = 0; x < op.width; ++x) {
          vec value = (grad[x] - shift - in[x] * dot) * factor;
          if (!full) value = where(there, value, vec{});
          if (op.accumulate) value += into[x];
          into[x] = gated(value, gate, x);
        }
      }
    }
  }
}

// in, out: (groups · channels, height, width) of each tile; out is not in. saved: two vectors a group and tile.
void verify(const group_normalise_row& op, Verifier& v) {
  LTHFUNC_INSIDE(in, op.rows * op.channels, op.height, op.width);
  LTHFUNC_INSIDE(out, op.rows * op.channels, op.height, op.width);
  v.activations("saved", op.saved, {{v.tiles, op.saved_tile}, {2 * op.rows, 1}});
  verify_affine(op.weight, op.bias, op.rows * op.channels, v);
  v.constants("epsilon", op.epsilon);
}

// Group normalisation (Wu & He 2018, eq. 1 to 7). Lanes are examples, so all of it is done lane by lane.
void group_normalise(const group_normalise_row& op, Workspace& m, Part part) {
  const float share = 1.0f / static_cast<float>(op.channels * op.height * op.width);
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    for (i64 group = part.row; group < part.rows; ++group) {
      const i64 from = group * op.channels, to = from + op.channels;
      vec sum{}, squares{};
      for (i64 channel = from; channel < to; ++channel)
        for (i64 y = 0; y < op.height; ++y) {
          const vec* const in = LTHFUNC_AT(in);
          for (i64 x = 0; x < op.width; ++x) sum += in[x];
        }
      const vec mean = sum * share;
      for (i64 channel = from; channel < to; ++channel)
        for (i64 y = 0; y < op.height; ++y) {
          const vec* const in = LTHFUNC_AT(in);
          for (i64 x = 0; x < op.width; ++x) squares += (in[x] - mean) * (in[x] - mean);
        }
      const vec deviation = 1.0f / root(squares * share + m.constants[op.epsilon]);
      vec* const saved = m.activations + op.saved + tile * op.saved_tile + 2 * group;
      saved[0] = mean;
      saved[1] = deviation;
      for (i64 channel = from; channel < to; ++channel) {
        const vec factor = deviation * (op.weight < 0 ? 1.0f : m.values[op.weight + channel]);
        const vec summand = (op.bias < 0 ? 0.0f : m.values[op.bias + channel]) - mean * factor;
        for (i64 y = 0; y < op.height; ++y) {
          const vec* const in = LTHFUNC_AT(in);
          vec* const out = LTHFUNC_AT(out);
          for (i64 x = 0; x < op.width; ++x) {
            const vec value = in[x] * factor + summand;
            out[x] = op.relu ? rectified(value) : value;
          }
        }
      }
    }
  }
}

// in, grad, into: as above; into may be neither. The gate lies as into does. Gradients: one number a channel.
void verify(const group_normalise_gradient_row& op, Verifier& v) {
  const i64 channels = op.rows * op.channels;
  LTHFUNC_INSIDE(in, channels, op.height, op.width);
  LTHFUNC_INSIDE(grad, channels, op.height, op.width);
  LTHFUNC_GATED(into, channels, op.height, op.width);
  v.activations("saved", op.saved, {{v.tiles, op.saved_tile}, {2 * op.rows, 1}});
  if (op.weight >= 0) v.gradients("weight", op.weight, channels);
  if (op.bias >= 0) v.gradients("bias", op.bias, channels);
}

void group_normalise_gradient(const group_normalise_gradient_row& op, Workspace& m, Part part) {
  const float share = 1.0f / static_cast<float>(op.channels * op.height * op.width);
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    const bool again = tile > 0 && !m.partials;
    for (i64 group = part.row; group < part.rows; ++group) {
      const i64 from = group * op.channels, to = from + op.channels;
      const vec* const saved = m.activations + op.saved + tile * op.saved_tile + 2 * group;
      const vec mean = saved[0], deviation = saved[1];
      vec sum{}, dot{};
      for (i64 channel = from; channel < to; ++channel) {
        vec channel_sum{}, channel_dot{};
        for (i64 y = 0; y < op.height; ++y) {
          const vec *const in = LTHFUNC_AT(in), *const grad = LTHFUNC_AT(grad);
          for (i64 x = 0; x < op.width; ++x) {
            channel_sum += grad[x];
            channel_dot += grad[x] * (in[x] - mean) * deviation;
          }
        }
        const float weight = op.weight < 0 ? 1.0f : m.values[op.weight + channel];
        sum += channel_sum * weight;
        dot += channel_dot * weight;
        const auto add = [&](i64 first, vec total) {
          float& gradient = m.gradients[first + channel];
          gradient = lthfunc::sum(total) + (again ? gradient : 0.0f);
        };
        if (op.weight >= 0) add(op.weight, channel_dot);
        if (op.bias >= 0) add(op.bias, channel_sum);
      }
      sum *= share;
      dot *= share;
      for (i64 channel = from; channel < to; ++channel) {
        const float weight = op.weight < 0 ? 1.0f : m.values[op.weight + channel];
        for (i64 y = 0; y < op.height; ++y) {
          const vec *const in = LTHFUNC_AT(in), *const grad = LTHFUNC_AT(grad);
          vec* const into = LTHFUNC_AT(into);
          const vec* const gate = gate_of(op.gate, op.into, into);
          for (i64 x = 0; x < op.width; ++x) {
            vec value = (grad[x] * weight - sum - (in[x] - mean) * deviation * dot) * deviation;
            if (op.accumulate) value += into[x];
            into[x] = gated(value, gate, x);
          }
        }
      }
    }
  }
}

}  // namespace lthfunc
