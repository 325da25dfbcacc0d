// Vectors of 16 floats, and what kernels do with them.
#pragma once

#include <cmath>

#include "registers.h"

namespace lthfunc {

#define CONSTANT(name, value) constexpr int name = value;
#include "instructions.def"
constexpr i64 BYTES = LANES * sizeof(float);  // of a vector
using vec = Sixteen<floats>::type;
using ivec = Sixteen<ints>::type;
using uvec = Sixteen<words>::type;

// How many sums stay in registers: 32 of 512 bits hold 16 and what they are made of; 16 of 256 bits hold 6, as 32 of
// 128 bits do.
#ifdef __AVX512F__
constexpr int MAX_SUMS = STRETCH;
#else
constexpr int MAX_SUMS = 6;
#endif

// The vector `bytes` behind another: offsets in lists are bytes, since a shift for each would show.
LTHFUNC_INLINE const vec& behind(const vec* place, i64 bytes) {
  return *reinterpret_cast<const vec*>(reinterpret_cast<const char*>(place) + bytes);
}

// From and to memory that need not be aligned; of 16 numbers the first `count`, and zeros.
LTHFUNC_INLINE vec load(const float* from) {
  vec value;
  load(from, value);
  return value;
}
LTHFUNC_INLINE vec load(const float* from, i64 count) {
  if (count >= LANES) return load(from);
  vec value{};
  std::memcpy(&value, from, static_cast<std::size_t>(count) * sizeof(float));
  return value;
}
LTHFUNC_INLINE void store(float* to, vec value, i64 count = LANES) {
  if (count >= LANES)
    store(value, to);
  else
    std::memcpy(to, &value, static_cast<std::size_t>(count) * sizeof(float));
}

LTHFUNC_INLINE vec broadcast(float value) { return value - vec{}; }
LTHFUNC_INLINE ivec broadcast_int(i32 value) { return value - ivec{}; }
// Of numbers: where one is none, use `max_or_nan`.
LTHFUNC_INLINE vec max(vec a, vec b) { return where(a > b, a, b); }
// ReLU, and what passes where a value is above zero. NaN compares with nothing, so that these two
// ask for what is not above zero: it stays what it is and lets gradients pass, as in PyTorch.
LTHFUNC_INLINE vec rectified(vec x) { return where(x <= vec{}, vec{}, x); }
LTHFUNC_INLINE vec passing(vec gradient, vec value) { return where(value <= vec{}, vec{}, gradient); }

// Lanes that hold numbers, of both.
LTHFUNC_INLINE ivec numbers(vec a, vec b) { return (a == a) & (b == b); }
// The larger one, or NaN if one is NaN.
LTHFUNC_INLINE vec max_or_nan(vec a, vec b) { return where(a == a, max(a, b), a); }

// 0, 1, 2 …
LTHFUNC_INLINE ivec lane_numbers() {
  alignas(64) static constexpr i32 numbers[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  ivec result;
  std::memcpy(&result, numbers, sizeof result);
  return result;
}

// Lanes of examples that exist: the last tile of a batch may be filled up with zeros.
LTHFUNC_INLINE ivec first_lanes(i64 count) {
  return lane_numbers() < broadcast_int(static_cast<i32>(count < 0 ? 0 : count > LANES ? LANES : count));
}

// Rows across a bit exchange their halves; over all four bits, 16 × 16 numbers are transposed.
template <int Bit>
LTHFUNC_INLINE void exchange(vec (&rows)[16]) {
  LTHFUNC_UNROLL
  for (int i = 0; i < 16; ++i) {
    if (i & (1 << Bit)) continue;
    const vec a = rows[i], b = rows[i | (1 << Bit)];
    rows[i] = mixed<Bit>(a, swapped<Bit>(b));
    rows[i | (1 << Bit)] = mixed<Bit>(swapped<Bit>(a), b);
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
  return mixed<Bit>(a, b) + swapped<Bit>(mixed<Bit>(b, a));
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

// e^x within 2 units in the last place for x in [-87, 88]; clamped outside, but for infinity. (Cephes, expf.)
LTHFUNC_INLINE vec exponential(vec x) {
  const ivec endless = x == broadcast(__builtin_inff());
  x = where(x < broadcast(-87.0f), broadcast(-87.0f), x);  // NaN stays NaN
  x = where(x > broadcast(88.0f), broadcast(88.0f), x);
  const vec scaled = x * 1.44269504088896341f;
  const ivec whole = truncated(scaled + where(scaled < vec{}, broadcast(-0.5f), broadcast(0.5f)));
  const vec n = converted(whole);
  const vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vec p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const vec fraction = p * r * r + r + 1.0f;
  return where(endless, broadcast(__builtin_inff()), fraction * with_bits_of((whole + 127) << 23));
}

LTHFUNC_INLINE vec logistic(vec x) { return 1.0f / (1.0f + exponential(-x)); }
LTHFUNC_INLINE vec tangent(vec x) { return 2.0f * logistic(2.0f * x) - 1.0f; }

}  // namespace lthfunc
