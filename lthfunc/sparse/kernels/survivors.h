// Which weights survive: the best of a layer, survivors that leave and others that come, and the lists of a matrix.
#pragma once

#include <vector>

#include "vectors.h"

namespace lthfunc {

// The `count` largest of `size` scores, which come in the order of their places, some at a time; of equal ones the
// first. Places that are taken, which rise, are not among them.
class Largest {
 public:
  Largest(i64 size, const i64* taken, i64 takens, i64 count);
  void add(const float* scores, i64 count);
  // Rising. Throws std::invalid_argument where a score is NaN.
  const i64* places();
  bool are_numbers() const { return numbers_; }

 private:
  void add_some(const float* scores, i64 count);
  void add_one(float score, i64 place);
  void keep();

  const i64* taken_;
  i64 takens_, wanted_, most_;
  // Those that still may be among the largest, in the order of their places, and the least that may be.
  std::vector<std::uint32_t> keys_;
  std::vector<i64> places_;
  i64 found_ = 0, seen_ = 0, next_ = 0;
  std::uint32_t least_ = 0;
  bool numbers_ = true;
};

// How many weights a layer has, of whose gradients a row of a program keeps the largest; 0 for any other instruction.
i64 layer_size(const i64* row);

// Of `count` survivors' values the `kept` of the largest magnitude, of equal ones the first: their places, and their
// numbers, counted from `first`; and the places of all others, which are dropped. Throws std::invalid_argument where a
// value is NaN.
void drop(const float* values, const i64* places, i64 count, i64 first, i64 kept, i64* remaining, i64* numbers,
          i64* dropped);

// Rising places that remain, and rising places that come, as one rising list; and for each the number of the survivor
// that it was, `numbers` of those that remain, or -1. Returns how many come that were dropped, as many as come.
i64 merge(const i64* remaining, const i64* numbers, i64 count, const i64* coming, i64 comings, const i64* dropped,
          i64* places, i64* sources);

bool all_finite(const float* numbers, i64 count);

// Where the free places of these numbers lie, counted from 0 on without those taken. All rise.
void free_places(const i64* numbers, i64 count, const i64* taken, i64 takens, i64* places);

// The lists of a matrix whose rising places survive. transposed: a list for each column, of the rows that it reads.
// addresses: vectors to each thing that is read; block: how many of them form a block.
struct Matrix {
  const i64* places;
  i64 count, rows, columns;
};
void matrix_lists(const Matrix& matrix, bool transposed, const i64* addresses, i64 block, i64 blocks, i32* starts,
                  i32* offsets, i32* which);

}  // namespace lthfunc
