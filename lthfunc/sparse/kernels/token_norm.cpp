// Layer normalisation (Ba et al. 2016, eq. 4) and RMS normalisation (Zhang & Sennrich 2019, eq. 4) of each token, whose
// features are channels. Lanes are examples and places are tokens, so that all of it is done lane by lane.
#include <algorithm>
#include <vector>

#include "verify.h"

namespace lthfunc {
namespace {

// function(first place, how many as a constant) for all places of a row, some at a time.
template <int Most, typename Function>
LTHFUNC_INLINE void some_places(i64 width, Function function) {
  i64 x = 0;
  for (; x + Most <= width; x += Most) function(x, std::integral_constant<int, Most>{});
  for (; x < width; ++x) function(x, std::integral_constant<int, 1>{});
}

}  // namespace

// in, out: (channels, rows, width) of each tile; out may be in. saved: mean and reciprocal deviation of each place,
// side by side. weight, bias: one number a channel. centred: whether the mean is subtracted.
void verify(const token_normalise_row& op, Verifier& v) {
  v.require(op.channels > 0, "channels: positive");
  LTHFUNC_INSIDE(in, op.channels, op.rows, op.width);
  LTHFUNC_INSIDE(out, op.channels, op.rows, op.width);
  v.activations("saved", op.saved, {{v.tiles, op.saved_tile}, {op.rows, 2 * op.width}, {op.width, 2}, {2, 1}});
  verify_affine(op.weight, op.bias, op.channels, v);
  v.constants("epsilon", op.epsilon);
}

void token_normalise(const token_normalise_row& op, Workspace& m, Part part) {
  const float share = 1.0f / static_cast<float>(op.channels), epsilon = m.constants[op.epsilon];
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    const ivec there = first_lanes(m.examples - tile * LANES);
    for (i64 y = part.row; y < part.rows; ++y)
      some_places<8>(op.width, [&](i64 x, auto constant) {
        constexpr int Places = decltype(constant)::value;
        const vec* const in = m.activations + op.in + tile * op.in_tile + y * op.in_row + x;
        vec* const out = m.activations + op.out + tile * op.out_tile + y * op.out_row + x;
        vec mean[Places] = {}, deviation[Places] = {};
        if (op.centred) {
          for (i64 channel = 0; channel < op.channels; ++channel) {
            LTHFUNC_UNROLL
            for (int p = 0; p < Places; ++p) mean[p] += in[channel * op.in_channel + p];
          }
          LTHFUNC_UNROLL
          for (int p = 0; p < Places; ++p) mean[p] = mean[p] * share;
        }
        for (i64 channel = 0; channel < op.channels; ++channel) {
          LTHFUNC_UNROLL
          for (int p = 0; p < Places; ++p) {
            const vec apart = in[channel * op.in_channel + p] - mean[p];
            deviation[p] += apart * apart;
          }
        }
        vec* const saved = m.activations + op.saved + tile * op.saved_tile + 2 * (y * op.width + x);
        LTHFUNC_UNROLL
        for (int p = 0; p < Places; ++p) {
          // Lanes without an example may hold zeros alone, whose deviation is infinite where epsilon is 0.
          deviation[p] = where(there, 1.0f / root(deviation[p] * share + epsilon), vec{});
          saved[2 * p] = mean[p];
          saved[2 * p + 1] = deviation[p];
        }
        for (i64 channel = 0; channel < op.channels; ++channel) {
          const vec weight = broadcast(op.weight < 0 ? 1.0f : m.values[op.weight + channel]);
          const vec bias = broadcast(op.bias < 0 ? 0.0f : m.values[op.bias + channel]);
          LTHFUNC_UNROLL
          for (int p = 0; p < Places; ++p) {
            const vec value = (in[channel * op.in_channel + p] - mean[p]) * deviation[p] * weight + bias;
            out[channel * op.out_channel + p] = op.relu ? rectified(value) : value;
          }
        }
      });
  }
}

// in, grad, into: (channels, height, width) of each tile; into may be grad. The gate lies as into does.
// weight_gradient, bias_gradient: one number a channel.
void verify(const token_normalise_gradient_row& op, Verifier& v) {
  v.require(op.rows == 1 && op.channels > 0, "rows and channels: out of range");
  LTHFUNC_INSIDE(in, op.channels, op.height, op.width);
  LTHFUNC_INSIDE(grad, op.channels, op.height, op.width);
  if (op.into >= 0) LTHFUNC_GATED(into, op.channels, op.height, op.width);
  v.activations("saved", op.saved, {{v.tiles, op.saved_tile}, {op.height, 2 * op.width}, {op.width, 2}, {2, 1}});
  verify_affine(op.weight, -1, op.channels, v);
  if (op.weight_gradient >= 0) v.gradients("weight_gradient", op.weight_gradient, op.channels);
  if (op.bias_gradient >= 0) v.gradients("bias_gradient", op.bias_gradient, op.channels);
}

void token_normalise_gradient(const token_normalise_gradient_row& op, Workspace& m, Part part) {
  const float share = 1.0f / static_cast<float>(op.channels);
  // Sums of each channel over the places of a tile: of weights' gradients, then of biases'.
  std::vector<vec> sums(static_cast<std::size_t>(2 * op.channels));
  vec* const dots = sums.data();
  vec* const totals = dots + op.channels;
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    std::fill(sums.begin(), sums.end(), vec{});
    for (i64 y = 0; y < op.height; ++y)
      some_places<4>(op.width, [&](i64 x, auto constant) {
        constexpr int Places = decltype(constant)::value;
        const vec* const in = m.activations + op.in + tile * op.in_tile + y * op.in_row + x;
        const vec* const grad = m.activations + op.grad + tile * op.grad_tile + y * op.grad_row + x;
        const vec* const saved = m.activations + op.saved + tile * op.saved_tile + 2 * (y * op.width + x);
        vec mean[Places], deviation[Places], sum[Places] = {}, dot[Places] = {};
        LTHFUNC_UNROLL
        for (int p = 0; p < Places; ++p) {
          mean[p] = saved[2 * p];
          deviation[p] = saved[2 * p + 1];
        }
        for (i64 channel = 0; channel < op.channels; ++channel) {
          const vec weight = broadcast(op.weight < 0 ? 1.0f : m.values[op.weight + channel]);
          vec channel_dot{}, channel_sum{};
          LTHFUNC_UNROLL
          for (int p = 0; p < Places; ++p) {
            const vec here = grad[channel * op.grad_channel + p];
            const vec times = here * (in[channel * op.in_channel + p] - mean[p]) * deviation[p];
            channel_dot += times;
            channel_sum += here;
            sum[p] += here * weight;
            dot[p] += times * weight;
          }
          dots[channel] += channel_dot;
          totals[channel] += channel_sum;
        }
        if (op.into < 0) return;
        vec* const into = m.activations + op.into + tile * op.into_tile + y * op.into_row + x;
        LTHFUNC_UNROLL
        for (int p = 0; p < Places; ++p) {
          sum[p] = op.centred ? sum[p] * share : vec{};
          dot[p] = dot[p] * share * deviation[p];
        }
        for (i64 channel = 0; channel < op.channels; ++channel) {
          const vec weight = broadcast(op.weight < 0 ? 1.0f : m.values[op.weight + channel]);
          vec* const to = into + channel * op.into_channel;
          const vec* const gate = gate_of(op.gate, op.into, to);
          LTHFUNC_UNROLL
          for (int p = 0; p < Places; ++p) {
            vec value = (grad[channel * op.grad_channel + p] * weight - sum[p] -
                         (in[channel * op.in_channel + p] - mean[p]) * dot[p]) *
                        deviation[p];
            if (op.accumulate) value += to[p];
            to[p] = gated(value, gate, p);
          }
        }
      });
    const bool again = tile > 0 && !m.partials;
    const auto add = [&](i64 first, const vec* of) {
      for (i64 channel = 0; channel < op.channels; channel += LANES) {
        const i64 count = std::min<i64>(LANES, op.channels - channel);
        vec some[LANES] = {};
        std::copy_n(of + channel, count, some);
        float* const gradient = m.gradients + first + channel;
        const vec total = sums_of(some);
        store(gradient, again ? total + load(gradient, count) : total, count);
      }
    };
    if (op.weight_gradient >= 0) add(op.weight_gradient, dots);
    if (op.bias_gradient >= 0) add(op.bias_gradient, totals);
  }
}

}  // namespace lthfunc
