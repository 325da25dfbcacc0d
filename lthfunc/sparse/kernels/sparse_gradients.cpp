// Gradients of the weights, at surviving weights only, and of the biases.
//
// Up to 16 survivors of one row are summed at once over all positions and tiles: one load of the output gradient serves
// them all. Their lanes are added up at the end of each tile (of all tiles where the positions are tiles).
#include <algorithm>

#include "verify.h"

namespace lthfunc {
namespace {

// Survivors summed at once, and positions held: together they fit the registers.
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

template <int Count, int Held, bool Unit, int Ways>
LTHFUNC_INLINE void add_places(vec (&sum)[Count][Ways], const vec (&held)[Held], const vec* in, i64 step,
                               const i32* offset) {
  const vec* from[Unit ? 1 : Held];
  LTHFUNC_UNROLL
  for (int p = 0; p < (Unit ? 1 : Held); ++p) from[p] = in + p * step;
  LTHFUNC_UNROLL
  for (int k = 0; k < Count; ++k) {
    const i64 bytes = offset[k];
    LTHFUNC_UNROLL
    for (int p = 0; p < Held; ++p)
      sum[k][p % Ways] += held[p] * behind(from[Unit ? 0 : p], bytes + (Unit ? p * BYTES : 0));
  }
}

template <int Held, bool Unit>
LTHFUNC_INLINE void hold(vec (&held)[Held], const vec* grad, i64 step) {
  LTHFUNC_UNROLL
  for (int p = 0; p < Held; ++p) held[p] = grad[Unit ? p : p * step];
}

// Lanes added up and the first `count` sums written.
template <int Count>
LTHFUNC_INLINE void write(const vec (&sum)[Count], float* gradient, i64 count, bool again) {
  vec total = sums_of(sum);
  if (Count == 16 && count == 16) {
    if (again) total += load(gradient);
    store(gradient, total);
  } else {
    for (i64 k = 0; k < count; ++k) gradient[k] = total[k] + (again ? gradient[k] : 0.0f);
  }
}

// ---- linear layers: the positions are the tiles ----

template <int Count, int Held>
LTHFUNC_INLINE void across_tiles(const vec (&held)[Held], const Sides& at, i64 tiles, const i32* offset, i64 count,
                                 float* gradient) {
  vec sum[Count][1] = {}, whole[Count];
  add_places<Count, Held, false, 1>(sum, held, at.in, at.in_step, offset);
  for (i64 p = Held; p < tiles; ++p) {
    const vec one[1] = {at.grad[p * at.grad_step]};
    add_places<Count, 1, false, 1>(sum, one, at.in + p * at.in_step, 0, offset);
  }
  LTHFUNC_UNROLL
  for (int k = 0; k < Count; ++k) whole[k] = sum[k][0];
  write(whole, gradient, count, false);
}

// Count survivors of one row; with fewer left, the last one is summed again and not written.
template <int Count, int Held>
LTHFUNC_INLINE void across_some(const vec (&held)[Held], const Sides& at, i64 tiles, const i32* offset, i64 count,
                                float* gradient) {
  i32 near[Count];
  LTHFUNC_UNROLL
  for (int k = 0; k < Count; ++k) near[k] = offset[k < count ? k : count - 1];
  across_tiles<Count, Held>(held, at, tiles, near, count, gradient);
}

// All survivors of one row.
template <int Held>
void across(Sides at, i64 tiles, const i32* offset, i64 count, float* gradient) {
  vec held[Held];
  hold<Held, false>(held, at.grad, at.grad_step);
  i64 k = 0;
  for (; k + MOST <= count; k += MOST) {
    across_tiles<MOST, Held>(held, at, tiles, offset + k, MOST, gradient + k);
  }
  const i64 left = count - k;
  if (left > 8 && MOST > 8)
    across_some<MOST, Held>(held, at, tiles, offset + k, left, gradient + k);
  else if (left > 4 && MOST > 4)
    across_some<(MOST > 4 ? 8 : MOST), Held>(held, at, tiles, offset + k, left, gradient + k);
  else if (left > 0)
    across_some<4, Held>(held, at, tiles, offset + k, left, gradient + k);
}

using Across = void (*)(Sides, i64, const i32*, i64, float*);

Across across_of(i64 tiles) {
  switch (tiles) {
    case 1: return across<1>;
    case 2: return across<2>;
#ifdef __AVX512F__
    case 3: return across<3>;
    case 5: return across<5>;
    case 6: return across<6>;
    case 7: return across<7>;
    case 8: return across<8>;
    default: return across<4>;
#else
    default: return across<2>;
#endif
  }
}

// ---- convolutions ----

// Count survivors of one row over one tile's positions; with Bias their row's gradient itself is summed up as well.
template <int Count, int Held, bool Unit, bool Bias>
void survivors(Sides tile, i64 ny, i64 in_y, i64 grad_y, i64 nx, const i32* offset, float* gradient, float* bias,
               bool again) {
  // A sum of few survivors would wait for itself: it is taken in several parts.
  constexpr int Ways = Count > 3 || Held == 1 ? 1 : Count > 1 ? 2 : Held < 4 ? 2 : 4;
  vec sum[Count ? Count : 1][Ways] = {}, total[Ways] = {};
  for (i64 y = 0; y < ny; ++y) {
    const vec *in = tile.in + y * in_y, *grad = tile.grad + y * grad_y;
    i64 x = 0;
    for (; x + Held <= nx; x += Held) {
      vec held[Held];
      hold<Held, Unit>(held, grad, tile.grad_step);
      if constexpr (Count > 0) add_places<Count, Held, Unit, Ways>(sum, held, in, tile.in_step, offset);
      if constexpr (Bias) {
        LTHFUNC_UNROLL
        for (int p = 0; p < Held; ++p) total[p % Ways] += held[p];
      }
      in += Held * tile.in_step;
      grad += Held * tile.grad_step;
    }
    for (; x < nx; ++x) {
      vec held[1];
      hold<1, Unit>(held, grad, tile.grad_step);
      if constexpr (Count > 0) add_places<Count, 1, Unit, Ways>(sum, held, in, tile.in_step, offset);
      if constexpr (Bias) total[0] += held[0];
      in += tile.in_step;
      grad += tile.grad_step;
    }
  }
  if constexpr (Count > 0) {
    vec whole[Count];
    LTHFUNC_UNROLL
    for (int k = 0; k < Count; ++k) {
      whole[k] = sum[k][0];
      for (int way = 1; way < Ways; ++way) whole[k] += sum[k][way];
    }
    write(whole, gradient, Count, again);
  }
  if constexpr (Bias) {
    vec both[1] = {total[0]};
    for (int way = 1; way < Ways; ++way) both[0] += total[way];
    write(both, bias, 1, again);
  }
}

using Survivors = void (*)(Sides, i64, i64, i64, i64, const i32*, float*, float*, bool);

// As many positions at once as leave the fewest over.
i64 held_for(i64 nx) {
  if (nx <= HELD) return nx;
  i64 best = HELD;
  for (i64 held = HELD; held > HELD / 2; --held)
    if (nx % held < nx % best) best = held;
  return best;
}

template <int Count, bool Unit, bool Bias, int Held = HELD>
Survivors of_held(i64 held) {
  if constexpr (Held > 1) {
    // Strided convolutions are rarer: fewer forms are built for them.
    if (held < Held) return of_held<Count, Unit, Bias, Unit ? Held - 1 : Held / 2>(held);
  }
  return survivors<Count, Held, Unit, Bias>;
}

// The kernels for every number of survivors, by one number of positions.
template <bool Unit, bool Bias>
struct Counts {
  Survivors of[MOST + 1];
  template <int Count = MOST>
  void fill(i64 held) {
    of[Count] = of_held<Count, Unit, Bias>(held);
    if constexpr (Count > 0) fill<Count - 1>(held);
  }
  explicit Counts(i64 held) { fill(held); }
};

// How many of the survivors that are left to take next: one load of the gradient serves them all, so in few, even
// parts.
i64 next_count(i64 left) {
  const i64 parts = (left + MOST - 1) / MOST;
  return parts ? (left + parts - 1) / parts : 0;
}

template <bool Unit>
void convolution_gradients(const weight_gradients_row& op, Workspace& m, Part part) {
  const i64 held = held_for(op.nx);
  const Counts<Unit, false> plain(held);
  const Counts<Unit, true> with_bias(held);
  const i32* const starts = m.lists + op.starts;
  const i32* const offsets = m.lists + op.offsets;
  const i32* const row_grad = m.lists + op.row_grad;
  float* const gradients = m.gradients + op.gradients;
  for (i64 row = part.row; row < part.rows; ++row) {
    i64 k = starts[row * op.blocks];
    const i64 stop = starts[(row + 1) * op.blocks];
    bool bias = op.bias >= 0;
    while (k < stop || bias) {
      const i64 count = next_count(stop - k);
      const Survivors kernel = bias ? with_bias.of[count] : plain.of[count];
      for (i64 tile = part.tile; tile < part.tiles; ++tile) {
        const Sides sides{m.activations + op.in + tile * op.in_tile,
                          m.activations + op.grad + tile * op.grad_tile + row_grad[row], op.in_x, op.grad_x};
        kernel(sides, op.ny, op.in_y, op.grad_y, op.nx, offsets + k, gradients + k,
               bias ? m.gradients + op.bias + row : nullptr, tile > 0 && !m.partials);
      }
      k += count;
      bias = false;
    }
  }
}

}  // namespace

// Lists as those of products. in, grad: as there; gradients: one for each entry of the lists, in their order.
void verify(const weight_gradients_row& op, Verifier& v) {
  v.require(op.blocks > 0 && op.rows * op.blocks < i64{1} << 32, "blocks: out of range");
  const i64 entries = v.starts("starts", op.starts, op.rows * op.blocks + 1);
  const Range offsets = v.offsets("offsets", op.offsets, entries), rows = v.list("row_grad", op.row_grad, op.rows);
  const i64 ny = op.across ? 1 : op.ny, nx = op.across ? 1 : op.nx;
  if (entries > 0) v.activations("in", op.in, {{v.tiles, op.in_tile}, {ny, op.in_y}, {nx, op.in_x}}, offsets);
  v.activations("grad", op.grad, {{v.tiles, op.grad_tile}, {ny, op.grad_y}, {nx, op.grad_x}}, rows);
  v.gradients("gradients", op.gradients, entries);
  if (op.bias >= 0) v.gradients("bias", op.bias, op.rows);
}

void weight_gradients(const weight_gradients_row& op, Workspace& m, Part part) {
  if (!op.across) {
    if (op.in_x == 1 && op.grad_x == 1) return convolution_gradients<true>(op, m, part);
    return convolution_gradients<false>(op, m, part);
  }
  const Across kernel = across_of(m.tiles);
  const i32* const starts = m.lists + op.starts;
  const i32* const row_grad = m.lists + op.row_grad;
  for (i64 row = part.row; row < part.rows; ++row) {
    const i64 k = starts[row * op.blocks], count = starts[(row + 1) * op.blocks] - k;
    const Sides sides{m.activations + op.in, m.activations + op.grad + row_grad[row], op.in_tile, op.grad_tile};
    kernel(sides, m.tiles, m.lists + op.offsets + k, count, m.gradients + op.gradients + k);
    if (op.bias >= 0) {
      vec total[1] = {};
      for (i64 tile = 0; tile < m.tiles; ++tile) total[0] += sides.grad[tile * op.grad_tile];
      write(total, m.gradients + op.bias + row, 1, false);
    }
  }
}

}  // namespace lthfunc
