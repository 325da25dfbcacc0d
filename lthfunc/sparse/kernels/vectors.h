// Vectors of 16 floats by the compilers' own vector types: AVX-512, AVX2, NEON or none, from the same lines.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace lthfunc {

using i64 = std::int64_t;
using i32 = std::int32_t;

constexpr int LANES = 16;
constexpr i64 BYTES = 64;  // of a vector
typedef float vec __attribute__((vector_size(64)));
typedef i32 ivec __attribute__((vector_size(64)));
typedef double dvec __attribute__((vector_size(128)));

// How many sums stay in registers: 32 of 512 bits hold 16 and what they are made of; 16 of 256 bits hold 6.
#ifdef __AVX512F__
constexpr int MOST_SUMS = 16;
#else
constexpr int MOST_SUMS = 6;
#endif

#if defined(__clang__)
#define LTHFUNC_UNROLL _Pragma("unroll")
#else
#define LTHFUNC_UNROLL _Pragma("GCC unroll 32")
#endif
#define LTHFUNC_INLINE inline __attribute__((always_inline))

// The vector so many bytes behind another: offsets in lists are bytes, since a shift for each would show.
LTHFUNC_INLINE const vec& behind(const vec* place, i64 bytes) {
  return *reinterpret_cast<const vec*>(reinterpret_cast<const char*>(place) + bytes);
}

LTHFUNC_INLINE vec all(float value) { return value - vec{}; }
LTHFUNC_INLINE ivec all_int(i32 value) { return value - ivec{}; }
LTHFUNC_INLINE vec larger(vec a, vec b) { return a > b ? a : b; }

// Lanes of examples that exist: the last tile of a batch may be filled up with zeros.
LTHFUNC_INLINE ivec first_lanes(i64 count) {
  const ivec number = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return number < all_int(static_cast<i32>(count < 0 ? 0 : count > LANES ? LANES : count));
}

template <int A0, int A1, int A2, int A3, int A4, int A5, int A6, int A7, int A8, int A9, int A10, int A11, int A12,
          int A13, int A14, int A15>
LTHFUNC_INLINE vec shuffle(vec a, vec b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, A0, A1, A2, A3, A4, A5, A6, A7, A8, A9, A10, A11, A12, A13, A14, A15);
#else
  return __builtin_shuffle(a, b, ivec{A0, A1, A2, A3, A4, A5, A6, A7, A8, A9, A10, A11, A12, A13, A14, A15});
#endif
}

// The sum of each half of a pair of vectors, side by side; four levels of this add up 16 vectors at once, in some
// three operations for each instead of eight.
LTHFUNC_INLINE vec halves(vec a, vec b) {
  return shuffle<0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23>(a, b) +
         shuffle<8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31>(a, b);
}
LTHFUNC_INLINE vec quarters(vec a, vec b) {
  return shuffle<0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27>(a, b) +
         shuffle<4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31>(a, b);
}
LTHFUNC_INLINE vec pairs(vec a, vec b) {
  return shuffle<0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29>(a, b) +
         shuffle<2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31>(a, b);
}
LTHFUNC_INLINE vec singles(vec a, vec b) {
  return shuffle<0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30>(a, b) +
         shuffle<1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31>(a, b);
}

// Lane i of the result is the sum of v[i]'s lanes, for up to 16 vectors. Each is added up in the same order, whatever
// is summed beside it.
template <int Count>
LTHFUNC_INLINE vec sums_of(const vec (&v)[Count]) {
  static_assert(Count == 16 || Count == 8 || Count == 4 || Count == 2 || Count == 1, "a power of two");
  constexpr int n1 = Count / 2 ? Count / 2 : 1, n2 = n1 / 2 ? n1 / 2 : 1, n3 = n2 / 2 ? n2 / 2 : 1;
  vec a[n1], b[n2], c[n3];
  LTHFUNC_UNROLL
  for (int i = 0; i < n1; ++i) a[i] = halves(v[Count > 1 ? 2 * i : 0], v[Count > 1 ? 2 * i + 1 : 0]);
  LTHFUNC_UNROLL
  for (int i = 0; i < n2; ++i) b[i] = quarters(a[n1 > 1 ? 2 * i : 0], a[n1 > 1 ? 2 * i + 1 : 0]);
  LTHFUNC_UNROLL
  for (int i = 0; i < n3; ++i) c[i] = pairs(b[n2 > 1 ? 2 * i : 0], b[n2 > 1 ? 2 * i + 1 : 0]);
  return singles(c[0], c[n3 > 1 ? 1 : 0]);
}

LTHFUNC_INLINE float sum(vec v) {
  const vec one[1] = {v};
  return sums_of(one)[0];
}

// e^x within 2 units in the last place for x in [-87, 88]; clamped outside. (Cephes, expf.)
LTHFUNC_INLINE vec exponential(vec x) {
  x = x < all(-87.0f) ? all(-87.0f) : x;
  x = x > all(88.0f) ? all(88.0f) : x;
  const vec scaled = x * 1.44269504088896341f;
  const ivec whole = __builtin_convertvector(scaled + (scaled < vec{} ? all(-0.5f) : all(0.5f)), ivec);
  const vec n = __builtin_convertvector(whole, vec);
  const vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vec p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const vec fraction = p * r * r + r + 1.0f;
  const ivec exponent = (whole + 127) << 23;
  vec power;
  std::memcpy(&power, &exponent, sizeof power);
  return fraction * power;
}

LTHFUNC_INLINE vec root(vec x) {
  vec result;
  for (int i = 0; i < LANES; ++i) result[i] = __builtin_sqrtf(x[i]);
  return result;
}

}  // namespace lthfunc
