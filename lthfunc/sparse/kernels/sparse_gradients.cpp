// Gradients of the weights, at surviving weights only, and of the biases.
//
// Some survivors of one row, up to 16 with AVX-512, are summed at once over all positions and tiles: one load of the
// output gradient serves them all. Their lanes are added up at the end of each tile (of all tiles where the positions
// are tiles).
#include "gradients.h"

namespace lthfunc {
namespace {

// What becomes of a tile's sums where an instruction takes some rows of an image alone: they go on from those of the
// rows before, lane by lane, or stay unfinished for the rows behind. again: they are added to what is there. bias: null
// where there is none.
struct Course {
  vec *sums, *bias;
  bool goes_on, unfinished, again;
};

// `count` vectors for a kernel of more, whose others are not used.
inline void copy_some(const vec* from, i64 count, vec* to) {
  for (i64 k = 0; k < count; ++k) to[k] = from[k];
}

template <int Count, int Ways>
LTHFUNC_INLINE void begin(vec (&sum)[Count][Ways], vec& total, const Course& course, i64 count) {
  if (!course.goes_on) return;
  vec before[Count] = {};
  copy_some(course.sums, count, before);
  LTHFUNC_UNROLL
  for (int k = 0; k < Count; ++k) sum[k][0] = before[k];
  if (course.bias) total = *course.bias;
}

template <int Count>
LTHFUNC_INLINE void end(const vec (&sum)[Count], vec total, const Course& course, i64 count, float* gradient,
                        float* bias) {
  if (course.unfinished) {
    vec whole[Count];
    LTHFUNC_UNROLL
    for (int k = 0; k < Count; ++k) whole[k] = sum[k];
    copy_some(whole, count, course.sums);
    if (bias) *course.bias = total;
    return;
  }
  write(sum, gradient, count, course.again);
  const vec one[1] = {total};
  if (bias) write(one, bias, 1, course.again);
}

// Up to three survivors of one row over one tile's positions. The row's gradient itself is always summed up, too, for
// its bias: it is in a register, and what all wait for are loads. A sum of few survivors would wait for itself: it is
// taken in several parts.
template <int Count, int Held, bool Unit>
void few(Sides tile, i64 ny, i64 in_y, i64 grad_y, i64 nx, const i32* offset, i64, float* gradient, float* bias,
         Course course) {
  constexpr int Ways = Held == 1 ? 1 : Count > 1 ? 2 : Held < 4 ? 2 : 4;
  vec sum[Count][Ways] = {}, total[Ways] = {};
  begin(sum, total[0], course, Count);
  for (i64 y = 0; y < ny; ++y) {
    const vec *in = tile.in + y * in_y, *grad = tile.grad + y * grad_y;
    i64 x = 0;
    for (; x + Held <= nx; x += Held) {
      vec held[Held];
      hold<Held, Unit>(held, grad, tile.grad_step);
      add_places<Count, Held, Unit, Ways>(sum, held, in, tile.in_step, offset);
      LTHFUNC_UNROLL
      for (int p = 0; p < Held; ++p) total[p % Ways] += held[p];
      in += Held * tile.in_step;
      grad += Held * tile.grad_step;
    }
    for (; x < nx; ++x) {
      vec held[1];
      hold<1, Unit>(held, grad, tile.grad_step);
      add_places<Count, 1, Unit, Ways>(sum, held, in, tile.in_step, offset);
      total[0] += held[0];
      in += tile.in_step;
      grad += tile.grad_step;
    }
  }
  vec whole[Count], all = total[0];
  LTHFUNC_UNROLL
  for (int k = 0; k < Count; ++k) {
    whole[k] = sum[k][0];
    LTHFUNC_UNROLL
    for (int way = 1; way < Ways; ++way) whole[k] += sum[k][way];
  }
  LTHFUNC_UNROLL
  for (int way = 1; way < Ways; ++way) all += total[way];
  end(whole, all, course, Count, gradient, bias);
}

// The bias alone, of a row without survivors.
void none(Sides tile, i64 ny, i64, i64 grad_y, i64 nx, const i32*, i64, float*, float* bias, Course course) {
  vec total[4] = {};
  if (course.goes_on) total[0] = *course.bias;
  for (i64 y = 0; y < ny; ++y) {
    const vec* grad = tile.grad + y * grad_y;
    i64 x = 0;
    for (; x + 4 <= nx; x += 4, grad += 4 * tile.grad_step) {
      LTHFUNC_UNROLL
      for (int p = 0; p < 4; ++p) total[p] += grad[p * tile.grad_step];
    }
    for (; x < nx; ++x, grad += tile.grad_step) total[0] += *grad;
  }
  const vec one[1] = {total[0] + total[1] + total[2] + total[3]};
  if (course.unfinished)
    *course.bias = one[0];
  else
    write(one, bias, 1, course.again);
}

template <int Count, int Held, bool Unit>
LTHFUNC_INLINE void add_held(vec (&sum)[Count][1], vec& total, const vec*& in, const vec*& grad, const Sides& tile,
                             const i32* offset) {
  vec held[Held];
  hold<Held, Unit>(held, grad, tile.grad_step);
  add_places<Count, Held, Unit, 1>(sum, held, in, tile.in_step, offset);
  LTHFUNC_UNROLL
  for (int p = 0; p < Held; ++p) total += held[p];
  in += Held * tile.in_step;
  grad += Held * tile.grad_step;
}

// What is left of a row of positions: fewer than 2 · Held.
template <int Count, int Held, bool Unit>
LTHFUNC_INLINE void add_left(vec (&sum)[Count][1], vec& total, const vec*& in, const vec*& grad, const Sides& tile,
                             const i32* offset, i64 left) {
  if (left & Held) add_held<Count, Held, Unit>(sum, total, in, grad, tile, offset);
  if constexpr (Held > 1) add_left<Count, Held / 2, Unit>(sum, total, in, grad, tile, offset, left);
}

// More than three survivors. Held: a power of two, or what divides nx.
template <int Count, int Held, bool Unit>
void many(Sides tile, i64 ny, i64 in_y, i64 grad_y, i64 nx, const i32* offset, i64 count, float* gradient, float* bias,
          Course course) {
  i32 memory[MOST];
  const i32* const from = padded(offset, count, Count, memory);
  vec sum[Count][1] = {}, total = {};
  begin(sum, total, course, count);
  for (i64 y = 0; y < ny; ++y) {
    const vec *in = tile.in + y * in_y, *grad = tile.grad + y * grad_y;
    i64 left = nx;
    for (; left >= Held; left -= Held) add_held<Count, Held, Unit>(sum, total, in, grad, tile, from);
    if constexpr (Held == 2 || Held % 4 == 0) add_left<Count, Held / 2, Unit>(sum, total, in, grad, tile, from, left);
  }
  vec whole[Count];
  LTHFUNC_UNROLL
  for (int k = 0; k < Count; ++k) whole[k] = sum[k][0];
  end(whole, total, course, count, gradient, bias);
}

using Survivors = void (*)(Sides, i64, i64, i64, i64, const i32*, i64, float*, float*, Course);

// As many positions at once as leave the fewest over.
i64 held_for(i64 nx) {
  if (nx <= HELD) return nx;
  i64 best = HELD;
  for (i64 held = HELD; held > HELD / 2; --held)
    if (nx % held < nx % best) best = held;
  return best;
}

template <int Count, bool Unit, int Held = HELD>
Survivors few_of(i64 held) {
  if constexpr (Held > 1) {
    if (held < Held) return few_of<Count, Unit, Unit ? Held - 1 : Held / 2>(held);
  }
  return few<Count, Held, Unit>;
}

template <int Count, bool Unit>
Survivors many_of(i64 nx) {
  if constexpr (Unit && HELD == 8) {
    if (nx % 7 == 0) return many<Count, 7, Unit>;
    if (nx % 5 == 0) return many<Count, 5, Unit>;
  }
  constexpr int Held = Unit && Count + HELD <= ROOM ? HELD : HELD / 2;
  return many<Count, Held, Unit>;
}

// The kernel for a number of survivors; strided convolutions are rarer, and have every second one.
template <bool Unit, int Count = MOST>
Survivors kernel_of(i64 count, i64 nx) {
  constexpr int Next = Count > 4 && !Unit ? Count - 2 : Count - 1;
  if constexpr (Next >= 0) {
    if (count <= Next) return kernel_of<Unit, Next>(count, nx);
  }
  if constexpr (Count > 3)
    return many_of<Count, Unit>(nx);
  else if constexpr (Count > 0)
    return few_of<Count, Unit>(held_for(nx));
  else
    return none;
}

// How many of the survivors that are left to take next: one load of the gradient serves them all, so in few, even
// parts.
i64 next_count(i64 left) {
  const i64 parts = (left + MOST - 1) / MOST;
  return parts ? (left + parts - 1) / parts : 0;
}

template <bool Unit>
void convolution_gradients(const weight_gradients_row& op, Workspace& m, Part part) {
  const i32* const starts = m.lists + op.starts;
  const i32* const offsets = m.lists + op.offsets;
  const i32* const row_grad = m.lists + op.row_grad;
  float* const gradients = m.gradients + op.gradients;
  const i64 entries = starts[op.rows * op.blocks];
  for (i64 row = part.row; row < part.rows; ++row) {
    i64 k = starts[row * op.blocks];
    const i64 stop = starts[(row + 1) * op.blocks];
    bool bias = op.bias >= 0;
    while (k < stop || bias) {
      const i64 count = next_count(stop - k);
      const Survivors kernel = kernel_of<Unit>(count, op.nx);
      for (i64 tile = part.tile; tile < part.tiles; ++tile) {
        vec* const sums = m.activations + op.sums + tile * op.sums_tile;
        const Sides sides{m.activations + op.in + tile * op.in_tile,
                          m.activations + op.grad + tile * op.grad_tile + row_grad[row], op.in_x, op.grad_x};
        kernel(sides, op.ny, op.in_y, op.grad_y, op.nx, offsets + k, count, gradients + k,
               bias ? m.gradients + op.bias + row : nullptr,
               {sums + k, bias ? sums + entries + row : nullptr, op.goes_on != 0, op.unfinished != 0,
                tile > 0 && !m.partials});
      }
      k += count;
      bias = false;
    }
  }
}

}  // namespace

// Lists as those of products. in, grad: as there; gradients: one for each entry of the lists, in their order.
void verify(const weight_gradients_row& op, Verifier& v) {
  // Tile by tile, gradients of one would be written over those of another.
  v.require(op.unfinished || op.split != split_by_tiles, "cannot be split like this");
  v.require(op.blocks > 0 && op.rows * op.blocks < i64{1} << 32, "blocks: out of range");
  const i64 entries = v.starts("starts", op.starts, op.rows * op.blocks + 1);
  const Range offsets = v.offsets("offsets", op.offsets, entries), rows = v.list("row_grad", op.row_grad, op.rows);
  const i64 ny = op.across ? 1 : op.ny, nx = op.across ? 1 : op.nx;
  if (entries > 0) v.activations("in", op.in, {{v.tiles, op.in_tile}, {ny, op.in_y}, {nx, op.in_x}}, offsets);
  v.activations("grad", op.grad, {{v.tiles, op.grad_tile}, {ny, op.grad_y}, {nx, op.grad_x}}, rows);
  v.gradients("gradients", op.gradients, entries);
  if (op.bias >= 0) v.gradients("bias", op.bias, op.rows);
  if (!op.goes_on && !op.unfinished) return;
  v.require(!op.across && op.goes_on <= 1 && op.unfinished <= 1 && op.goes_on >= 0 && op.unfinished >= 0,
            "goes_on and unfinished: 0, or 1 for a convolution");
  v.activations("sums", op.sums, {{v.tiles, op.sums_tile}, {entries + (op.bias < 0 ? 0 : op.rows), 1}});
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
