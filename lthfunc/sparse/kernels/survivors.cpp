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

// The least of the `wanted` largest numbers, and how many that equal it are among these: digit by digit, from counts.
struct Bound {
  std::uint32_t least = 0;
  i64 equal = 0;
};
Bound bound_of(const std::uint32_t* numbers, i64 count, i64 wanted) {
  constexpr int DIGITS[] = {11, 11, 10};
  Bound found{0, wanted};
  std::uint32_t known = 0;
  int shift = 32;
  for (const int digit : DIGITS) {
    shift -= digit;
    const std::uint32_t values = (1u << digit) - 1;
    i64 counts[1 << 11] = {};
    for (i64 k = 0; k < count; ++k)
      if ((numbers[k] & known) == found.least) ++counts[numbers[k] >> shift & values];
    std::uint32_t value = values;
    while (counts[value] < found.equal) found.equal -= counts[value--];
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
  Bound bound = bound_of(keys_.data(), found_, wanted_);
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

void drop(const float* values, const i64* places, i64 count, i64 first, i64 kept, i64* remaining, i64* numbers) {
  Largest largest(count, nullptr, 0, kept);
  float magnitudes[SCORES_AT_ONCE];
  for (i64 from = 0; from < count; from += SCORES_AT_ONCE) {
    const i64 some = std::min(SCORES_AT_ONCE, count - from);
    for (i64 k = 0; k < some; ++k) magnitudes[k] = std::fabs(values[from + k]);
    largest.add(magnitudes, some);
  }
  const i64* const stays = largest.places();
  for (i64 k = 0; k < kept; ++k) {
    remaining[k] = places[stays[k]];
    numbers[k] = first + stays[k];
  }
}

i64 merge(const i64* remaining, const i64* numbers, i64 count, const i64* coming, i64 comings, const i64* before,
          i64* places, i64* sources) {
  const i64 all = count + comings;
  i64 a = 0, b = 0, c = 0, again = 0;
  for (i64 k = 0; k < all; ++k) {
    const bool remains = b == comings || (a < count && remaining[a] < coming[b]);
    places[k] = remains ? remaining[a] : coming[b];
    sources[k] = remains ? numbers[a] : -1;
    while (c < all && before[c] < places[k]) ++c;
    again += !remains && c < all && before[c] == places[k];
    ++(remains ? a : b);
  }
  return again;
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
  all([&](i64, i64 row, i64 column) { ++starts[list_of(row, column) + 1]; });
  for (i64 k = 0; k < lists; ++k) starts[k + 1] += starts[k];
  // Counted survivors take the places of their lists in turn: what a list reads rises, since places do.
  std::vector<i32> next(starts, starts + lists);
  all([&](i64 k, i64 row, i64 column) {
    const i32 place = next[static_cast<std::size_t>(list_of(row, column))]++;
    offsets[place] = static_cast<i32>(addresses[transposed ? row : column] * BYTES);
    if (which) which[place] = static_cast<i32>(k);
  });
}

}  // namespace lthfunc
