// Pointwise functions of numbers, by their kind, and the gradients before them from those behind.
#pragma once

#include "gelu.h"
#include "machine.h"

namespace lthfunc {

enum Pointwise : i64 {
#define POINTWISE(name) pointwise_##name,
#include "instructions.def"
};

// A number's distance from zero, which is never -0.
LTHFUNC_INLINE vec magnitude(vec x) { return where(x <= vec{}, vec{} - x, x); }

// ln(1 + x) for x from 0 to 1, within rounding of itself: twice the inverse hyperbolic tangent of x / (2 + x), which is
// 1/3 at most, so that eight terms of its series are enough.
LTHFUNC_INLINE vec logarithm_beyond_one(vec x) {
  const vec ratio = x / (x + 2.0f), square = ratio * ratio;
  vec p = broadcast(1.0f / 15);
  LTHFUNC_UNROLL
  for (int k = 13; k >= 3; k -= 2) p = p * square + 1.0f / static_cast<float>(k);
  return 2.0f * (ratio + ratio * square * p);
}

// ln(1 + e^x), of which no part overflows (Dugas et al. 2001).
LTHFUNC_INLINE vec softplus(vec x) { return rectified(x) + logarithm_beyond_one(exponential(-magnitude(x))); }

// What mish multiplies a number by (Misra 2020), the hyperbolic tangent of softplus: one exponential is enough for it.
LTHFUNC_INLINE vec mish_share(vec x) {
  const vec e = exponential(where(x > broadcast(20.0f), broadcast(20.0f), x)), inner = e * (e + 2.0f);
  return where(x < broadcast(-87.0f), vec{}, inner / (inner + 2.0f));
}

template <typename Truths>
LTHFUNC_INLINE vec truth(Truths holds) {
  return where(holds, broadcast(1.0f), vec{});
}

// Without what follows the point. Numbers from 2^23 on have nothing there, nor have infinities and NaN.
LTHFUNC_INLINE vec toward_zero(vec x) {
  const ivec small = (x > broadcast(-8388608.0f)) & (x < broadcast(8388608.0f));
  return where(small, converted(truncated(where(small, x, vec{}))), x);
}

LTHFUNC_INLINE vec inlined_value(i64 kind, vec x, Settings given) {
  const auto [number, other] = given;
  switch (kind) {
    case pointwise_relu: return rectified(x);
    case pointwise_leaky_relu: return where(x > vec{}, x, x * number);
    case pointwise_relu6: return clamped(x, 0.0f, 6.0f);
    case pointwise_sigmoid: return logistic(x);
    case pointwise_tanh: return tangent(x);
    case pointwise_silu: return x * logistic(x);
    case pointwise_gelu: return x * normal_share(x);
    case pointwise_gelu_tanh: return x * 0.5f * (1.0f + tangent(gelu_inner(x)));
    case pointwise_hardsigmoid: return clamped(x * (1.0f / 6) + 0.5f, 0.0f, 1.0f);
    case pointwise_hardswish: return x * clamped(x * (1.0f / 6) + 0.5f, 0.0f, 1.0f);
    case pointwise_elu: return where(x > vec{}, x, (exponential(x) - 1.0f) * number);
    case pointwise_abs: return magnitude(x);
    case pointwise_clamp:  // NaN for no limit
    case pointwise_hardtanh: return clamped(x, number, other);
    case pointwise_softplus: return where(x * number > broadcast(other), x, softplus(x * number) * (1.0f / number));
    case pointwise_mish: return x * mish_share(x);
    case pointwise_log_sigmoid: return -softplus(-x);
    case pointwise_hardshrink: return where(magnitude(x) <= broadcast(number), vec{}, x);
    case pointwise_softshrink:
      return where(magnitude(x) <= broadcast(number), vec{}, where(x > vec{}, x - number, x + number));
    case pointwise_threshold: return where(x <= broadcast(number), broadcast(other), x);
    case pointwise_shift: return x + number;
    case pointwise_square: return x * x;
    case pointwise_sqrt: return root(x);
    case pointwise_rsqrt: return 1.0f / root(x);
    case pointwise_reciprocal: return 1.0f / x;
    case pointwise_exp: return exponential(x);
    case pointwise_trunc: return toward_zero(x);
    case pointwise_eq: return truth(x == broadcast(number));
    case pointwise_ne: return 1.0f - truth(x == broadcast(number));
    case pointwise_lt: return truth(x < broadcast(number));
    case pointwise_le: return truth(x <= broadcast(number));
    case pointwise_gt: return truth(x > broadcast(number));
    case pointwise_ge: return truth(x >= broadcast(number));
    default: return x * number;
  }
}

// A gradient between two limits, and nothing elsewhere.
LTHFUNC_INLINE vec inside(vec grad, vec x, float low, float high) {
  return where(x <= broadcast(low), vec{}, where(x >= broadcast(high), vec{}, grad));
}

// Functions that are flat somewhere let nothing pass there, not even NaN; where the value is NaN, each does what
// PyTorch's does.
LTHFUNC_INLINE vec gradient_of(i64 kind, vec grad, vec x, Settings given) {
  const auto [number, other] = given;
  switch (kind) {
    case pointwise_relu: return passing(grad, x);
    case pointwise_leaky_relu: return grad * where(x > vec{}, broadcast(1.0f), broadcast(number));
    case pointwise_relu6: return inside(grad, x, 0.0f, 6.0f);
    case pointwise_sigmoid: {
      const vec s = logistic(x);
      return grad * (s * (1.0f - s));
    }
    case pointwise_tanh: {
      const vec t = tangent(x);
      return grad * (1.0f - t * t);
    }
    case pointwise_silu: {
      const vec s = logistic(x);
      return grad * (s + x * s * (1.0f - s));
    }
    case pointwise_gelu: return grad * normal_slope(x);
    case pointwise_gelu_tanh: {
      const vec t = tangent(gelu_inner(x)), steep = x * (1.0f - t * t) * gelu_slope(x);
      return grad * 0.5f * (1.0f + t + where(x * x > broadcast(1e12f), vec{}, steep));
    }
    case pointwise_hardtanh: return inside(grad, x, number, other);
    case pointwise_hardsigmoid: return where((x > broadcast(-3.0f)) & (x < broadcast(3.0f)), grad * (1.0f / 6), vec{});
    case pointwise_hardswish:
      return where(x <= broadcast(-3.0f), vec{}, where(x >= broadcast(3.0f), grad, grad * (x * (1.0f / 3) + 0.5f)));
    case pointwise_elu: return grad * where(x <= vec{}, exponential(x) * number, broadcast(1.0f));
    case pointwise_abs: return grad * where(x > vec{}, broadcast(1.0f), where(x < vec{}, broadcast(-1.0f), vec{}));
    case pointwise_clamp: return where(x == x, inside(grad, x, number, other), vec{});
    case pointwise_softplus: return where(x * number > broadcast(other), grad, grad * logistic(x * number));
    case pointwise_mish: {
      const vec share = mish_share(x);
      return grad * (share + x * logistic(x) * (1.0f - share * share));
    }
    case pointwise_log_sigmoid: return grad * logistic(-x);
    case pointwise_hardshrink:
    case pointwise_softshrink: return where(magnitude(x) <= broadcast(number), vec{}, grad);
    case pointwise_threshold: return where(x <= broadcast(number), vec{}, grad);
    case pointwise_shift: return grad;
    case pointwise_square: return grad * (x * 2.0f);
    case pointwise_sqrt: return grad * 0.5f / root(x);
    case pointwise_rsqrt: return grad * -0.5f / (root(x) * x);
    case pointwise_reciprocal: return -grad / (x * x);
    case pointwise_exp: return grad * exponential(x);
    case pointwise_trunc:
    case pointwise_eq:
    case pointwise_ne:
    case pointwise_lt:
    case pointwise_le:
    case pointwise_gt:
    case pointwise_ge: return vec{};
    default: return grad * number;
  }
}

// Whether a function of zero or its slope is infinite: lanes without an example may hold zeros alone.
constexpr bool is_infinite(i64 kind) {
  return kind == pointwise_sqrt || kind == pointwise_rsqrt || kind == pointwise_reciprocal;
}

}  // namespace lthfunc
