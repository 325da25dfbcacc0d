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

// Lanes whose number has this bit, and each lane's neighbour across it.
template <int Bit>
struct Lane {
  static constexpr i32 b = 1 << Bit;
#define LTHFUNC_LANES(f) \
  {f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), f(15)}
#define LTHFUNC_HAS(lane) ((lane) & b ? -1 : 0)
#define LTHFUNC_SWAPPED(lane) ((lane) ^ b)
  static LTHFUNC_INLINE ivec has() { return ivec LTHFUNC_LANES(LTHFUNC_HAS); }
  static LTHFUNC_INLINE vec swapped(vec v) {
#if defined(__clang__)
    return __builtin_shufflevector(v, v, 0 ^ b, 1 ^ b, 2 ^ b, 3 ^ b, 4 ^ b, 5 ^ b, 6 ^ b, 7 ^ b, 8 ^ b, 9 ^ b, 10 ^ b,
                                   11 ^ b, 12 ^ b, 13 ^ b, 14 ^ b, 15 ^ b);
#else
    return __builtin_shuffle(v, ivec LTHFUNC_LANES(LTHFUNC_SWAPPED));
#endif
  }
#undef LTHFUNC_LANES
#undef LTHFUNC_HAS
#undef LTHFUNC_SWAPPED
};

// Rows across a bit exchange their halves; over all four bits, 16 × 16 numbers are transposed.
template <int Bit>
LTHFUNC_INLINE void exchange(vec (&rows)[16]) {
  const ivec has = Lane<Bit>::has();
  LTHFUNC_UNROLL
  for (int i = 0; i < 16; ++i) {
    if (i & (1 << Bit)) continue;
    const vec a = rows[i], b = rows[i | (1 << Bit)];
    rows[i] = has ? Lane<Bit>::swapped(b) : a;
    rows[i | (1 << Bit)] = has ? b : Lane<Bit>::swapped(a);
  }
}

LTHFUNC_INLINE void transpose(vec (&rows)[16]) {
  exchange<3>(rows);
  exchange<2>(rows);
  exchange<1>(rows);
  exchange<0>(rows);
}

// Both vectors' lanes added up in pairs across a bit: a's sums in the lanes without it, b's in those with it.
template <int Bit>
LTHFUNC_INLINE vec folded(vec a, vec b) {
  const ivec has = Lane<Bit>::has();
  return (has ? b : a) + Lane<Bit>::swapped(has ? a : b);
}

// Lane i of the result is the sum of v[i]'s lanes, for up to 16 vectors: four operations for each instead of eight.
// Each is added up in the same order, whatever is summed beside it.
template <int Count>
LTHFUNC_INLINE vec sums_of(const vec (&v)[Count]) {
  vec a[8];
  LTHFUNC_UNROLL
  for (int i = 0; i < 8; ++i)
    if (i < Count) a[i] = folded<3>(v[i], v[i + 8 < Count ? i + 8 : i]);
  LTHFUNC_UNROLL
  for (int i = 0; i < 4; ++i)
    if (i < Count) a[i] = folded<2>(a[i], a[i + 4 < Count ? i + 4 : i]);
  LTHFUNC_UNROLL
  for (int i = 0; i < 2; ++i)
    if (i < Count) a[i] = folded<1>(a[i], a[i + 2 < Count ? i + 2 : i]);
  return folded<0>(a[0], a[1 < Count ? 1 : 0]);
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
