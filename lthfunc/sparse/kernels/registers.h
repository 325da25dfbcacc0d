// Sixteen numbers as the processor holds them: in one register (AVX-512), two (AVX) or four (SSE, NEON).
//
// Compilers have vector types of any length, but GCC keeps those that are longer than a register in workspace, which
// makes a kernel some ten times slower. Here a long vector is two shorter ones, down to a register's.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace lthfunc {

using i64 = std::int64_t;
using i32 = std::int32_t;

#if defined(__clang__)
#define LTHFUNC_UNROLL _Pragma("unroll")
#else
#define LTHFUNC_UNROLL _Pragma("GCC unroll 32")
#endif
#define LTHFUNC_INLINE inline __attribute__((always_inline))

#define LTHFUNC_FOUR(f, n) f(n), f(n + 1), f(n + 2), f(n + 3)
#if defined(__AVX512F__)
#define LTHFUNC_REGISTER 16
#define LTHFUNC_EACH(f) LTHFUNC_FOUR(f, 0), LTHFUNC_FOUR(f, 4), LTHFUNC_FOUR(f, 8), LTHFUNC_FOUR(f, 12)
#elif defined(__AVX__)
#define LTHFUNC_REGISTER 8
#define LTHFUNC_EACH(f) LTHFUNC_FOUR(f, 0), LTHFUNC_FOUR(f, 4)
#else
#define LTHFUNC_REGISTER 4
#define LTHFUNC_EACH(f) LTHFUNC_FOUR(f, 0)
#endif

// One register's.
typedef float floats __attribute__((vector_size(4 * LTHFUNC_REGISTER)));
typedef i32 ints __attribute__((vector_size(4 * LTHFUNC_REGISTER)));
typedef std::uint32_t words __attribute__((vector_size(4 * LTHFUNC_REGISTER)));

template <typename Half>
struct Two {
  using Number = std::decay_t<decltype(std::declval<Half&>()[0])>;
  Half low, high;

  Number& operator[](i64 lane) { return reinterpret_cast<Number*>(this)[lane]; }
  Number operator[](i64 lane) const { return reinterpret_cast<const Number*>(this)[lane]; }
};

template <typename Half>
LTHFUNC_INLINE Two<Half> two(Half low, Half high) {
  return {low, high};
}

template <typename S>
using OnlyNumbers = std::enable_if_t<std::is_arithmetic_v<S>>;

#define LTHFUNC_OPERATOR(op)                                          \
  template <typename H>                                               \
  LTHFUNC_INLINE auto operator op(const Two<H>& a, const Two<H>& b) { \
    return two(a.low op b.low, a.high op b.high);                     \
  }                                                                   \
  template <typename H, typename S, typename = OnlyNumbers<S>>        \
  LTHFUNC_INLINE auto operator op(const Two<H>& a, S b) {             \
    return two(a.low op b, a.high op b);                              \
  }                                                                   \
  template <typename H, typename S, typename = OnlyNumbers<S>>        \
  LTHFUNC_INLINE auto operator op(S a, const Two<H>& b) {             \
    return two(a op b.low, a op b.high);                              \
  }
LTHFUNC_OPERATOR(+)
LTHFUNC_OPERATOR(-)
LTHFUNC_OPERATOR(*)
LTHFUNC_OPERATOR(/)
LTHFUNC_OPERATOR(&)
LTHFUNC_OPERATOR(^)
LTHFUNC_OPERATOR(<<)
LTHFUNC_OPERATOR(>>)
LTHFUNC_OPERATOR(<)
LTHFUNC_OPERATOR(>)
LTHFUNC_OPERATOR(<=)
LTHFUNC_OPERATOR(>=)
LTHFUNC_OPERATOR(==)
#undef LTHFUNC_OPERATOR

#define LTHFUNC_ASSIGNING(op)                                       \
  template <typename H, typename T>                                 \
  LTHFUNC_INLINE Two<H>& operator op## = (Two<H> & a, const T& b) { \
    return a = a op b;                                              \
  }
LTHFUNC_ASSIGNING(+)
LTHFUNC_ASSIGNING(*)
LTHFUNC_ASSIGNING(^)
#undef LTHFUNC_ASSIGNING

template <typename H>
LTHFUNC_INLINE Two<H> operator-(const Two<H>& a) {
  return {-a.low, -a.high};
}

// a in the lanes that are chosen, b in the others.
template <typename C, typename V>
LTHFUNC_INLINE V where(C chosen, V a, V b) {
  return chosen ? a : b;
}
template <typename C, typename H>
LTHFUNC_INLINE Two<H> where(const Two<C>& chosen, const Two<H>& a, const Two<H>& b) {
  return {where(chosen.low, a.low, b.low), where(chosen.high, a.high, b.high)};
}

// Whether a comparison holds in all lanes.
LTHFUNC_INLINE bool all_of(ints holds) {
  i32 all = -1;
  for (int i = 0; i < LTHFUNC_REGISTER; ++i) all &= holds[i];
  return all != 0;
}
template <typename H>
LTHFUNC_INLINE bool all_of(const Two<H>& holds) {
  return all_of(holds.low & holds.high);
}

template <typename V>
constexpr int lanes_of = sizeof(V) / 4;

// Each lane's neighbour across a bit of its number.
template <int Bit, typename V>
LTHFUNC_INLINE V swapped(V v) {
#define LTHFUNC_SWAPPED(lane) ((lane) ^ (1 << Bit))
#if defined(__clang__)
  return __builtin_shufflevector(v, v, LTHFUNC_EACH(LTHFUNC_SWAPPED));
#else
  return __builtin_shuffle(v, ints{LTHFUNC_EACH(LTHFUNC_SWAPPED)});
#endif
#undef LTHFUNC_SWAPPED
}
template <int Bit, typename H>
LTHFUNC_INLINE Two<H> swapped(const Two<H>& v) {
  if constexpr (1 << Bit == lanes_of<H>)
    return {v.high, v.low};
  else
    return {swapped<Bit>(v.low), swapped<Bit>(v.high)};
}

// b in the lanes whose number has a bit, a in the others.
template <int Bit, typename V>
LTHFUNC_INLINE V mixed(V a, V b) {
#define LTHFUNC_HAS(lane) ((lane) & (1 << Bit) ? -1 : 0)
  return where(ints{LTHFUNC_EACH(LTHFUNC_HAS)}, b, a);
#undef LTHFUNC_HAS
}
template <int Bit, typename H>
LTHFUNC_INLINE Two<H> mixed(const Two<H>& a, const Two<H>& b) {
  if constexpr (1 << Bit == lanes_of<H>)
    return {a.low, b.high};
  else
    return {mixed<Bit>(a.low, b.low), mixed<Bit>(a.high, b.high)};
}

LTHFUNC_INLINE ints truncated(floats v) { return __builtin_convertvector(v, ints); }
LTHFUNC_INLINE floats converted(ints v) { return __builtin_convertvector(v, floats); }
template <typename To, typename From>
LTHFUNC_INLINE To same_bits(From v) {
  To same;
  static_assert(sizeof same == sizeof v);
  std::memcpy(&same, &v, sizeof same);
  return same;
}
LTHFUNC_INLINE floats with_bits_of(ints v) { return same_bits<floats>(v); }
LTHFUNC_INLINE floats root(floats x) {
  floats result;
  for (int i = 0; i < LTHFUNC_REGISTER; ++i) result[i] = __builtin_sqrtf(x[i]);
  return result;
}

#define LTHFUNC_OF_BOTH(function)                  \
  template <typename H>                            \
  LTHFUNC_INLINE auto function(const Two<H>& v) {  \
    return two(function(v.low), function(v.high)); \
  }
LTHFUNC_OF_BOTH(truncated)
LTHFUNC_OF_BOTH(converted)
LTHFUNC_OF_BOTH(with_bits_of)
LTHFUNC_OF_BOTH(root)
#undef LTHFUNC_OF_BOTH

// As many bytes as numbers. In steps that double a number's width: in one, compilers convert number by number.
LTHFUNC_INLINE void convert(const std::uint8_t* from, floats& to) {
  typedef std::uint8_t bytes __attribute__((vector_size(LTHFUNC_REGISTER)));
  typedef std::uint16_t shorts __attribute__((vector_size(2 * LTHFUNC_REGISTER)));
  bytes b;
  std::memcpy(&b, from, sizeof b);
  to = converted(__builtin_convertvector(__builtin_convertvector(b, shorts), ints));
}
template <typename H>
LTHFUNC_INLINE void convert(const std::uint8_t* from, Two<H>& to) {
  convert(from, to.low);
  convert(from + lanes_of<H>, to.high);
}

// Part by part: what is copied as one piece into two halves stays in workspace.
LTHFUNC_INLINE void load(const float* from, floats& to) { std::memcpy(&to, from, sizeof to); }
LTHFUNC_INLINE void store(const floats& from, float* to) { std::memcpy(to, &from, sizeof from); }
template <typename H>
LTHFUNC_INLINE void load(const float* from, Two<H>& to) {
  load(from, to.low);
  load(from + lanes_of<H>, to.high);
}
template <typename H>
LTHFUNC_INLINE void store(const Two<H>& from, float* to) {
  store(from.low, to);
  store(from.high, to + lanes_of<H>);
}

// A store past the caches, of numbers that are read long after: what is overwritten isn't read from memory before, and
// nothing waits for it. `to` is aligned. Behind the last one stands `end_streams`, before other threads read.
LTHFUNC_INLINE void stream(const floats& from, float* to) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, (__m512)from);
#elif defined(__AVX__)
  _mm256_stream_ps(to, (__m256)from);
#elif defined(__SSE2__)
  _mm_stream_ps(to, (__m128)from);
#else
  store(from, to);
#endif
}
template <typename H>
LTHFUNC_INLINE void stream(const Two<H>& from, float* to) {
  stream(from.low, to);
  stream(from.high, to + lanes_of<H>);
}
LTHFUNC_INLINE void end_streams() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

template <typename V, int Lanes = lanes_of<V>>
struct Sixteen : Sixteen<Two<V>> {};
template <typename V>
struct Sixteen<V, 16> {
  using type = V;
};

}  // namespace lthfunc
