// Convolutions that have most of their weights, as dense ones: pruned weights are zeros among the others.
//
// All rows read the same positions then. An input that is loaded serves several rows, where a list's serves one, so
// that multipliers are fed at their full rate (lowerings/dense.py says from which density on it pays).
#include <algorithm>
#include <type_traits>
#include <vector>

#include "bitmasks.h"
#include "regions.h"

namespace lthfunc {
namespace {

// Rows and positions (or entries) whose sums stay in registers.
#ifdef __AVX512F__
constexpr int ROWS = 4, PLACES = 6;
#else
constexpr int ROWS = 2, PLACES = 3;
#endif
// Bytes of inputs that the gradients of some entries read again and again, for one group of rows after the other.
constexpr i64 NEAR_BYTES = 256 * 1024;

// A vector that is loaded once: compilers would load it again for each multiply-add that reads it.
LTHFUNC_INLINE void keep(floats& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#endif
}
template <typename Half>
LTHFUNC_INLINE void keep(Two<Half>& v) {
  keep(v.low);
  keep(v.high);
}

// sum[row][place] += weight[row] · in[place], over all entries. from(s): the bytes of place s behind the first.
template <int Rows, int Sums, typename From>
LTHFUNC_INLINE void run(vec (&sum)[Rows][Sums], const dense_convolutions_row& op, const Workspace& m, const vec* in,
                        i64 row, From from) {
  const i32* const offsets = m.lists + op.offsets;
  const float* value[Rows];
  LTHFUNC_UNROLL
  for (int r = 0; r < Rows; ++r) value[r] = weights_of(op, m) + (row + r) * op.value_row;
  const vec* place[Sums];
  LTHFUNC_UNROLL
  for (int s = 0; s < Sums; ++s) place[s] = &behind(in, from(s));
  for (i64 k = 0; k < op.entries; ++k) {
    vec x[Sums];
    LTHFUNC_UNROLL
    for (int s = 0; s < Sums; ++s) {
      x[s] = behind(place[s], offsets[k]);
      keep(x[s]);
    }
    LTHFUNC_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const vec weight = broadcast(value[r][k]);
      LTHFUNC_UNROLL
      for (int s = 0; s < Sums; ++s) sum[r][s] += weight * x[s];
    }
  }
}

template <int Rows, int Sums>
LTHFUNC_INLINE void begin(vec (&sum)[Rows][Sums], const dense_convolutions_row& op, const Workspace& m, i64 row) {
  LTHFUNC_UNROLL
  for (int r = 0; r < Rows; ++r) {
    const vec bias = broadcast(op.bias < 0 ? 0.0f : m.values[op.bias + row + r]);
    LTHFUNC_UNROLL
    for (int s = 0; s < Sums; ++s) sum[r][s] = bias;
  }
}

// Some rows of a stretch of outputs.
template <int Rows, int Sums, bool Unit>
void stretch(const dense_convolutions_row& op, const Workspace& m, const Region& region, i64 row) {
  const i32* const row_out = m.lists + op.row_out + row;
  // What is read and written at the end lies far apart, so that no processor guesses it; asked for now, it has the time
  // of a whole list to come.
  if (region.gate || op.accumulate) {
    LTHFUNC_UNROLL
    for (int r = 0; r < Rows; ++r) {
      LTHFUNC_UNROLL
      for (int s = 0; s < Sums; ++s) {
        __builtin_prefetch(region.out + row_out[r] + s * region.out_step, 1);
        if (region.gate) __builtin_prefetch(region.gate + row_out[r] + s * region.out_step);
      }
    }
  }
  vec sum[Rows][Sums];
  begin(sum, op, m, row);
  run(sum, op, m, region.in, row, [&](int s) { return s * (Unit ? 1 : region.in_step) * BYTES; });
  LTHFUNC_UNROLL
  for (int r = 0; r < Rows; ++r) {
    vec* const out = region.out + row_out[r];
    if (op.accumulate) {
      LTHFUNC_UNROLL
      for (int s = 0; s < Sums; ++s) sum[r][s] += out[s * region.out_step];
    }
    finish<vec>(sum[r], op, m, region, row + r, row_out[r]);
    LTHFUNC_UNROLL
    for (int s = 0; s < Sums; ++s) out[s * region.out_step] = sum[r][s];
  }
}

// The maximum of a 2 × 2 window, of some rows.
template <int Rows>
void pooled(const dense_convolutions_row& op, const Workspace& m, const Region& region, i64 row) {
  vec sum[Rows][4];
  begin(sum, op, m, row);
  run(sum, op, m, region.in, row, [&](int s) { return (s / 2 * op.in_y + s % 2 * region.in_step) * BYTES; });
  LTHFUNC_UNROLL
  for (int r = 0; r < Rows; ++r) write_maximum(sum[r], op, m, region, row + r, m.lists[op.row_out + row + r]);
}

using Kernel = void (*)(const dense_convolutions_row&, const Workspace&, const Region&, i64);

template <int Rows, int Sums = PLACES>
Kernel kernel_of(i64 size, bool unit) {
  if constexpr (Sums > 1) {
    if (size < Sums) return kernel_of<Rows, Sums - 1>(size, unit);
  }
  return unit ? stretch<Rows, Sums, true> : stretch<Rows, Sums, false>;
}

// each(number of rows, first row) for groups of ROWS rows, then for half as many, down to one.
template <int Rows = ROWS, typename Each>
void groups(i64 row, i64 rows, Each each) {
  for (; row + Rows <= rows; row += Rows) each(std::integral_constant<int, Rows>{}, row);
  if constexpr (Rows > 1) groups<Rows / 2>(row, rows, each);
}

// ---- gradients of the weights ----

// Where gradients go: rows `width` apart, added to what is there or not.
struct Into {
  float* rows;
  i64 width;
  bool again;
};

// Rows · Entries gradients, summed over all positions of some tiles.
template <int Rows, int Entries>
void entries(const dense_convolution_gradients_row& op, const Workspace& m, Part part, i64 row, i64 k, Into into) {
  vec sum[Rows][Entries] = {};
  const i32* const offsets = m.lists + op.offsets + k;
  const i32* const row_grad = m.lists + op.row_grad + row;
  // One loop over all places: rows of an image are too short for one of their own.
  const i32* const places = m.lists + op.places;
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    const vec* const in = m.activations + op.in + tile * op.in_tile;
    const vec* const grad = m.activations + op.grad + tile * op.grad_tile;
    const vec* row_of[Rows];
    LTHFUNC_UNROLL
    for (int r = 0; r < Rows; ++r) row_of[r] = grad + row_grad[r];
    for (i64 p = 0; p < op.count; ++p) {
      const i64 there = places[2 * p + 1];
      const vec* const here = &behind(in, places[2 * p]);
      vec held[Rows];
      LTHFUNC_UNROLL
      for (int r = 0; r < Rows; ++r) {
        held[r] = behind(row_of[r], there);
        keep(held[r]);
      }
      LTHFUNC_UNROLL
      for (int e = 0; e < Entries; ++e) {
        vec value = behind(here, offsets[e]);
        keep(value);
        LTHFUNC_UNROLL
        for (int r = 0; r < Rows; ++r) sum[r][e] += held[r] * value;
      }
    }
  }
  // Lanes of two rows are added up at once: eight sums of each.
  static_assert(Entries <= 8);
  for (int r = 0; r < Rows; r += 2) {
    vec both[16] = {};
    LTHFUNC_UNROLL
    for (int e = 0; e < Entries; ++e) {
      both[e] = sum[r][e];
      if (r + 1 < Rows) both[8 + e] = sum[r + 1][e];
    }
    const vec total = sums_of(both);
    for (int half = 0; half < std::min(2, Rows - r); ++half) {
      float* const out = into.rows + (r + half) * into.width + k;
      for (int e = 0; e < Entries; ++e) out[e] = total[8 * half + e] + (into.again ? out[e] : 0.0f);
    }
  }
}

using Entries = void (*)(const dense_convolution_gradients_row&, const Workspace&, Part, i64, i64, Into);

template <int Rows, int Most = PLACES>
Entries entries_of(i64 count) {
  if constexpr (Most > 1) {
    if (count < Most) return entries_of<Rows, Most - 1>(count);
  }
  return entries<Rows, Most>;
}

template <int Rows>
void some_entries(const dense_convolution_gradients_row& op, const Workspace& m, Part part, i64 row, i64 from, i64 to,
                  Into into) {
  for (i64 k = from; k < to;) {
    // In few parts, of nearly even lengths.
    const i64 parts = (to - k + PLACES - 1) / PLACES, count = (to - k + parts - 1) / parts;
    entries_of<Rows>(count)(op, m, part, row, k, into);
    k += count;
  }
}

void bias_gradient(const dense_convolution_gradients_row& op, Workspace& m, Part part, i64 row, bool again) {
  vec total[4] = {};
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    const vec* const from = m.activations + op.grad + tile * op.grad_tile + m.lists[op.row_grad + row];
    for (i64 p = 0; p < op.count; ++p) total[p % 4] += behind(from, m.lists[op.places + 2 * p + 1]);
  }
  float& gradient = m.gradients[op.bias + row];
  gradient = sum((total[0] + total[1]) + (total[2] + total[3])) + (again ? gradient : 0.0f);
}

}  // namespace

// As sparse products, but that all rows read the same `entries` offsets, with weights `value_row` floats apart.
void verify(const dense_convolutions_row& op, Verifier& v) {
  verify_region(op, v, op.entries, v.offsets("offsets", op.offsets, op.entries), false);
  verify_weights(op, v, {{op.rows, op.value_row}, {op.entries, 1}});
}

void dense_convolutions(const dense_convolutions_row& op, Workspace& m, Part part) {
  const i64 most = op.pool ? 1 : PLACES;
  for (i64 tile = part.tile; tile < part.tiles; ++tile)
    for (i64 y = 0; y < op.ny; ++y)
      stretches(op, m, tile, y, op.nx, most, [&](const Region& region, i64, i64 size) {
        groups(part.row, part.rows, [&](auto rows, i64 row) {
          if (op.pool)
            pooled<rows>(op, m, region, row);
          else
            kernel_of<rows>(size, op.in_x == 1)(op, m, region, row);
        });
      });
}

// out: floats, `entries` a row, side by side; from: where the first row's lie, `step` before the next one's.
void verify(const transpose_weights_row& op, Verifier& v) {
  const Range from = v.list("from", op.from, op.entries);
  if (op.entries > 0) verify_weights(op, v, {{op.rows, op.step}}, from);
  v.floats("out", op.out, {{op.rows, op.entries}, {op.entries, 1}});
}

void transpose_weights(const transpose_weights_row& op, Workspace& m, Part part) {
  const float* const weights = weights_of(op, m);
  const i32* const from = m.lists + op.from;
  float* const out = reinterpret_cast<float*>(m.activations + op.out);
  for (i64 row = part.row; row < part.rows; ++row)
    for (i64 k = 0; k < op.entries; ++k) out[row * op.entries + k] = weights[from[k] + row * op.step];
}

// places: bytes to a place among the inputs and among the gradients, in turn, whole vectors. bits, starts: each row's
// survivors among its entries; gradients: theirs, side by side.
void verify(const dense_convolution_gradients_row& op, Verifier& v) {
  v.require(op.entries > 0 && op.entries <= op.words * LANES, "words: masks of all entries");
  v.require(op.channel_bytes > 0 && op.channel_entries >= 0 && op.channel_entries <= op.entries,
            "channels: out of range");
  const Range offsets = v.offsets("offsets", op.offsets, op.entries), rows = v.list("row_grad", op.row_grad, op.rows);
  const Range in = v.offsets("places", op.places, op.count, 2), grad = v.offsets("places", op.places + 1, op.count, 2);
  if (op.count > 0) {
    v.activations("in", op.in, {{v.tiles, op.in_tile}}, {in.low + offsets.low, in.high + offsets.high});
    v.activations("grad", op.grad, {{v.tiles, op.grad_tile}}, {grad.low + rows.low, grad.high + rows.high});
  }
  v.gradients("gradients", op.gradients, v.survivors(op.starts, op.bits, op.words, op.rows));
  if (op.bias >= 0) v.gradients("bias", op.bias, op.rows);
}

void dense_convolution_gradients(const dense_convolution_gradients_row& op, Workspace& m, Part part) {
  const i32* const starts = m.lists + op.starts;
  const bool full = starts[op.rows] == op.rows * op.entries, again = part.tile > 0 && !m.partials;
  // Where pruned weights have no place, their gradients are computed beside the others and left.
  static thread_local std::vector<float> apart;
  const i64 width = full ? op.entries : op.words * LANES;
  if (!full) apart.resize(static_cast<std::size_t>((part.rows - part.row) * width));
  float* const first = full ? m.gradients + op.gradients + part.row * width : apart.data();
  const i64 channels = NEAR_BYTES / (op.channel_bytes * (part.tiles - part.tile));
  const i64 some = std::max<i64>(PLACES, channels * op.channel_entries);
  const auto into = [&](i64 row) { return Into{first + (row - part.row) * width, width, full && again}; };
  for (i64 k = 0; k < op.entries; k += some)
    groups(part.row, part.rows, [&](auto rows, i64 row) {
      some_entries<rows>(op, m, part, row, k, std::min(k + some, op.entries), into(row));
    });
  for (i64 row = part.row; row < part.rows; ++row) {
    if (!full)
      pick_row(into(row).rows, m.lists + op.bits + row * op.words, op.words, m.gradients + op.gradients + starts[row],
               again);
    if (op.bias >= 0) bias_gradient(op, m, part, row, again);
  }
}

}  // namespace lthfunc
