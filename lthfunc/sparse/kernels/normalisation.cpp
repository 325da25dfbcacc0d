// Values and gradients behind a normalisation, tile by tile; the statistics of batch normalisation are a file of their
// own (batch_statistics.cpp).
#include "verify.h"

namespace lthfunc {

// in, b, out: (channels, height, width) of each tile, each with steps of its own; out may be in or b.
void verify(const normalise_row& op, Verifier& v) {
  LTHFUNC_INSIDE_HALF(in, op.rows, op.height, op.width);
  LTHFUNC_INSIDE_HALF(out, op.rows, op.height, op.width);
  if (op.b >= 0) LTHFUNC_INSIDE_HALF(b, op.rows, op.height, op.width);
  v.constants("saved", op.saved, op.rows * SAVED);
}

void normalise(const normalise_row& op, Workspace& m, Part part) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    for (i64 channel = part.row; channel < part.rows; ++channel) {
      const float* const saved = m.constants + op.saved + channel * SAVED;
      const float factor = saved[factor_of], summand = saved[summand_of];
      for (i64 y = 0; y < op.height; ++y) {
        const auto row = [&](const auto* in, auto* out, const auto* b) {
          const i64 in_ahead = LTHFUNC_AHEAD(in), b_ahead = LTHFUNC_AHEAD(b);
          for (i64 x = 0; x < op.width; ++x) {
            fetch(in + in_ahead + x);
            if (b) fetch(b + b_ahead + x);
            vec value = read(in[x]) * factor + summand;
            if (b) value += read(b[x]);
            write_as_held(out[x], op.relu ? rectified(value) : value);
          }
        };
        const auto of = [&](const auto* in) {
          const auto into = [&](auto* out) {
            const auto with = [&](const auto* b) { row(in, out, b); };
            if (op.b < 0) return with(static_cast<const vec*>(nullptr));
            LTHFUNC_EITHER(b, with);
          };
          LTHFUNC_EITHER(out, into);
        };
        LTHFUNC_EITHER(in, of);
      }
    }
  }
}

// in, grad, into: as above; into may be grad. The gate lies as into does.
void verify(const normalise_gradient_row& op, Verifier& v) {
  LTHFUNC_INSIDE_HALF(in, op.rows, op.height, op.width);
  LTHFUNC_INSIDE_HALF(grad, op.rows, op.height, op.width);
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
        vec* const into = LTHFUNC_AT(into);
        const vec* const gate = gate_of(op.gate, op.into, into);
        const auto row = [&](const auto* in, const auto* grad) {
          const i64 in_ahead = LTHFUNC_AHEAD(in), grad_ahead = LTHFUNC_AHEAD(grad);
          for (i64 x = 0; x < op.width; ++x) {
            fetch(in + in_ahead + x);
            fetch(grad + grad_ahead + x);
            vec value = (read(grad[x]) - shift - read(in[x]) * dot) * factor;
            if (!full) value = where(there, value, vec{});
            if (op.accumulate) value += into[x];
            into[x] = gated(value, gate, x);
          }
        };
        const auto of = [&](const auto* in) {
          const auto with = [&](const auto* grad) { row(in, grad); };
          LTHFUNC_EITHER(grad, with);
        };
        LTHFUNC_EITHER(in, of);
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
    const ivec there = first_lanes(m.examples - tile * LANES);
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
      // Lanes without an example may hold zeros alone, whose deviation is infinite where epsilon is 0.
      const vec deviation = where(there, 1.0f / root(squares * share + m.constants[op.epsilon]), vec{});
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
  verify_affine(op.weight, -1, channels, v);
  if (op.weight_gradient >= 0) v.gradients("weight_gradient", op.weight_gradient, channels);
  if (op.bias_gradient >= 0) v.gradients("bias_gradient", op.bias_gradient, channels);
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
        if (op.weight_gradient >= 0) add(op.weight_gradient, channel_dot);
        if (op.bias_gradient >= 0) add(op.bias_gradient, channel_sum);
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
