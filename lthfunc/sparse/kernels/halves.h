// Vectors of 16 numbers of 16 bits (bfloat16): what values and gradients that wait for long are held as.
//
// Such a number is the upper half of a float, the nearest one, of two as near the even one; NaN stays NaN. Instructions
// that some processors have for this (AVX512-BF16) are not used: they make zeros of the smallest floats, so that
// results would depend on the processor, and what is rounded is summed up as well, for which it must be a float again.
#pragma once

#include "vectors.h"

namespace lthfunc {

struct alignas(LANES * 2) halves {
  std::uint16_t lane[LANES];
};

// The nearest float whose lower half is zero.
LTHFUNC_INLINE floats nearest_half(floats x) {
  const auto bits = same_bits<words>(x);
  const floats nearest = same_bits<floats>((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000);
#ifdef __AVX512F__
  // Where x is NaN, a quiet one of x; else what was found.
  return (floats)_mm512_fixupimm_ps((__m512)nearest, (__m512)x, _mm512_set1_epi32(0x22), 0);
#else
  return where(x == x, nearest, same_bits<floats>(bits | 0x400000));
#endif
}

// Floats from and to their upper halves; lower ones are cut off.
LTHFUNC_INLINE void load_upper(const std::uint16_t* from, floats& to) {
#ifdef __AVX512F__
  to = (floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))), 16);
#else
  typedef std::uint16_t shorts __attribute__((vector_size(2 * LTHFUNC_REGISTER)));
  shorts upper;
  std::memcpy(&upper, from, sizeof upper);
  to = same_bits<floats>(__builtin_convertvector(upper, words) << 16);
#endif
}
LTHFUNC_INLINE void store_upper(floats from, std::uint16_t* to) {
#ifdef __AVX512F__
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)from, 16)));
#else
  typedef std::uint16_t shorts __attribute__((vector_size(2 * LTHFUNC_REGISTER)));
  const shorts upper = __builtin_convertvector(same_bits<words>(from) >> 16, shorts);
  std::memcpy(to, &upper, sizeof upper);
#endif
}
LTHFUNC_INLINE void stream_upper(floats from, std::uint16_t* to) {
  alignas(32) std::uint16_t upper[LTHFUNC_REGISTER];
  store_upper(from, upper);
#if defined(__AVX512F__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), _mm256_load_si256(reinterpret_cast<const __m256i*>(upper)));
#elif defined(__AVX__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), _mm_load_si128(reinterpret_cast<const __m128i*>(upper)));
#else
  std::memcpy(to, upper, sizeof upper);
#endif
}
template <typename H>
LTHFUNC_INLINE void load_upper(const std::uint16_t* from, Two<H>& to) {
  load_upper(from, to.low);
  load_upper(from + lanes_of<H>, to.high);
}
template <typename H>
LTHFUNC_INLINE void store_upper(const Two<H>& from, std::uint16_t* to) {
  store_upper(from.low, to);
  store_upper(from.high, to + lanes_of<H>);
}
template <typename H>
LTHFUNC_INLINE void stream_upper(const Two<H>& from, std::uint16_t* to) {
  stream_upper(from.low, to);
  stream_upper(from.high, to + lanes_of<H>);
}
template <typename H>
LTHFUNC_INLINE Two<H> nearest_half(const Two<H>& v) {
  return {nearest_half(v.low), nearest_half(v.high)};
}

// A vector of either kind as floats; what one holds of a value; and that, once it is held so, written.
LTHFUNC_INLINE vec read(const vec& at) { return at; }
LTHFUNC_INLINE vec read(const halves& at) {
  vec value;
  load_upper(at.lane, value);
  return value;
}
template <typename Kind>
LTHFUNC_INLINE vec as_held(vec value) {
  if constexpr (std::is_same_v<Kind, halves>) return nearest_half(value);
  return value;
}
LTHFUNC_INLINE void write(vec& at, vec value) { at = value; }
LTHFUNC_INLINE void write(halves& at, vec value) { store_upper(value, at.lane); }
LTHFUNC_INLINE void stream(vec& at, vec value) { stream(value, reinterpret_cast<float*>(&at)); }
LTHFUNC_INLINE void stream(halves& at, vec value) { stream_upper(value, at.lane); }
template <typename Kind>
LTHFUNC_INLINE void write_as_held(Kind& at, vec value) {
  write(at, as_held<Kind>(value));
}

}  // namespace lthfunc
