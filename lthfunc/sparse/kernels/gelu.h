// GELU (Hendrycks & Gimpel 2016): what it multiplies a number by, and its slope.
#pragma once

#include "vectors.h"

namespace lthfunc {

LTHFUNC_INLINE vec clamped(vec x, float low, float high) {
  x = where(x < broadcast(low), broadcast(low), x);
  return where(x > broadcast(high), broadcast(high), x);
}

// 0.5 + x · above(x²) / below(x²), whose coefficients begin with the highest power.
template <std::size_t Above, std::size_t Below>
LTHFUNC_INLINE vec odd_ratio(vec x, const float (&above)[Above], const float (&below)[Below]) {
  const vec square = x * x;
  vec p = broadcast(above[0]), q = broadcast(below[0]);
  LTHFUNC_UNROLL
  for (std::size_t k = 1; k < Above; ++k) p = p * square + above[k];
  LTHFUNC_UNROLL
  for (std::size_t k = 1; k < Below; ++k) q = q * square + below[k];
  return 0.5f + x * p / q;
}
// The share of a normal distribution below x, and its derivative times x added to it, which is GELU's slope: within
// 2e-7 and 5e-7. Ratios of the least largest error, since an exponential costs twice as much; nothing far below zero.
LTHFUNC_INLINE vec normal_share(vec x) {
  constexpr float far = 5.2f;
  constexpr float above[] = {2.4731328e-8f,  6.40769238e-6f, 1.56848636e-4f,
                             4.60856488e-3f, 3.25433935e-2f, 3.98942261e-1f};
  constexpr float below[] = {1.25886012e-6f, 7.04913926e-5f, 1.81712967e-3f, 2.79260014e-2f, 2.48240534e-1f, 1.0f};
  return where(x < broadcast(-far), vec{}, odd_ratio(clamped(x, -far, far), above, below));
}
LTHFUNC_INLINE vec normal_slope(vec x) {
  constexpr float far = 5.6f;
  constexpr float above[] = {2.58656939e-10f, 1.27697027e-7f, 3.37373116e-5f, -5.48702786e-6f,
                             1.4187217e-2f,   -3.2894993e-2f, 7.97885017e-1f};
  constexpr float below[] = {7.70154212e-6f, 1.81758202e-4f, 3.38260831e-3f, 4.0139365e-2f, 2.9211042e-1f, 1.0f};
  return where(x < broadcast(-far), vec{}, odd_ratio(clamped(x, -far, far), above, below));
}
// What GELU's approximate form takes the hyperbolic tangent of, and its slope (Hendrycks & Gimpel 2016, sec. 2).
LTHFUNC_INLINE vec gelu_inner(vec x) { return 0.79788456080286536f * (x + 0.044715f * x * x * x); }
LTHFUNC_INLINE vec gelu_slope(vec x) { return 0.79788456080286536f * (1.0f + 0.134145f * x * x); }

}  // namespace lthfunc
