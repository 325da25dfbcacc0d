#include "survivors.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace lthfunc {
namespace {

// Whole numbers in the order of the scores; -0 is 0.
LTHFUNC_INLINE std::uint32_t rising(float score) {
  const float zeroed = score + 0.0f;
  std::int32_t bits;
  std::memcpy(&bits, &zeroed, sizeof bits);
  return static_cast<std::uint32_t>(bits ^ (bits >> 31 | INT32_MIN));
}

// Scores looked at before candidates are counted, so that there is room for all of them.
constexpr i64 SCORES_AT_ONCE = 4096;

// The score of a number of that order.
LTHFUNC_INLINE float score_of(std::uint32_t number) {
  if (number <= rising(-HUGE_VALF)) return -HUGE_VALF;
  const std::uint32_t bits = number >> 31 ? number ^ 0x80000000u : ~number;
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}

// Which of 16 scores are not below the least, as bits; NaN is not.
LTHFUNC_INLINE unsigned not_below(const float* scores, float least) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(scores), _mm512_set1_ps(least), _CMP_NLT_UQ);
#elif defined(__AVX2__)
  const __m256 bound = _mm256_set1_ps(least);
  const auto half = [&](const float* from) {
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(from), bound, _CMP_NLT_UQ)));
  };
  return half(scores) | half(scores + LANES / 2) << (LANES / 2);
#else
  unsigned found = 0;
  for (int lane = 0; lane < LANES; ++lane) found |= static_cast<unsigned>(!(scores[lane] < least)) << lane;
  return found;
#endif
}

constexpr std::uint32_t INFINITE = 0x7F800000u;

// The bits of a magnitude, which are in the order of the magnitudes.
LTHFUNC_INLINE std::uint32_t magnitude_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits & 0x7FFFFFFFu;
}

// The least of the `wanted` largest numbers, and how many that equal it are among these: digit by digit, from counts.
struct Bound {
  std::uint32_t least = 0;
  i64 equal = 0;
};

// number(k): of `count`, at least as many as are wanted.
template <typename Number>
Bound bound_of(i64 count, i64 wanted, Number number) {
  constexpr int DIGITS[] = {11, 10};
  constexpr int FIRST = 11, REST = 32 - FIRST;
  // Two counts of each, since the next of a run of alike ones would wait for the last.
  i64 counts[2][1 << FIRST] = {};
  for (i64 k = 0; k < count; ++k) ++counts[k & 1][number(k) >> REST];
  std::uint32_t digit = (1u << FIRST) - 1;
  Bound found{0, wanted};
  const auto alike = [&] { return counts[0][digit] + counts[1][digit]; };
  while (digit && alike() < found.equal) found.equal -= alike(), --digit;
  found.least = digit << REST;
  // Few numbers have that digit: the others need not be looked at again. One more, which is written and not counted.
  std::vector<std::uint32_t> left(static_cast<std::size_t>(alike() + 1));
  std::size_t lefts = 0;
  for (i64 k = 0; k < count; ++k) {
    left[lefts] = number(k);
    lefts += left[lefts] >> REST == digit;
  }
  std::uint32_t known = ~0u << REST;
  int shift = REST;
  for (const int width : DIGITS) {
    shift -= width;
    const std::uint32_t values = (1u << width) - 1;
    i64 each[1 << 11] = {};
    for (std::size_t k = 0; k < lefts; ++k)
      if ((left[k] & known) == found.least) ++each[left[k] >> shift & values];
    std::uint32_t value = values;
    while (value && each[value] < found.equal) found.equal -= each[value--];
    found.least |= value << shift;
    known |= values << shift;
  }
  return found;
}

}  // namespace

Largest::Largest(i64 size, const i64* taken, i64 takens, i64 count)
    : taken_(taken), takens_(takens), wanted_(count), most_(std::min(2 * count, size)) {
  if (count < 0 || count > size - takens) throw std::invalid_argument("lthfunc: more scores wanted than there are");
  for (i64 k = 0; k < takens; ++k)
    if (taken[k] < 0 || taken[k] >= size || (k && taken[k] <= taken[k - 1]))
      throw std::invalid_argument("lthfunc: places must rise, within the scores");
  if (count == 0) return;
  keys_.resize(static_cast<std::size_t>(most_ + SCORES_AT_ONCE));
  places_.resize(keys_.size());
}

void Largest::add(const float* scores, i64 count) {
  if (wanted_ == 0) return;
  for (i64 first = 0; first < count; first += SCORES_AT_ONCE) {
    add_some(scores + first, std::min(SCORES_AT_ONCE, count - first));
    if (found_ > most_) keep();
  }
}

void Largest::add_some(const float* scores, i64 count) {
  const float least = score_of(least_);
  i64 first = 0;
  for (; first + LANES <= count; first += LANES)
    for (unsigned left = not_below(scores + first, least); left; left &= left - 1)
      add_one(scores[first + __builtin_ctz(left)], seen_ + first + __builtin_ctz(left));
  for (; first < count; ++first)
    if (!(scores[first] < least)) add_one(scores[first], seen_ + first);
  seen_ += count;
}

void Largest::add_one(float score, i64 place) {
  numbers_ = numbers_ && score == score;
  while (next_ < takens_ && taken_[next_] < place) ++next_;
  if (next_ < takens_ && taken_[next_] == place) return;
  keys_[static_cast<std::size_t>(found_)] = rising(score);
  places_[static_cast<std::size_t>(found_)] = place;
  ++found_;
}

void Largest::keep() {
  if (found_ <= wanted_) return;
  Bound bound = bound_of(found_, wanted_, [this](i64 k) { return keys_[static_cast<std::size_t>(k)]; });
  i64 left = 0;
  for (std::size_t k = 0; k < static_cast<std::size_t>(found_); ++k) {
    const bool equal = keys_[k] == bound.least;  // no branches: which ones stay is not to be foreseen
    const bool stays = (keys_[k] > bound.least) | (equal & (bound.equal > 0));
    bound.equal -= equal;
    keys_[static_cast<std::size_t>(left)] = keys_[k];
    places_[static_cast<std::size_t>(left)] = places_[k];
    left += stays;
  }
  found_ = left;
  least_ = bound.least + 1;  // later ones that equal it come too late; infinity is not the last number
}

const i64* Largest::places() {
  if (!numbers_) throw std::invalid_argument("lthfunc: a score is NaN");
  keep();
  return places_.data();
}

// No branches in these loops: which survivors leave is not to be foreseen.

void drop(const float* values, const i64* places, i64 count, i64 first, i64 kept, i64* remaining, i64* numbers,
          i64* dropped) {
  if (std::any_of(values, values + count, [](float value) { return value != value; }))
    throw std::invalid_argument("lthfunc: a score is NaN");
  Bound bound = bound_of(count, kept, [values](i64 k) { return magnitude_of(values[k]); });
  if (kept == 0) bound = {~0u, 0};
  i64 a = 0, b = 0, beside = 0;
  for (i64 k = 0; k < count; ++k) {
    const std::uint32_t magnitude = magnitude_of(values[k]);
    const bool equal = magnitude == bound.least;
    const bool stays = (magnitude > bound.least) | (equal & (bound.equal > 0));
    bound.equal -= equal;
    *(stays ? remaining + a : dropped + b) = places[k];
    *(stays ? numbers + a : &beside) = first + k;
    a += stays;
    b += !stays;
  }
}

i64 merge(const i64* remaining, const i64* numbers, i64 count, const i64* coming, i64 comings, const i64* dropped,
          i64* places, i64* sources) {
  i64 a = 0, b = 0, again = 0;
  while (a < count && b < comings) {
    const bool remains = remaining[a] < coming[b];
    const i64 all_bits = -static_cast<i64>(remains);
    places[a + b] = coming[b] ^ ((remaining[a] ^ coming[b]) & all_bits);
    sources[a + b] = numbers[a] | ~all_bits;
    a += remains;
    b += !remains;
  }
  for (; a < count; ++a) {
    places[a + b] = remaining[a];
    sources[a + b] = numbers[a];
  }
  for (; b < comings; ++b) {
    places[a + b] = coming[b];
    sources[a + b] = -1;
  }
  for (a = b = 0; a < comings && b < comings;) {
    const i64 left = dropped[a], come = coming[b];
    again += left == come;
    a += left <= come;
    b += come <= left;
  }
  return again;
}

bool all_finite(const float* numbers, i64 count) {
  std::uint32_t most = 0;
  for (i64 k = 0; k < count; ++k) most = std::max(most, magnitude_of(numbers[k]));
  return most < INFINITE;
}

void free_places(const i64* numbers, i64 count, const i64* taken, i64 takens, i64* places) {
  i64 a = 0, b = 0;  // a place that is taken has as many free ones before it as lie below it
  while (a < takens && b < count) {
    const bool lower = taken[a] - a <= numbers[b];
    places[b] = numbers[b] + a;
    a += lower;
    b += !lower;
  }
  for (; b < count; ++b) places[b] = numbers[b] + a;
}

void matrix_lists(const Matrix& matrix, bool transposed, const i64* addresses, i64 block, i64 blocks, i32* starts,
                  i32* offsets, i32* which) {
  const i64 lists = (transposed ? matrix.columns : matrix.rows) * blocks;
  std::fill(starts, starts + lists + 1, 0);
  std::vector<i32> blocks_of(static_cast<std::size_t>(transposed ? matrix.rows : matrix.columns));
  for (std::size_t k = 0; k < blocks_of.size(); ++k) blocks_of[k] = static_cast<i32>(static_cast<i64>(k) / block);
  // Calls each(number, row, column) for all survivors. Places rise, so no division is needed for most of them.
  const auto all = [&](const auto& each) {
    i64 row = 0, begin = 0, before = -1;
    for (i64 k = 0; k < matrix.count; ++k) {
      const i64 place = matrix.places[k];
      if (place <= before || place >= matrix.rows * matrix.columns)
        throw std::invalid_argument("lthfunc: places must rise, within the matrix");
      before = place;
      if (place - begin >= matrix.columns) {
        row = place / matrix.columns;
        begin = row * matrix.columns;
      }
      each(k, row, place - begin);
    }
  };
  const auto list_of = [&](i64 row, i64 column) {
    return transposed ? column * blocks + blocks_of[static_cast<std::size_t>(row)]
                      : row * blocks + blocks_of[static_cast<std::size_t>(column)];
  };
  // What a list reads rises, since places do; and rows lie one after the other, so that their lists have this order.
  all([&](i64 k, i64 row, i64 column) {
    ++starts[list_of(row, column) + 1];
    if (!transposed) offsets[k] = static_cast<i32>(addresses[column] * BYTES);
  });
  for (i64 k = 0; k < lists; ++k) starts[k + 1] += starts[k];
  if (!transposed) return;
  // Counted survivors take the places of their lists in turn.
  std::vector<i32> next(starts, starts + lists);
  all([&](i64 k, i64 row, i64 column) {
    const i32 place = next[static_cast<std::size_t>(list_of(row, column))]++;
    offsets[place] = static_cast<i32>(addresses[row] * BYTES);
    which[place] = static_cast<i32>(k);
  });
}

}  // namespace lthfunc
