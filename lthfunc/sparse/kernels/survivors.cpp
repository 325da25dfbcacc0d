#include "survivors.h"

#include <algorithm>
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

// Scores that may be among the largest, in the order of their places, and the least that still may be.
struct Candidates {
  std::vector<std::uint32_t> scores;
  std::vector<i64> places;
  i64 count = 0;
  std::uint32_t least = 0;

  // Keeps the `wanted` largest, of equal ones the first.
  void keep(i64 wanted) {
    if (count <= wanted) return;
    Bound bound = bound_of(scores.data(), count, wanted);
    i64 left = 0;
    for (i64 k = 0; k < count; ++k) {
      const bool stays = scores[k] > bound.least || (scores[k] == bound.least && bound.equal-- > 0);
      scores[left] = scores[k];
      places[left] = places[k];
      left += stays;
    }
    count = left;
    least = bound.least + 1;  // later ones that equal it come too late; infinity is not the last number
  }
};

}  // namespace

std::vector<i64> largest(const float* scores, i64 size, const i64* taken, i64 takens, i64 count) {
  if (count < 0 || count > size - takens) throw std::invalid_argument("lthfunc: more scores wanted than there are");
  for (i64 k = 0; k < takens; ++k)
    if (taken[k] < 0 || taken[k] >= size || (k && taken[k] <= taken[k - 1]))
      throw std::invalid_argument("lthfunc: places must rise, within the scores");
  if (count == 0) return {};
  const i64 most = std::min(4 * count, size);
  bool numbers = true;
  Candidates found;
  found.scores.resize(static_cast<std::size_t>(most + SCORES_AT_ONCE));
  found.places.resize(found.scores.size());
  i64 next = 0;
  for (i64 first = 0; first < size; first += SCORES_AT_ONCE) {
    const i64 end = std::min(size, first + SCORES_AT_ONCE), before = found.count;
    std::uint32_t* const keys = found.scores.data();
    i64* const places = found.places.data();
    const std::uint32_t least = found.least;
    i64 total = before;
    for (i64 place = first; place < end; ++place) {
      numbers &= scores[place] == scores[place];
      const std::uint32_t score = rising(scores[place]);
      keys[total] = score;
      places[total] = place;
      total += score >= least;
    }
    found.count = before;
    for (i64 k = before; k < total; ++k) {
      while (next < takens && taken[next] < places[k]) ++next;
      const bool free = next == takens || taken[next] != places[k];
      keys[found.count] = keys[k];
      places[found.count] = places[k];
      found.count += free;
    }
    if (found.count > most) found.keep(count);
  }
  if (!numbers) throw std::invalid_argument("lthfunc: a score is NaN");
  found.keep(count);
  found.places.resize(static_cast<std::size_t>(count));
  return found.places;
}

void merge(const i64* remaining, const i64* numbers, i64 count, const i64* coming, i64 comings, i64* places,
           i64* sources) {
  i64 a = 0, b = 0;
  for (i64 k = 0; k < count + comings; ++k) {
    const bool remains = b == comings || (a < count && remaining[a] < coming[b]);
    places[k] = remains ? remaining[a] : coming[b];
    sources[k] = remains ? numbers[a] : -1;
    ++(remains ? a : b);
  }
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
