// Which weights survive: the best of a layer, survivors that leave and others that come, and the lists of a matrix.
#pragma once

#include <vector>

#include "vectors.h"

namespace lthfunc {

// The places of the `count` largest of `size` scores, rising; those of `taken`, which rise as well, are not among them.
// Of equal scores the first ones. Throws std::invalid_argument where a score is NaN.
std::vector<i64> largest(const float* scores, i64 size, const i64* taken, i64 takens, i64 count);

// Rising places that remain, and rising places that come, as one rising list; and for each the number of the survivor
// that it was, `numbers` of those that remain, or -1.
void merge(const i64* remaining, const i64* numbers, i64 count, const i64* coming, i64 comings, i64* places,
           i64* sources);

// The lists of a matrix whose rising places survive. transposed: a list for each column, of the rows that it reads.
// addresses: vectors to each thing that is read; block: how many of them form a block.
struct Matrix {
  const i64* places;
  i64 count, rows, columns;
};
void matrix_lists(const Matrix& matrix, bool transposed, const i64* addresses, i64 block, i64 blocks, i32* starts,
                  i32* offsets, i32* which);

}  // namespace lthfunc
