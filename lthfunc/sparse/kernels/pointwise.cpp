// Pointwise functions, additions and copies, a channel's rows at a time.
#include <algorithm>

#include "machine.h"

namespace lthfunc {
namespace {

enum Pointwise : i64 {
  relu,
  leaky_relu,
  relu6,
  sigmoid,
  tanh_,
  silu,
  gelu,
  hardtanh,
  hardsigmoid,
  hardswish,
  elu,
  scale
};

LTHFUNC_INLINE vec logistic(vec x) { return 1.0f / (1.0f + exponential(-x)); }
LTHFUNC_INLINE vec tangent(vec x) { return 2.0f * logistic(2.0f * x) - 1.0f; }
LTHFUNC_INLINE vec clamped(vec x, float low, float high) {
  x = where(x < broadcast(low), broadcast(low), x);
  return where(x > broadcast(high), broadcast(high), x);
}
// A gradient between two limits, and nothing elsewhere.
LTHFUNC_INLINE vec inside(vec grad, vec x, float low, float high) {
  return where(x <= broadcast(low), vec{}, where(x >= broadcast(high), vec{}, grad));
}
// The error function lane by lane: GELU's exact form needs it, and few networks use GELU between sparse layers.
LTHFUNC_INLINE vec normal_share(vec x) {
  vec share;
  for (int i = 0; i < LANES; ++i) share[i] = 0.5f * (1.0f + std::erf(x[i] * 0.70710678118654752f));
  return share;
}

// The gradient before a function from the one behind it. Functions that are flat somewhere let nothing pass there,
// not even what is no number; where the value is no number, each does what PyTorch's does.
vec gradient_of(i64 kind, vec grad, vec x, float number) {
  switch (kind) {
    case relu: return passing(grad, x);
    case leaky_relu: return grad * where(x > vec{}, broadcast(1.0f), broadcast(number));
    case relu6: return inside(grad, x, 0.0f, 6.0f);
    case sigmoid: {
      const vec s = logistic(x);
      return grad * (s * (1.0f - s));
    }
    case tanh_: {
      const vec t = tangent(x);
      return grad * (1.0f - t * t);
    }
    case silu: {
      const vec s = logistic(x);
      return grad * (s + x * s * (1.0f - s));
    }
    case gelu: {
      const vec square = x * x, bell = where(square > broadcast(1e30f), vec{}, exponential(square * -0.5f));
      return grad * (normal_share(x) + x * bell * 0.39894228040143268f);
    }
    case hardtanh: return inside(grad, x, -1.0f, 1.0f);
    case hardsigmoid: return where((x > broadcast(-3.0f)) & (x < broadcast(3.0f)), grad * (1.0f / 6), vec{});
    case hardswish:
      return where(x <= broadcast(-3.0f), vec{}, where(x >= broadcast(3.0f), grad, grad * (x * (1.0f / 3) + 0.5f)));
    case elu: return grad * where(x <= vec{}, exponential(x) * number, broadcast(1.0f));
    default: return grad * number;
  }
}

// Calls function(tile, channel, y) for every row of the part.
template <typename Function>
LTHFUNC_INLINE void each_row(Part part, i64 height, Function function) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile)
    for (i64 channel = part.row; channel < part.rows; ++channel)
      for (i64 y = 0; y < height; ++y) function(tile, channel, y);
}

}  // namespace

vec value_of(i64 kind, vec x, float number) {
  switch (kind) {
    case relu: return rectified(x);
    case leaky_relu: return where(x > vec{}, x, x * number);
    case relu6: return clamped(x, 0.0f, 6.0f);
    case sigmoid: return logistic(x);
    case tanh_: return tangent(x);
    case silu: return x * logistic(x);
    case gelu: return x * normal_share(x);
    case hardtanh: return clamped(x, -1.0f, 1.0f);
    case hardsigmoid: return clamped(x * (1.0f / 6) + 0.5f, 0.0f, 1.0f);
    case hardswish: return x * clamped(x * (1.0f / 6) + 0.5f, 0.0f, 1.0f);
    case elu: return where(x > vec{}, x, (exponential(x) - 1.0f) * number);
    default: return x * number;
  }
}

void pointwise(const pointwise_row& op, Workspace& m, Part part) {
  const float number = m.constants[op.number];
  each_row(part, op.height, [&](i64 tile, i64 channel, i64 y) {
    const vec* const in = LTHFUNC_AT(in);
    vec* const out = LTHFUNC_AT(out);
    for (i64 x = 0; x < op.width; ++x) out[x] = value_of(op.kind, in[x], number);
  });
}

void pointwise_gradient(const pointwise_gradient_row& op, Workspace& m, Part part) {
  const float number = m.constants[op.number];
  each_row(part, op.height, [&](i64 tile, i64 channel, i64 y) {
    const vec *const in = LTHFUNC_AT(in), *const grad = LTHFUNC_AT(grad);
    vec* const into = LTHFUNC_AT(into);
    const vec* const gate = gate_of(op.gate, op.into, into);
    for (i64 x = 0; x < op.width; ++x) {
      vec value = gradient_of(op.kind, grad[x], in[x], number);
      if (op.accumulate) value += into[x];
      into[x] = gated(value, gate, x);
    }
  });
}

void add(const add_row& op, Workspace& m, Part part) {
  each_row(part, op.height, [&](i64 tile, i64 channel, i64 y) {
    const vec *const a = LTHFUNC_AT(a), *const b = LTHFUNC_AT(b);
    vec* const out = LTHFUNC_AT(out);
    for (i64 x = 0; x < op.width; ++x) {
      const vec value = a[x] + b[x];
      out[x] = op.relu ? rectified(value) : value;
    }
  });
}

void copy(const copy_row& op, Workspace& m, Part part) {
  each_row(part, op.height, [&](i64 tile, i64 channel, i64 y) {
    const vec* const in = LTHFUNC_AT(in);
    vec* const out = LTHFUNC_AT(out);
    const vec* const gate = gate_of(op.gate, op.out, out);
    for (i64 x = 0; x < op.width; ++x) {
      const i64 to = x * op.out_column;
      vec value = in[x * op.in_column];
      if (op.accumulate) value += out[to];
      out[to] = gated(value, gate, to);
    }
  });
}

void dropout(const dropout_row& op, Workspace& m, Part part) {
  const float scale = m.constants[op.scale];
  each_row(part, op.height, [&](i64 tile, i64 channel, i64 y) {
    const vec* const in = LTHFUNC_AT(in);
    vec* const out = LTHFUNC_AT(out);
    const vec* const gate = gate_of(op.gate, op.out, out);
    for (i64 x = 0; x < op.width; ++x) {
      // A counter through the finaliser of MurmurHash3, twice: seed and step first, then the place.
      const auto scrambled = [](uvec h) {
        h ^= h >> 16;
        h *= 0x85ebca6bu;
        h ^= h >> 13;
        h *= 0xc2b2ae35u;
        return h ^ (h >> 16);
      };
      const ivec numbers = lane_numbers();
      uvec lane;
      std::memcpy(&lane, &numbers, sizeof lane);
      const auto place = static_cast<std::uint32_t>(((tile * op.rows + channel) * op.height + y) * op.width + x);
      const uvec stream = scrambled(uvec{} + (m.seed ^ (m.step * 0x9e3779b9u)) + static_cast<std::uint32_t>(op.number));
      const uvec drawn = scrambled(stream ^ (lane + place * 16u));
      const ivec kept = drawn >= uvec{} + static_cast<std::uint32_t>(op.threshold);
      vec value = in[x] * where(kept, broadcast(scale), vec{});
      if (op.accumulate) value += out[x];
      out[x] = gated(value, gate, x);
    }
  });
}

void fill(const fill_row& op, Workspace& m, Part part) {
  each_row(part, op.height, [&](i64 tile, i64 channel, i64 y) { std::fill_n(LTHFUNC_AT(out), op.width, vec{}); });
}

void rectify(const rectify_row& op, Workspace& m, Part part) {
  each_row(part, op.height, [&](i64 tile, i64 channel, i64 y) {
    vec* const out = LTHFUNC_AT(out);
    const vec* const gate = gate_of(op.gate, op.out, out);
    for (i64 x = 0; x < op.width; ++x) out[x] = gated(out[x], gate, x);
  });
}

}  // namespace lthfunc
