// Sparse × dense: rows of outputs from lists of surviving weights.
//
// A few outputs of one row stay in registers while the row's list runs: each weight is one broadcast and as many
// multiply-adds with memory operands. No lane depends on the mask, so no pattern of survivors is slower than another.
#include <memory>

#include "added_gradients.h"
#include "windowed_products.h"

namespace lthfunc {
namespace {

template <int Sums, bool Unit, bool Indexed>
LTHFUNC_INLINE void run_list(vec (&sum)[Sums], const vec* in, i64 step, const i32* offset, const i32* which,
                             const float* value, i64 count) {
  const vec* from[Unit ? 1 : Sums];
  LTHFUNC_UNROLL
  for (int s = 0; s < (Unit ? 1 : Sums); ++s) from[s] = in + s * step;
  for (i64 k = 0; k < count; ++k) {
    const i64 bytes = offset[k];
    const vec weight = broadcast(Indexed ? value[which[k]] : value[k]);
    LTHFUNC_UNROLL
    for (int s = 0; s < Sums; ++s) sum[s] += weight * behind(from[Unit ? 0 : s], bytes + (Unit ? s * BYTES : 0));
  }
}

// Whether the products go to gradients that are there already, by whole lists, tile by tile.
bool is_added(const products_row& op) { return op.accumulate && op.limits < 0 && !op.across; }

// Neighbouring blocks of a row's list, and where in its course they stand: fresh sums begin at the bias, finished ones
// are rectified, gated and the like.
struct Some {
  i64 from, to;
  bool fresh, finish;
};

// All rows of one stretch of outputs of either kind. partial: where a stretch of every row lies from some blocks to the
// next, beginning at nothing; without it, among the outputs.
template <typename Kind, int Sums, bool Unit, bool Indexed, bool Streamed = false>
void stretch(const products_row& op, const Workspace& m, Region region, const Norm& norm, Some blocks, i64 from, i64 to,
             vec* partial) {
  const i32* const starts = m.lists + op.starts;
  const i32* const offsets = m.lists + op.offsets;
  const i32* const which = m.lists + op.which;
  const i32* const row_out = m.lists + op.row_out;
  const float* const values = m.values + op.values;
  for (i64 row = from; row < to; ++row) {
    const i64 begin = starts[row * op.blocks + blocks.from], end = starts[row * op.blocks + blocks.to];
    if (begin == end && !blocks.fresh && !blocks.finish) continue;
    Kind* const out = outputs<Kind>(region) + row_out[row];
    vec* const kept = partial + (row - from) * Sums;
    vec sum[Sums];
    if (partial && !blocks.fresh) {
      LTHFUNC_UNROLL
      for (int s = 0; s < Sums; ++s) sum[s] = kept[s];
    } else if (!blocks.fresh || (op.accumulate && !partial)) {
      LTHFUNC_UNROLL
      for (int s = 0; s < Sums; ++s) sum[s] = read(out[s * region.out_step]);
    } else {
      const vec bias = broadcast(op.bias < 0 ? 0.0f : m.values[op.bias + row]);
      LTHFUNC_UNROLL
      for (int s = 0; s < Sums; ++s) sum[s] = bias;
    }
    run_list<Sums, Unit, Indexed>(sum, region.in, region.in_step, offsets + begin, which + begin,
                                  Indexed ? values : values + begin, end - begin);
    if constexpr (Streamed) {
      if (blocks.finish) {
        finish_value<Kind>(sum, norm, row);
        LTHFUNC_UNROLL
        for (int s = 0; s < Sums; ++s) stream(out[s * region.out_step], sum[s]);
        continue;
      }
    } else if (blocks.finish) {
      finish<Kind>(sum, op, m, region, norm, row, row_out[row]);
    }
    if (partial && !blocks.finish) {
      LTHFUNC_UNROLL
      for (int s = 0; s < Sums; ++s) kept[s] = sum[s];
      continue;
    }
    LTHFUNC_UNROLL
    for (int s = 0; s < Sums; ++s) write(out[s * region.out_step], sum[s]);
  }
}

// 2 × 2 maxima of a stretch of outputs, which never leave the registers: two rows of 2 · Pairs sums.
template <int Pairs, bool Unit>
void pooled_stretch(const products_row& op, const Workspace& m, Region region, const Norm&, Some, i64 from, i64 to,
                    vec*) {
  constexpr int Sums = 2 * Pairs;
  const i32* const starts = m.lists + op.starts;
  const i32* const offsets = m.lists + op.offsets;
  const i32* const row_out = m.lists + op.row_out;
  for (i64 row = from; row < to; ++row) {
    const vec bias = broadcast(op.bias < 0 ? 0.0f : m.values[op.bias + row]);
    vec sum[2 * Sums];
    LTHFUNC_UNROLL
    for (int s = 0; s < 2 * Sums; ++s) sum[s] = bias;
    const i64 begin = starts[row * op.blocks], count = starts[(row + 1) * op.blocks] - begin;
    const float* const value = m.values + op.values + begin;
    const vec* from_place[Unit ? 2 : 2 * Sums];
    LTHFUNC_UNROLL
    for (int s = 0; s < (Unit ? 2 : 2 * Sums); ++s)
      from_place[s] = Unit ? region.in + s * op.in_y : region.in + s / Sums * op.in_y + s % Sums * region.in_step;
    for (i64 k = 0; k < count; ++k) {
      const i64 bytes = offsets[begin + k];
      const vec weight = broadcast(value[k]);
      LTHFUNC_UNROLL
      for (int s = 0; s < 2 * Sums; ++s)
        sum[s] += weight * behind(from_place[Unit ? s / Sums : s], bytes + (Unit ? s % Sums * BYTES : 0));
    }
    LTHFUNC_UNROLL
    for (int p = 0; p < Pairs; ++p) {
      const vec four[4] = {sum[2 * p], sum[2 * p + 1], sum[Sums + 2 * p], sum[Sums + 2 * p + 1]};
      write_maximum(four, op, m, region, row, row_out[row] + p * region.out_step);
    }
  }
}

using Stretch = void (*)(const products_row&, const Workspace&, Region, const Norm&, Some, i64, i64, vec*);

template <int Sums>
Stretch choose(bool half, bool unit, bool indexed, bool streamed) {
  if (streamed && half) return stretch<halves, Sums, true, false, true>;
  if (streamed) return unit ? stretch<vec, Sums, true, false, true> : stretch<vec, Sums, false, false, true>;
  if (half) return indexed ? stretch<halves, Sums, true, true> : stretch<halves, Sums, true, false>;
  if (unit) return indexed ? stretch<vec, Sums, true, true> : stretch<vec, Sums, true, false>;
  return indexed ? stretch<vec, Sums, false, true> : stretch<vec, Sums, false, false>;
}

template <int... Sums>
Stretch choose_among(i64 sums, bool half, bool unit, bool indexed, bool streamed) {
  Stretch found = nullptr;
  (void)((sums == Sums ? (found = choose<Sums>(half, unit, indexed, streamed), true) : false) || ...);
  return found;
}

Stretch stretch_of(i64 sums, bool half, bool unit, bool indexed, bool streamed) {
#ifdef __AVX512F__
  return choose_among<1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16>(sums, half, unit, indexed, streamed);
#else
  return choose_among<1, 2, 3, 4, 5, 6>(sums, half, unit, indexed, streamed);
#endif
}

}  // namespace

namespace {

template <int... Pairs>
Stretch pooled_among(i64 pairs, bool unit) {
  Stretch found = nullptr;
  (void)((pairs == Pairs ? (found = unit ? pooled_stretch<Pairs, true> : pooled_stretch<Pairs, false>, true) : false) ||
         ...);
  return found;
}

#ifdef __AVX512F__
constexpr i64 MAX_PAIRS = 7;
Stretch pooled_of(i64 pairs, bool unit) { return pooled_among<1, 2, 3, 4, 5, 6, 7>(pairs, unit); }
#else
constexpr i64 MAX_PAIRS = 1;
Stretch pooled_of(i64 pairs, bool unit) { return pooled_among<1>(pairs, unit); }
#endif

}  // namespace

namespace {

void whole(const products_row& op, const Workspace& m, i64 tile, i64 y, i64 count, Part part, vec* partial = nullptr) {
  const bool unit = op.in_x == 1;
  // Linear layers: as many tiles at once as a block of inputs is cut for, so that it stays in the first cache.
  const i64 most = op.pool ? MAX_PAIRS : op.across ? std::min<i64>(op.across, MAX_SUMS) : MAX_SUMS;
  stretches(op, m, tile, y, count, most, [&](const Region& region, i64 x, i64 size) {
    const Norm norm = norm_of(op, m, tile, y, x);
    if (op.pool)
      return pooled_of(size, unit)(op, m, region, norm, {0, op.blocks, true, true}, part.row, part.rows, nullptr);
    const Stretch kernel = stretch_of(size, op.out_half, unit, op.which >= 0, op.streamed);
    const i64 last = is_added(op) ? op.blocks : op.blocks - 1;
    for (i64 block = 0; block < op.blocks; ++block)
      kernel(op, m, region, norm, {block, block + 1, block == 0, block == last}, part.row, part.rows, partial);
    if (is_added(op)) add_gradients(op, m, region, norm, partial, size, part);
  });
}

}  // namespace

// starts: rows · blocks + 1, rising. offsets: whole vectors, as bytes; which, else the order of the lists: the values.
// With limits, kernel columns and rows are blocks, and all columns miss at most MAX_MISSING positions of a row
// together.
void verify(const products_row& op, Verifier& v) {
  v.require(op.blocks > 0 && op.rows * op.blocks < i64{1} << 32 && op.across >= 0, "blocks and across: out of range");
  const i64 entries = v.starts("starts", op.starts, op.rows * op.blocks + 1);
  const Range which = op.which < 0 ? Range{0, entries - 1} : v.list("which", op.which, entries);
  if (entries > 0) v.values("values", op.values, {{1, 0}}, which);
  verify_region(op, v, entries, v.offsets("offsets", op.offsets, entries), op.across > 0);
  if (op.sums >= 0) verify_sums(op, v);
  const bool plain = op.limits < 0 && op.in_x == 1 && op.nx > 0 && !op.across && !op.pool;
  const bool unfused = op.saved < 0 && op.b < 0 && !op.relu && !op.pool, value = op.sums >= 0 && op.norm < 0;
  v.require(!is_added(op) || (unfused && !value), "accumulate: of a gradient alone");
  const bool alone = unfused && value && op.gate < 0 && op.which < 0 && !op.accumulate && op.limits < 0;
  v.require(op.streamed == 0 || (op.streamed == 1 && alone),
            "streamed: 0, or 1 for what batch normalisation alone reads");
  v.require(op.out_half == 0 || (op.out_half == 1 && plain), "out_half: 0, or 1 for neighbouring places of an image");
  if (op.limits < 0) return;
  v.require(op.which >= 0 && !op.across && !op.pool && op.in_x == 1, "limits: of a convolution's gradient");
  v.require(op.kernel_y > 0 && op.kernel_x > 0 && op.kernel_y * op.kernel_x <= op.blocks &&
                op.blocks % (op.kernel_y * op.kernel_x) == 0,
            "blocks: whole kernels");
  v.list("limits", op.limits, 2 * (op.kernel_x + op.kernel_y));
  for (i64 column = 0; column < op.kernel_x; ++column) {
    const i32* const limits = v.program.lists.data() + op.limits + 2 * column;
    v.require(std::max<i64>(limits[0], 0) + std::max<i64>(op.nx - limits[1], 0) <= MAX_MISSING, "limits: too narrow");
  }
}

void products(const products_row& op, Workspace& m, Part part) {
  if (op.across) return whole(op, m, 0, 0, m.tiles, part);
  // Sums that will have 16 bits are whole numbers until they are finished, and what is streamed is written once.
  const bool apart = is_added(op) || ((op.out_half || op.streamed) && op.blocks > 1);
  const std::unique_ptr<vec[]> partial(apart ? new vec[static_cast<std::size_t>(op.rows * MAX_SUMS)] : nullptr);
  for (i64 tile = part.tile; tile < part.tiles; ++tile)
    for (i64 y = 0; y < op.ny; ++y) {
      if (op.limits < 0)
        whole(op, m, tile, y, op.nx, part, partial.get());
      else
        windowed(op, m, tile, y, part);
    }
  if (op.streamed) end_streams();
}

}  // namespace lthfunc
