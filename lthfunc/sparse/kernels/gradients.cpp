// Gradients of the weights, at surviving places only, and of the biases.
//
// Up to 16 survivors of one row are summed at once over all places and tiles: one load of the output gradient serves
// them all. Their lanes are added up at the end of each tile (of all tiles where the places are tiles).
#include <algorithm>

#include "machine.h"

namespace lthfunc {
namespace {

// Survivors summed at once: with as many places held, all fit the registers.
#ifdef __AVX512F__
constexpr int MOST = 16, HELD = 8;
#else
constexpr int MOST = 4, HELD = 2;
#endif

struct Sides {
  const vec* in;
  const vec* grad;
  i64 in_step, grad_step;
};

template <int Count, int Held, bool Unit>
LTHFUNC_INLINE void add_places(vec (&sum)[Count], Sides at, const i32* offset) {
  vec held[Held];
  LTHFUNC_UNROLL
  for (int p = 0; p < Held; ++p) held[p] = at.grad[Unit ? p : p * at.grad_step];
  LTHFUNC_UNROLL
  for (int k = 0; k < Count; ++k) {
    const vec* place = at.in + offset[k];
    LTHFUNC_UNROLL
    for (int p = 0; p < Held; ++p) sum[k] += held[p] * place[Unit ? p : p * at.in_step];
  }
}

template <int Count>
LTHFUNC_INLINE void write(const vec (&sum)[Count], float* gradient, bool again) {
  if constexpr (Count == 16) {
    vec total = sums_of_16(sum), before{};
    if (again) std::memcpy(&before, gradient, sizeof before);
    total += before;
    std::memcpy(gradient, &total, sizeof total);
  } else {
    for (int k = 0; k < Count; ++k) gradient[k] = lthfunc::sum(sum[k]) + (again ? gradient[k] : 0.0f);
  }
}

// Count survivors of one row, over one tile's places (or over all tiles).
template <int Count, int Held, bool Unit>
void survivors(Sides tile, i64 ny, i64 in_y, i64 grad_y, i64 nx, const i32* offset, float* gradient, bool again) {
  vec sum[Count] = {};
  for (i64 y = 0; y < ny; ++y) {
    Sides at{tile.in + y * in_y, tile.grad + y * grad_y, tile.in_step, tile.grad_step};
    i64 x = 0;
    for (; x + Held <= nx; x += Held) {
      add_places<Count, Held, Unit>(sum, at, offset);
      at.in += Held * at.in_step;
      at.grad += Held * at.grad_step;
    }
    for (; x < nx; ++x) {
      add_places<Count, 1, Unit>(sum, at, offset);
      at.in += at.in_step;
      at.grad += at.grad_step;
    }
  }
  write(sum, gradient, again);
}

using Survivors = void (*)(Sides, i64, i64, i64, i64, const i32*, float*, bool);

template <int Count, bool Unit>
Survivors of_held(i64 held) {
#ifdef __AVX512F__
  switch (held) {
    case 8: return survivors<Count, 8, Unit>;
    case 7: return survivors<Count, 7, Unit>;
    case 6: return survivors<Count, 6, Unit>;
    case 5: return survivors<Count, 5, Unit>;
    case 4: return survivors<Count, 4, Unit>;
    case 3: return survivors<Count, 3, Unit>;
  }
#endif
  return held == 2 ? survivors<Count, 2, Unit> : survivors<Count, 1, Unit>;
}

// As many places at once as leave the fewest over.
i64 held_for(i64 nx) {
  if (nx <= HELD) return nx;
  i64 best = HELD;
  for (i64 held = HELD; held > HELD / 2; --held)
    if (nx % held < nx % best) best = held;
  return best;
}

struct Kernels {
  Survivors of_16, of_8, of_4, of_2, of_1;
};

template <bool Unit>
Kernels kernels_for(i64 nx) {
  const i64 held = held_for(nx);
  return {of_held<16, Unit>(held), of_held<8, Unit>(held), of_held<4, Unit>(held), of_held<2, Unit>(held),
          of_held<1, Unit>(held)};
}

}  // namespace

void weight_gradients(const weight_gradients_row& i, Memory& m, Part part) {
  const i64 nx = i.across ? m.tiles : i.nx;
  const Kernels kernels = i.in_x == 1 && i.grad_x == 1 ? kernels_for<true>(nx) : kernels_for<false>(nx);
  const i64 first = i.across ? 0 : part.tile, end = i.across ? 1 : part.tiles;
  const i32* const starts = m.lists + i.starts;
  const i32* const offsets = m.lists + i.offsets;
  const i32* const row_grad = m.lists + i.row_grad;
  float* const gradients = m.gradients + i.gradients;
  for (i64 block = 0; block < i.blocks; ++block) {
    for (i64 row = part.row; row < part.rows; ++row) {
      i64 k = starts[block * i.rows + row];
      const i64 stop = starts[block * i.rows + row + 1];
      while (k < stop) {
        const i64 left = stop - k;
        const i64 count = left >= MOST ? MOST : left >= 8 && MOST >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        const Survivors kernel = count == 16  ? kernels.of_16
                                 : count == 8 ? kernels.of_8
                                 : count == 4 ? kernels.of_4
                                 : count == 2 ? kernels.of_2
                                              : kernels.of_1;
        for (i64 tile = first; tile < end; ++tile) {
          const Sides sides{m.activations + i.in + tile * i.in_tile,
                            m.activations + i.grad + tile * i.grad_tile + row_grad[row], i.in_x, i.grad_x};
          kernel(sides, i.ny, i.in_y, i.grad_y, nx, offsets + k, gradients + k, tile > 0);
        }
        k += count;
      }
    }
  }
}

void bias_gradients(const bias_gradients_row& i, Memory& m, Part part) {
  const i64 nx = i.across ? m.tiles : i.nx, step = i.across ? i.grad_tile : 1;
  const i64 first = i.across ? 0 : part.tile, end = i.across ? 1 : part.tiles;
  const i32* const row_grad = m.lists + i.row_grad;
  for (i64 tile = first; tile < end; ++tile) {
    for (i64 row = part.row; row < part.rows; ++row) {
      vec total[4] = {};
      for (i64 y = 0; y < i.ny; ++y) {
        const vec* at = m.activations + i.grad + tile * i.grad_tile + row_grad[row] + y * i.grad_y;
        i64 x = 0;
        for (; x + 4 <= nx; x += 4)
          for (int p = 0; p < 4; ++p) total[p] += at[(x + p) * step];
        for (; x < nx; ++x) total[0] += at[x * step];
      }
      const float all_of_it = sum((total[0] + total[1]) + (total[2] + total[3]));
      m.gradients[i.gradients + row] = all_of_it + (tile > 0 ? m.gradients[i.gradients + row] : 0.0f);
    }
  }
}

}  // namespace lthfunc
