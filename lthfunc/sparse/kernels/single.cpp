// One example: the same programs with positions counted in floats, vectors along the rows of an image.
//
// With a tile of its own an example would use one lane of 16. Convolutions take 16 positions of a row at a time, in
// several rows, from unaligned memory; linear layers, whose positions have no neighbours, are scalar sums. What lies
// behind the last place of a row is computed and not stored.
// What programs it runs: single_table.cpp.
#include "single.h"

#include <algorithm>
#include <vector>

namespace lthfunc {
namespace {

#ifdef __AVX512F__
constexpr int ROWS = 4;
#else
constexpr int ROWS = 2;
#endif

// Offsets in lists are bytes between vectors, never negative.
LTHFUNC_INLINE const float* behind_floats(const float* from, i32 vector_bytes) {
  return reinterpret_cast<const float*>(reinterpret_cast<const char*>(from) +
                                        (static_cast<std::uint32_t>(vector_bytes) / LANES));
}

// What becomes of a sum before it is written, for a number or a vector. added: what a residual connection brings.
template <typename Number, typename Row>
LTHFUNC_INLINE Number finished(Number sum, const Row& op, const Workspace& m, i64 row, const float* added) {
  if (op.saved >= 0) {
    const float* const saved = m.constants + op.saved + row * SAVED;
    sum = sum * saved[factor_of] + saved[summand_of];
  }
  if (added) {
    if constexpr (sizeof(Number) == sizeof(float))
      sum += *added;
    else
      sum += load(added);
  }
  return op.relu ? where(sum <= Number{}, Number{}, sum) : sum;
}

template <typename Row>
const float* added_to(const Row& op, const Workspace& m, i64 row, i64 y, i64 x) {
  return op.b < 0 ? nullptr : place(m, op.b + row * op.b_channel + y * op.b_row) + x;
}

struct List {
  const i32* offset;
  const float* value;
  i64 count;
};

LTHFUNC_INLINE List list_of(const products_row& op, const Workspace& m, i64 row) {
  const i32* const starts = m.lists + op.starts;
  const i64 begin = starts[row * op.blocks], end = starts[(row + 1) * op.blocks];
  return {m.lists + op.offsets + begin, m.values + op.values + begin, end - begin};
}
// Of weights that are not spread out, which takes more than a tile (lowerings/dense.py).
LTHFUNC_INLINE List list_of(const dense_convolutions_row& op, const Workspace& m, i64 row) {
  return {m.lists + op.offsets, m.values + op.values + row * op.value_row, op.entries};
}

// Scalar, since a processor's gathers are slower than as many loads; GCC would use them.
#if !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("no-tree-vectorize")
#endif

// Several sums at once, since each addition waits for the one before.
LTHFUNC_INLINE float dot(const List& list, const float* in) {
  const i32* offset = list.offset;
  const float* value = list.value;
  const i32* const end = offset + list.count;
  float a = 0, b = 0, c = 0, d = 0;
  for (; end - offset >= 4; offset += 4, value += 4) {
    a += value[0] * *behind_floats(in, offset[0]);
    b += value[1] * *behind_floats(in, offset[1]);
    c += value[2] * *behind_floats(in, offset[2]);
    d += value[3] * *behind_floats(in, offset[3]);
  }
  if (offset < end) a += value[0] * *behind_floats(in, offset[0]);
  if (offset + 1 < end) b += value[1] * *behind_floats(in, offset[1]);
  if (offset + 2 < end) c += value[2] * *behind_floats(in, offset[2]);
  return (a + b) + (c + d);
}

// A function of its own: within the loop over rows GCC takes two to three times as long.
__attribute__((noinline)) void write_linear(const products_row& op, const Workspace& m, i64 row, float found) {
  const float bias = op.bias < 0 ? 0.0f : m.values[op.bias + row];
  float* const out = place(m, op.out + m.lists[op.row_out + row]);
  found += bias;
  *out = finished(op.accumulate ? *out + found : found, op, m, row, nullptr);
}

void linear(const products_row& op, const Workspace& m) {
  const float* const in = place(m, op.in);
  for (i64 row = 0; row < op.rows; ++row) write_linear(op, m, row, dot(list_of(op, m, row), in));
}

#if !defined(__clang__)
#pragma GCC pop_options
#endif

// Rows × Wide vectors of outputs in registers while the list runs. `step`: from one row of outputs to the next, in the
// input; `across`: where the second vector begins.
template <int Rows, int Wide>
void block(const List& list, const float* in, i64 step, i64 across, float bias, vec (&sum)[Rows * Wide]) {
  const float* from[Rows * Wide];
  LTHFUNC_UNROLL
  for (int s = 0; s < Rows * Wide; ++s) {
    from[s] = in + s / Wide * step + s % Wide * across;
    sum[s] = broadcast(bias);
  }
  for (i64 k = 0; k < list.count; ++k) {
    const i32 at = list.offset[k];
    const vec weight = broadcast(list.value[k]);
    LTHFUNC_UNROLL
    for (int s = 0; s < Rows * Wide; ++s) sum[s] += weight * load(behind_floats(from[s], at));
  }
}

template <int Rows, int Wide, typename Row>
void rows_of_outputs(const Row& op, const Workspace& m, const List& list, i64 row, i64 y, i64 x, i64 width, float* out,
                     i64 out_row) {
  vec sum[Rows * Wide];
  const i64 across = Wide > 1 ? std::max<i64>(0, std::min<i64>(LANES, width - LANES)) : 0;
  block<Rows, Wide>(list, place(m, op.in) + y * op.in_y + x, op.in_y, across,
                    op.bias < 0 ? 0.0f : m.values[op.bias + row], sum);
  LTHFUNC_UNROLL
  for (int r = 0; r < Rows; ++r) {
    LTHFUNC_UNROLL
    for (int w = 0; w < Wide; ++w) {
      const vec value = finished(sum[r * Wide + w], op, m, row, added_to(op, m, row, y + r, x + w * across));
      store(out + r * out_row + x + w * across, value, width - w * across);
    }
  }
}

template <int Wide, typename Row>
void chunk(const Row& op, const Workspace& m, const List& list, i64 row, i64 from, i64 to, i64 x, i64 width, float* out,
           i64 out_row) {
  i64 y = from;
  for (; y + ROWS <= to; y += ROWS)
    rows_of_outputs<ROWS, Wide>(op, m, list, row, y, x, width, out + (y - from) * out_row, out_row);
  for (; y < to; ++y) rows_of_outputs<1, Wide>(op, m, list, row, y, x, width, out + (y - from) * out_row, out_row);
}

// Rows from … to of a channel of outputs, `width` wide, to `out`, whose rows are out_row apart.
template <typename Row>
void channel_of_outputs(const Row& op, const Workspace& m, i64 row, i64 from, i64 to, i64 width, float* out,
                        i64 out_row) {
  const List list = list_of(op, m, row);
  if (op.in_x != 1) {
    const float bias = op.bias < 0 ? 0.0f : m.values[op.bias + row];
    for (i64 y = from; y < to; ++y)
      for (i64 x = 0; x < width; ++x)
        out[(y - from) * out_row + x] = finished(bias + dot(list, place(m, op.in) + y * op.in_y + x * op.in_x), op, m,
                                                 row, added_to(op, m, row, y, x));
    return;
  }
  for (i64 x = 0; x < width; x += 2 * LANES) {
    const i64 some = std::min<i64>(width - x, 2 * LANES);
    if (some > LANES)
      chunk<2>(op, m, list, row, from, to, x, some, out, out_row);
    else
      chunk<1>(op, m, list, row, from, to, x, some, out, out_row);
  }
}

template <typename Row>
void convolution(const Row& op, const Workspace& m) {
  const i32* const row_out = m.lists + op.row_out;
  std::vector<float> kept(op.pool ? static_cast<std::size_t>(4 * op.ny * op.nx + LANES) : 0);
  for (i64 row = 0; row < op.rows; ++row) {
    float* const out = place(m, op.out + row_out[row]);
    if (!op.pool) {
      channel_of_outputs(op, m, row, 0, op.ny, op.nx, out, op.out_y);
      continue;
    }
    const i64 width = 2 * op.nx;
    channel_of_outputs(op, m, row, 0, 2 * op.ny, width, kept.data(), width);
    for (i64 y = 0; y < op.ny; ++y) {
      const float *const upper = kept.data() + 2 * y * width, *const lower = upper + width;
      for (i64 x = 0; x < op.nx; ++x)
        out[y * op.out_y + x] =
            max_or_nan(max_or_nan(upper[2 * x], upper[2 * x + 1]), max_or_nan(lower[2 * x], lower[2 * x + 1]));
    }
  }
}

}  // namespace

void products_single(const products_row& op, Workspace& m) { return op.across ? linear(op, m) : convolution(op, m); }

void dense_convolutions_single(const dense_convolutions_row& op, Workspace& m) { convolution(op, m); }

// Of weights that are not spread out either.
void dense_products_single(const dense_products_row& op, Workspace& m) {
  const i32 *const addresses = m.lists + op.addresses, *const row_out = m.lists + op.row_out;
  std::vector<float> in(static_cast<std::size_t>(op.features));
  for (i64 c = 0; c < op.features; ++c) in[static_cast<std::size_t>(c)] = place(m, op.in)[addresses[c]];
  for (i64 row = 0; row < op.rows; ++row) {
    const float* const value = m.values + op.values + row * op.value_row;
    vec sums{};
    i64 c = 0;
    for (; c + LANES <= op.features; c += LANES) sums += load(value + c) * load(in.data() + c);
    float total = sum(sums) + (op.bias < 0 ? 0.0f : m.values[op.bias + row]);
    for (; c < op.features; ++c) total += value[c] * in[static_cast<std::size_t>(c)];
    *place(m, op.out + row_out[row]) = op.relu ? where(total <= 0.0f, 0.0f, total) : total;
  }
}

namespace {

template <typename Number>
void load_rows(const load_inputs_row& op, Workspace& m, const Number* from) {
  for (i64 channel = 0; channel < op.channels; ++channel) {
    const float gain = m.constants[op.constants + 2 * channel], shift = m.constants[op.constants + 2 * channel + 1];
    for (i64 y = 0; y < op.height; ++y, from += op.width) {
      float* const out = place(m, op.out + channel * op.out_channel + y * op.out_row);
      for (i64 x = 0; x < op.width; ++x) out[x] = static_cast<float>(from[x]) * gain - shift;
    }
  }
}

}  // namespace

void load_inputs_single(const load_inputs_row& op, Workspace& m) {
  if (op.kind == kind_uint8)
    load_rows(op, m, static_cast<const std::uint8_t*>(m.inputs) + op.first);
  else if (op.kind == kind_int64)
    load_rows(op, m, static_cast<const i64*>(m.inputs) + op.first);
  else
    load_rows(op, m, static_cast<const float*>(m.inputs) + op.first);
}

void store_outputs_single(const store_outputs_row& op, Workspace& m) {
  for (i64 feature = 0; feature < op.rows; ++feature)
    m.outputs[op.first + feature] = place(m, op.in)[m.lists[op.addresses + feature]];
}

// Reads no activations where it takes running statistics.
void batch_statistics_single(const batch_statistics_row& op, Workspace& m) {
  batch_statistics(op, m, {0, 0, 0, op.rows});
}

}  // namespace lthfunc
