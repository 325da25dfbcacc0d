// Statistics of batch normalisation (Ioffe & Szegedy 2015, alg. 1 and 2), a channel a row.
//
// A batch is read once for them, tile by tile: by whoever writes it, or right behind. Each tile has sums of its own,
// lane by lane, and those of all are added up in one order.
#include "batch_sums.h"

namespace lthfunc {
namespace {

// Sums of a few thousand floats stay in floats; those of tiles are added up in doubles, lane by lane first.
struct Lanes {
  double sum[LANES] = {};

  double total() const {
    double result = 0;
    for (const double each : sum) result += each;
    return result;
  }
};

// Mean and variance of a channel over all tiles, whose lanes have as many places each (Chan et al. 1983, eq. 2.1).
struct Moments {
  double mean, variance;
};
Moments moments(const batch_statistics_row& op, const Workspace& m, i64 channel) {
  const auto places = static_cast<double>(op.places), count = static_cast<double>(m.examples) * places;
  const auto of_lanes = [&](auto each) {
    Lanes lanes;
    for (i64 tile = 0; tile < m.tiles; ++tile) {
      const vec* const at = m.activations + op.sums + tile * op.sums_tile + channel * VALUE_SUMS;
      const i64 there = m.examples - tile * LANES;
      for (int lane = 0; lane < LANES; ++lane) {
        const auto shift = static_cast<double>(at[0][lane]), sum = static_cast<double>(at[1][lane]),
                   squares = static_cast<double>(at[2][lane]);
        const double found = each(shift, sum, squares);
        lanes.sum[lane] += lane < there ? found : 0.0;
      }
    }
    return lanes.total() / count;
  };
  const double mean = of_lanes([&](double shift, double sum, double) { return shift * places + sum; });
  const double variance = of_lanes([&](double shift, double sum, double squares) {
    const double mine = sum / places, off = shift + mine - mean;
    return squares - sum * mine + places * off * off;
  });
  return {mean, variance < 0.0 ? 0.0 : variance};  // of rounding; NaN stays NaN
}

}  // namespace

// in: (channels, height, width) of each tile. sums: VALUE_SUMS vectors a channel and tile.
void verify(const value_sums_row& op, Verifier& v) {
  v.require(op.height > 0 && op.width > 0, "height and width: positive");
  LTHFUNC_INSIDE(in, op.rows, op.height, op.width);
  v.activations("sums", op.sums, {{v.tiles, op.sums_tile}, {op.rows * VALUE_SUMS, 1}});
}

void value_sums(const value_sums_row& op, Workspace& m, Part part) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile)
    for (i64 channel = part.row; channel < part.rows; ++channel) {
      ValueSums sums;
      for (i64 y = 0; y < op.height; ++y) {
        const vec* const in = LTHFUNC_AT(in);
        if (y == 0) sums.begin(in[0]);
        for (i64 x = 0; x < op.width; ++x) sums.add(in[x], x);
      }
      sums.write(m.activations + op.sums + tile * op.sums_tile + channel * VALUE_SUMS);
    }
}

// sums: as above, read in training alone. saved: SAVED constants a channel, side by side.
void verify(const batch_statistics_row& op, Verifier& v) {
  if (op.training) v.activations("sums", op.sums, {{v.tiles, op.sums_tile}, {op.rows * VALUE_SUMS, 1}});
  v.require(op.places > 0, "places: positive");
  v.constants("saved", op.saved, op.rows * SAVED);
  v.constants("running_mean", op.running_mean, op.rows);
  v.constants("running_variance", op.running_variance, op.rows);
  v.constants("momentum", op.momentum);
  v.constants("epsilon", op.epsilon);
  verify_affine(op.weight, op.bias, op.rows, v);
}

void batch_statistics(const batch_statistics_row& op, Workspace& m, Part part) {
  const double count = static_cast<double>(m.examples * op.places);
  for (i64 channel = part.row; channel < part.rows; ++channel) {
    float* const saved = m.constants + op.saved + channel * SAVED;
    float &running_mean = m.constants[op.running_mean + channel],
          &running_variance = m.constants[op.running_variance + channel];
    Moments found{static_cast<double>(running_mean), static_cast<double>(running_variance)};
    if (op.training) {
      found = moments(op, m, channel);
      const double momentum = static_cast<double>(m.constants[op.momentum]);
      const double unbiased = count > 1 ? found.variance * count / (count - 1) : found.variance;
      running_mean = static_cast<float>(static_cast<double>(running_mean) * (1 - momentum) + found.mean * momentum);
      running_variance =
          static_cast<float>(static_cast<double>(running_variance) * (1 - momentum) + unbiased * momentum);
    }
    const double deviation = 1.0 / std::sqrt(found.variance + static_cast<double>(m.constants[op.epsilon]));
    const double weight = op.weight < 0 ? 1.0 : static_cast<double>(m.values[op.weight + channel]);
    const double bias = op.bias < 0 ? 0.0 : static_cast<double>(m.values[op.bias + channel]);
    saved[mean_of] = static_cast<float>(found.mean);
    saved[deviation_of] = static_cast<float>(deviation);
    saved[factor_of] = static_cast<float>(weight * deviation);
    saved[summand_of] = static_cast<float>(bias - found.mean * weight * deviation);
  }
}

// in, grad: (channels, height, width) of each tile. sums: GRADIENT_SUMS vectors a channel and tile.
void verify(const gradient_sums_row& op, Verifier& v) {
  LTHFUNC_INSIDE_HALF(in, op.rows, op.height, op.width);
  LTHFUNC_INSIDE_HALF(grad, op.rows, op.height, op.width);
  v.constants("saved", op.saved, op.rows * SAVED);
  v.activations("sums", op.sums, {{v.tiles, op.sums_tile}, {op.rows * GRADIENT_SUMS, 1}});
}

void gradient_sums(const gradient_sums_row& op, Workspace& m, Part part) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile)
    for (i64 channel = part.row; channel < part.rows; ++channel) {
      const float mean = m.constants[op.saved + channel * SAVED + mean_of];
      GradientSums sums;
      for (i64 y = 0; y < op.height; ++y) {
        const i64 in_ahead = LTHFUNC_AHEAD(in), grad_ahead = LTHFUNC_AHEAD(grad);
        const auto row = [&](const auto* in) {
          const auto with = [&](const auto* grad) {
            for (i64 x = 0; x < op.width; ++x) {
              fetch(in + in_ahead + x);
              fetch(grad + grad_ahead + x);
              sums.add(read(grad[x]), read(in[x]) - mean, x);
            }
          };
          LTHFUNC_EITHER(grad, with);
        };
        LTHFUNC_EITHER(in, row);
      }
      sums.write(m.activations + op.sums + tile * op.sums_tile + channel * GRADIENT_SUMS);
    }
}

// sums: as above. Gradients: one number a channel, side by side.
void verify(const gradient_means_row& op, Verifier& v) {
  v.activations("sums", op.sums, {{v.tiles, op.sums_tile}, {op.rows * GRADIENT_SUMS, 1}});
  v.require(op.places > 0, "places: positive");
  v.constants("saved", op.saved, op.rows * SAVED);
  if (op.weight_gradient >= 0) v.gradients("weight_gradient", op.weight_gradient, op.rows);
  if (op.bias_gradient >= 0) v.gradients("bias_gradient", op.bias_gradient, op.rows);
}

void gradient_means(const gradient_means_row& op, Workspace& m, Part part) {
  const double count = static_cast<double>(m.examples * op.places);
  for (i64 channel = part.row; channel < part.rows; ++channel) {
    float* const saved = m.constants + op.saved + channel * SAVED;
    Lanes sums, dots;
    for (i64 tile = 0; tile < m.tiles; ++tile) {
      const vec* const at = m.activations + op.sums + tile * op.sums_tile + channel * GRADIENT_SUMS;
      for (int lane = 0; lane < LANES; ++lane) {
        sums.sum[lane] += static_cast<double>(at[0][lane]);
        dots.sum[lane] += static_cast<double>(at[1][lane]);
      }
    }
    const double sum = sums.total(), dot = dots.total(), deviation = static_cast<double>(saved[deviation_of]);
    saved[grad_mean_of] = op.training ? static_cast<float>(sum / count) : 0.0f;
    saved[grad_dot_of] = op.training ? static_cast<float>(dot * deviation * deviation / count) : 0.0f;
    if (op.weight_gradient >= 0) m.gradients[op.weight_gradient + channel] = static_cast<float>(dot * deviation);
    if (op.bias_gradient >= 0) m.gradients[op.bias_gradient + channel] = static_cast<float>(sum);
  }
}

}  // namespace lthfunc
