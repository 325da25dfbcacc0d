// Survivors among zeros and back: which of 16 weights survive is a number's bits.
#pragma once

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include <algorithm>

#include "verify.h"

namespace lthfunc {

#ifdef __AVX512F__
LTHFUNC_INLINE __mmask16 low_bits(int count) { return static_cast<__mmask16>((1u << count) - 1); }
#endif

// Numbers to the positions among 16 that a mask's bits tell, zeros to the others.
LTHFUNC_INLINE void spread(const float* from, unsigned mask, float* to) {
#ifdef __AVX512F__
  const __m512 next = _mm512_maskz_loadu_ps(low_bits(__builtin_popcount(mask)), from);
  _mm512_storeu_ps(to, _mm512_maskz_expand_ps(static_cast<__mmask16>(mask), next));
#else
  std::fill_n(to, LANES, 0.0f);
  for (; mask != 0; mask &= mask - 1) to[__builtin_ctz(mask)] = *from++;
#endif
}

// The numbers at those positions, side by side; nothing behind them is written.
LTHFUNC_INLINE void pick(const float* from, unsigned mask, float* to) {
#ifdef __AVX512F__
  const __m512 picked = _mm512_maskz_compress_ps(static_cast<__mmask16>(mask), _mm512_loadu_ps(from));
  _mm512_mask_storeu_ps(to, low_bits(__builtin_popcount(mask)), picked);
#else
  for (; mask != 0; mask &= mask - 1) *to++ = from[__builtin_ctz(mask)];
#endif
}

// All weights of a layer, by an instruction's columns: spread out among the activations, or as they are.
template <typename Row>
LTHFUNC_INLINE const float* weights_of(const Row& op, const Workspace& m) {
  return op.spread < 0 ? m.values + op.values : reinterpret_cast<const float*>(m.activations + op.spread);
}

template <typename Row>
void verify_weights(const Row& op, Verifier& v, std::initializer_list<Axis> axes, Range beside = {}) {
  if (op.spread < 0)
    v.values("values", op.values, axes, beside);
  else
    v.floats("spread", op.spread, axes, beside);
}

// The survivors of a row of `words` vectors, side by side; added to what is there or not.
inline void pick_row(const float* from, const i32* bits, i64 words, float* to, bool again) {
  for (i64 word = 0; word < words; ++word) {
    const auto mask = static_cast<unsigned>(bits[word]);
    const int count = __builtin_popcount(mask);
    if (again) {
      float picked[LANES];
      pick(from + word * LANES, mask, picked);
      for (int k = 0; k < count; ++k) to[k] += picked[k];
    } else {
      pick(from + word * LANES, mask, to);
    }
    to += count;
  }
}

}  // namespace lthfunc
