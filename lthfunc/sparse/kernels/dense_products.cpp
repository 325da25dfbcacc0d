// Linear layers of high density as dense products: survivors are spread out among zeros first, and picked out of the
// weight's gradient afterwards.
//
// A list costs a load for each survivor, and its gradient a sum over lanes, some eight operations for four
// multiply-adds. A dense product needs none of that (lowerings/dense.py says from which density on it pays).
#include <algorithm>
#include <vector>

#include "bitmasks.h"
#include "dense_gradients.h"

namespace lthfunc {
namespace {

constexpr int TILES = COLUMNS;

// Inputs from … to of a product.
struct Inputs {
  i64 from, to;
};

// Rows of outputs on some tiles: each input that is loaded serves all rows, each weight all tiles. Sums of some inputs
// are added to those of the inputs before.
template <int Rows, int Tiles>
void some(const dense_products_row& op, const Workspace& m, Inputs inputs, i64 row, i64 tile) {
  const vec* const in = m.activations + op.in + tile * op.in_tile;
  const i32 *const addresses = m.lists + op.addresses, *const row_out = m.lists + op.row_out + row;
  const float* const values = weights_of(op, m);
  const bool again = op.accumulate || inputs.from > 0, last = inputs.to == op.features;
  vec* const out = m.activations + op.out + tile * op.out_tile;
  vec sum[Rows][Tiles];
  const float* value[Rows];
  LTHFUNC_UNROLL
  for (int r = 0; r < Rows; ++r) {
    value[r] = values + (row + r) * op.value_row;
    const vec bias = broadcast(op.bias < 0 ? 0.0f : m.values[op.bias + row + r]);
    LTHFUNC_UNROLL
    for (int t = 0; t < Tiles; ++t) sum[r][t] = again ? out[row_out[r] + t * op.out_tile] : bias;
  }
  for (i64 c = inputs.from; c < inputs.to; ++c) {
    const vec* const place = in + addresses[c];
    vec x[Tiles];
    LTHFUNC_UNROLL
    for (int t = 0; t < Tiles; ++t) x[t] = place[t * op.in_tile];
    LTHFUNC_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const vec weight = broadcast(value[r][c * op.value_step]);
      LTHFUNC_UNROLL
      for (int t = 0; t < Tiles; ++t) sum[r][t] += weight * x[t];
    }
  }
  LTHFUNC_UNROLL
  for (int r = 0; r < Rows; ++r) {
    LTHFUNC_UNROLL
    for (int t = 0; t < Tiles; ++t) {
      const i64 at = row_out[r] + t * op.out_tile;
      vec total = sum[r][t];
      if (last && op.relu) total = rectified(total);
      if (last && op.gate >= 0) total = passing(total, m.activations[op.gate + tile * op.out_tile + at]);
      out[at] = total;
    }
  }
}

template <int Rows>
void some_rows(const dense_products_row& op, const Workspace& m, Inputs inputs, i64 row) {
  i64 tile = 0;
  for (; tile + TILES <= m.tiles; tile += TILES) some<Rows, TILES>(op, m, inputs, row, tile);
  for (; tile < m.tiles; ++tile) some<Rows, 1>(op, m, inputs, row, tile);
}

void rows_of(const dense_products_row& op, const Workspace& m, Inputs inputs, i64 row, i64 rows) {
  for (; row + ROWS <= rows; row += ROWS) some_rows<ROWS>(op, m, inputs, row);
  for (; row < rows; ++row) some_rows<1>(op, m, inputs, row);
}

// Of a transpose, rows and inputs that are taken together: an input's weights for neighbouring rows lie side by side,
// those for the next input a whole row of weights behind, so that what is fetched should serve all rows near it.
constexpr i64 BLOCK_ROWS = 16 * ROWS, BLOCK_INPUTS = 64;

}  // namespace

// starts: where each row's survivors begin among the values; bits: `words` masks of 16 a row; out: as many vectors.
void verify(const spread_weights_row& op, Verifier& v) {
  const i64 most = v.survivors(op.starts, op.bits, op.words, op.rows, false);
  v.values("values", op.values, {{most, 1}});
  v.activations("out", op.out, {{op.rows * op.words, 1}});
}

void spread_weights(const spread_weights_row& op, Workspace& m, Part part) {
  float* const out = reinterpret_cast<float*>(m.activations + op.out);
  for (i64 row = part.row; row < part.rows; ++row) {
    const float* from = m.values + op.values + m.lists[op.starts + row];
    for (i64 word = row * op.words; word < (row + 1) * op.words; ++word) {
      const auto mask = static_cast<unsigned>(m.lists[op.bits + word]);
      spread(from, mask, out + word * LANES);
      from += __builtin_popcount(mask);
    }
  }
}

// in, out: one vector for each feature, anywhere in a tile, apart; the gate lies as out does. Weights: rows `value_row`
// floats apart, `value_step` from an input's to the next one's.
void verify(const dense_products_row& op, Verifier& v) {
  const Range rows = v.list("row_out", op.row_out, op.rows);
  v.activations("in", op.in, {{v.tiles, op.in_tile}}, v.list("addresses", op.addresses, op.features));
  v.activations("out", op.out, {{v.tiles, op.out_tile}}, rows);
  if (op.gate >= 0) v.activations("gate", op.gate, {{v.tiles, op.out_tile}}, rows);
  verify_weights(op, v, {{op.rows, op.value_row}, {op.features, op.value_step}});
  if (op.bias >= 0) v.values("bias", op.bias, {{op.rows, 1}});
}

void dense_products(const dense_products_row& op, Workspace& m, Part part) {
  if (op.value_step == 1) return rows_of(op, m, {0, op.features}, part.row, part.rows);
  for (i64 row = part.row; row < part.rows; row += BLOCK_ROWS)
    for (i64 c = 0; c < op.features; c += BLOCK_INPUTS)
      rows_of(op, m, {c, std::min(c + BLOCK_INPUTS, op.features)}, row, std::min(row + BLOCK_ROWS, part.rows));
}

// out: floats, `width` an example, of which each row (strip) writes 16, those behind the last feature as zeros.
void verify(const by_example_row& op, Verifier& v) {
  const Range addresses = v.list("addresses", op.addresses, op.features);
  if (op.features > 0) v.activations("in", op.in, {{v.tiles, op.in_tile}}, addresses);
  v.floats("out", op.out, {{v.tiles * LANES, op.width}, {op.rows * LANES, 1}});
}

void by_example(const by_example_row& op, Workspace& m, Part part) {
  const i32* const addresses = m.lists + op.addresses;
  float* const out = reinterpret_cast<float*>(m.activations + op.out);
  for (i64 strip = part.row; strip < part.rows; ++strip) {
    for (i64 tile = 0; tile < m.tiles; ++tile) {
      const vec* const in = m.activations + op.in + tile * op.in_tile;
      const auto feature = [&](i64 f) { return f < op.features ? in[addresses[f]] : vec{}; };
      transpose_strip(feature, strip, out + tile * LANES * op.width, op.width);
    }
  }
}

// in: floats, `width` (whole strips) an example. bits, starts: as above; gradients: of survivors alone, side by side.
void verify(const dense_weight_gradients_row& op, Verifier& v) {
  v.require(op.width > 0 && op.width % STRIP == 0 && op.features <= op.width && op.words * LANES <= op.width,
            "width: whole strips that hold all features");
  v.floats("in", op.in, {{v.tiles * LANES, op.width}, {op.width, 1}});
  v.activations("grad", op.grad, {{v.tiles, op.grad_tile}}, v.list("row_grad", op.row_grad, op.rows));
  v.gradients("gradients", op.gradients, v.survivors(op.starts, op.bits, op.words, op.rows));
  if (op.bias >= 0) v.gradients("bias", op.bias, op.rows);
}

void dense_weight_gradients(const dense_weight_gradients_row& op, Workspace& m, Part part) {
  const float* const x = reinterpret_cast<const float*>(m.activations + op.in);
  const i32* const starts = m.lists + op.starts;
  const i32* const bits = m.lists + op.bits;
  const i32* const row_grad = m.lists + op.row_grad;
  std::vector<float> whole(static_cast<std::size_t>(ROWS * op.width));
  for (i64 row = part.row; row < part.rows; row += ROWS) {
    dense_gradient_rows(x, op.width, m.activations + op.grad, row_grad, row, part.rows, op.grad_tile, m.examples,
                        whole.data());
    for (i64 r = 0; r < std::min<i64>(ROWS, part.rows - row); ++r) {
      const float* const from = whole.data() + r * op.width;
      float* to = m.gradients + op.gradients + starts[row + r];
      if (starts[row + r + 1] - starts[row + r] == op.features) {
        std::copy_n(from, op.features, to);
      } else {
        pick_row(from, bits + (row + r) * op.words, op.words, to, false);
      }
      if (op.bias < 0) continue;
      vec total{};
      for (i64 tile = 0; tile < m.tiles; ++tile)
        total += m.activations[op.grad + row_grad[row + r] + tile * op.grad_tile];
      m.gradients[op.bias + row + r] = sum(total);
    }
  }
}

}  // namespace lthfunc
