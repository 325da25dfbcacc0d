#include "survivors.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <stdexcept>

namespace lthfunc {
namespace {

// Whole numbers in the order of the scores; -0 is 0.
inline std::uint32_t rising(float score) {
  const float zeroed = score + 0.0f;
  std::uint32_t bits;
  std::memcpy(&bits, &zeroed, sizeof bits);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Scores that are looked at to guess from which one on they are wanted.
constexpr i64 SAMPLE = 4096;

// About the least score that is wanted, as `rising` has it: rather more than `count` of `size` scores are as large.
std::uint32_t guess(const float* scores, i64 size, i64 count) {
  const i64 step = (size + SAMPLE - 1) / SAMPLE;
  std::vector<std::uint32_t> sample;
  sample.reserve(static_cast<std::size_t>(size / step + 1));
  for (i64 k = 0; k < size; k += step) sample.push_back(rising(scores[k]));
  const i64 seen = static_cast<i64>(sample.size()), wanted = count / step + count / step / 2 + 32;
  if (wanted >= seen) return 0;
  std::nth_element(sample.begin(), sample.begin() + wanted, sample.end(), std::greater<std::uint32_t>());
  return sample[static_cast<std::size_t>(wanted)];
}

}  // namespace

std::vector<i64> largest(const float* scores, i64 size, const i64* taken, i64 takens, i64 count) {
  if (count < 0 || count > size - takens) throw std::invalid_argument("lthfunc: more scores wanted than there are");
  for (i64 k = 0; k < takens; ++k)
    if (taken[k] < 0 || taken[k] >= size || (k && taken[k] <= taken[k - 1]))
      throw std::invalid_argument("lthfunc: places must rise, within the scores");
  if (count == 0) return {};
  using Candidate = std::pair<std::uint32_t, i64>;  // scores upside down, so that it sorts as it is
  std::vector<Candidate> candidates;
  const auto collect = [&](std::uint32_t least) {
    candidates.clear();
    i64 next = 0;
    for (i64 place = 0; place < size; ++place) {
      const std::uint32_t score = rising(scores[place]);
      if (score < least) continue;
      while (next < takens && taken[next] < place) ++next;
      if (next == takens || taken[next] != place) candidates.emplace_back(~score, place);
    }
  };
  collect(guess(scores, size, count + takens));
  if (static_cast<i64>(candidates.size()) < count) collect(0);
  // The last one that is wanted decides, so that places stay in order.
  std::vector<Candidate> ordered(candidates);
  const auto last = ordered.begin() + (count - 1);
  std::nth_element(ordered.begin(), last, ordered.end());
  std::vector<i64> found;
  found.reserve(static_cast<std::size_t>(count));
  for (const Candidate& each : candidates)
    if (each <= *last) found.push_back(each.second);
  return found;
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
