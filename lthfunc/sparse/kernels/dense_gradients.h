// All gradients of a linear layer's weights, from its inputs example by example: no lanes are added up.
#pragma once

#include <algorithm>

#include "vectors.h"

namespace lthfunc {

#ifdef __AVX512F__
constexpr int ROWS = 6, COLUMNS = 4;
#else
constexpr int ROWS = 2, COLUMNS = 2;
#endif
// Inputs that a block computes, of which strips are whole numbers.
constexpr i64 BLOCK = COLUMNS * LANES;
static_assert(STRIP % BLOCK == 0);

// ROWS rows of the gradient, at BLOCK inputs.
LTHFUNC_INLINE void gradient_block(const float* x, i64 width, const float* const (&grad)[ROWS], i64 grad_tile,
                                   i64 examples, float* const (&out)[ROWS]) {
  vec sum[ROWS][COLUMNS] = {};
  for (i64 first = 0; first < examples; first += LANES) {
    const i64 tile = first / LANES * grad_tile, lanes = std::min<i64>(LANES, examples - first);
    for (i64 lane = 0; lane < lanes; ++lane) {
      vec in[COLUMNS];
      LTHFUNC_UNROLL
      for (int c = 0; c < COLUMNS; ++c) in[c] = load(x + (first + lane) * width + c * LANES);
      LTHFUNC_UNROLL
      for (int r = 0; r < ROWS; ++r) {
        const vec g = broadcast(grad[r][tile + lane]);
        LTHFUNC_UNROLL
        for (int c = 0; c < COLUMNS; ++c) sum[r][c] += g * in[c];
      }
    }
  }
  LTHFUNC_UNROLL
  for (int r = 0; r < ROWS; ++r) {
    LTHFUNC_UNROLL
    for (int c = 0; c < COLUMNS; ++c) store(out[r] + c * LANES, sum[r][c]);
  }
}

// The rows from `row` on, at all inputs, `width` (whole strips) an example: `out` is as wide. Behind the last of `rows`
// it is taken again. grads, grad_tile: vectors to the first tile's gradients, in which row_grad tells a row's, and from
// tile to tile.
inline void dense_gradient_rows(const float* x, i64 width, const vec* grads, const i32* row_grad, i64 row, i64 rows,
                                i64 grad_tile, i64 examples, float* out) {
  const float* grad[ROWS];
  for (i64 r = 0; r < ROWS; ++r)
    grad[r] = reinterpret_cast<const float*>(grads + row_grad[std::min(row + r, rows - 1)]);
  for (i64 c = 0; c < width; c += BLOCK) {
    float* to[ROWS];
    for (int r = 0; r < ROWS; ++r) to[r] = out + r * width + c;
    gradient_block(x + c, width, grad, grad_tile * LANES, examples, to);
  }
}

// A tile's features 16 · strip … + 15 example by example: `out` is the tile's first, `width` floats each.
template <typename Feature>
LTHFUNC_INLINE void transpose_strip(const Feature& feature, i64 strip, float* out, i64 width) {
  vec block[16];
  for (i64 f = 0; f < 16; ++f) block[f] = feature(strip * 16 + f);
  transpose(block);
  for (i64 lane = 0; lane < LANES; ++lane) store(out + lane * width + strip * 16, block[lane]);
}

}  // namespace lthfunc
