// The gradients of all weights of a layer, pruned ones among them: those of some rows are there at a time, since those
// of all would take the memory of the dense layer. The largest are kept, or all are added to others of a shared layer.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "dense_gradients.h"
#include "parallel.h"
#include "survivors.h"
#include "tokens.h"
#include "verify.h"

namespace lthfunc {
namespace {

// Gradients that are held at a time, unless one row has more: they stay in a second-level cache.
constexpr i64 HELD_GRADIENTS = 1 << 15;

// Rows whose gradients are held at a time.
i64 held_rows(const largest_gradients_row& op, i64 width) {
  return std::clamp<i64>(HELD_GRADIENTS / width / ROWS * ROWS, ROWS, (op.rows + ROWS - 1) / ROWS * ROWS);
}

void check_whole(const Workspace& m) {
  if (!m.largest && !m.sums) throw std::invalid_argument("lthfunc: gradients of whole layers are no part of a step");
}

// Hands on gradients of the weights from `first` on: their magnitudes, or the gradients themselves to the layer's sums.
void hand_on(const Workspace& m, i64 first, float* gradients, i64 count) {
  if (!m.largest) {
    std::transform(gradients, gradients + count, m.sums + first, m.sums + first, std::plus<float>());
    return;
  }
  std::transform(gradients, gradients + count, gradients, [](float x) { return std::fabs(x); });
  m.largest->add(gradients, count);
}

// Of a linear layer.
void largest_across(const largest_gradients_row& op, Workspace& m) {
  check_whole(m);
  const i32 *const offsets = m.lists + op.offsets, *const row_grad = m.lists + op.row_grad;
  const i64 width = (op.columns + STRIP - 1) / STRIP * STRIP, step = held_rows(op, width);
  std::vector<float> inputs(static_cast<std::size_t>(m.tiles * LANES * width));
  std::vector<float> held(static_cast<std::size_t>(step * width));
  parallel_for(0, width / LANES, 8, [&](i64 from, i64 to) {
    for (i64 strip = from; strip < to; ++strip)
      for (i64 tile = 0; tile < m.tiles; ++tile) {
        const vec* const in = m.activations + op.in + tile * op.in_tile;
        const auto feature = [&](i64 f) { return f < op.columns ? behind(in, offsets[f]) : vec{}; };
        transpose_strip(feature, strip, inputs.data() + tile * LANES * width, width);
      }
  });
  for (i64 first = 0; first < op.rows; first += step) {
    const i64 rows = std::min(step, op.rows - first);
    parallel_for(0, (rows + ROWS - 1) / ROWS, 1, [&](i64 from, i64 to) {
      for (i64 some = from * ROWS; some < std::min(to * ROWS, rows); some += ROWS)
        dense_gradient_rows(inputs.data(), width, m.activations + op.grad, row_grad, first + some, op.rows,
                            op.grad_tile, m.examples, held.data() + some * width);
    });
    for (i64 row = 0; row < rows; ++row) hand_on(m, (first + row) * op.columns, held.data() + row * width, op.columns);
  }
}

// write(row, workspace): writes a row's gradients to where those of that workspace begin.
template <typename Function>
void each_row(i64 rows, i64 columns, Workspace& m, Function write) {
  check_whole(m);
  const i64 each = std::clamp<i64>(HELD_GRADIENTS / columns, 1, rows);
  std::vector<float> held(static_cast<std::size_t>(each * columns));
  for (i64 first = 0; first < rows; first += each) {
    const i64 some = std::min(each, rows - first);
    parallel_for(0, some, 8, [&](i64 from, i64 to) {
      Workspace mine = m;
      mine.partials = nullptr;
      for (i64 row = from; row < to; ++row) {
        mine.gradients = held.data() + row * columns;
        write(first + row, mine);
      }
    });
    hand_on(m, first * columns, held.data(), some * columns);
  }
}

// The gradients of one row, all of whose weights are on its list.
weight_gradients_row gradients_of(const largest_gradients_row& op, i64 row) {
  weight_gradients_row one{};
  one.rows = one.blocks = 1;
  one.in = op.in, one.in_tile = op.in_tile, one.in_y = op.in_y, one.in_x = op.in_x;
  one.grad = op.grad, one.grad_tile = op.grad_tile, one.grad_y = op.grad_y, one.grad_x = op.grad_x;
  one.ny = op.ny, one.nx = op.nx, one.across = op.across;
  one.starts = op.starts;
  one.offsets = op.offsets + row / (op.rows / op.groups) * op.columns;
  one.row_grad = op.row_grad + row;
  one.bias = -1;
  return one;
}

// Where each row of a table was read, in the order in which embedding_gradient adds: of row r from starts[r] on.
struct Readers {
  std::vector<i64> starts, at;

  Readers(const largest_embedding_gradients_row& op, const Workspace& m)
      : starts(static_cast<std::size_t>(op.rows + 1)), at(static_cast<std::size_t>(m.examples * op.places)) {
    each(op, m, [&](i64 token, i64) { ++starts[static_cast<std::size_t>(token) + 1]; });
    for (std::size_t row = 1; row < starts.size(); ++row) starts[row] += starts[row - 1];
    std::vector<i64> next(starts.begin(), starts.end() - 1);
    each(op, m,
         [&](i64 token, i64 place) { at[static_cast<std::size_t>(next[static_cast<std::size_t>(token)]++)] = place; });
  }

  // function(token, number of the place) for all but padding: (tile · places + place) · LANES + lane.
  template <typename Function>
  void each(const largest_embedding_gradients_row& op, const Workspace& m, Function function) {
    for (i64 tile = 0; tile < m.tiles; ++tile) {
      const i64 examples = std::min<i64>(LANES, m.examples - tile * LANES);
      for (i64 place = 0; place < op.places; ++place) {
        const vec tokens = m.activations[op.tokens + tile * op.tokens_tile + place];
        for (i64 lane = 0; lane < examples; ++lane) {
          const i64 token = row_of(tokens[lane], op.rows);
          if (token != op.padding) function(token, (tile * op.places + place) * LANES + lane);
        }
      }
    }
  }
};

}  // namespace

i64 layer_size(const i64* row) {
  switch (head(row).opcode) {
    case op_largest_gradients: return head(row).rows * reinterpret_cast<const largest_gradients_row*>(row)->columns;
    case op_largest_embedding_gradients:
      return head(row).rows * reinterpret_cast<const largest_embedding_gradients_row*>(row)->channels;
    case op_largest_number_gradients: return head(row).rows;
    default: return 0;
  }
}

// in, grad: as those of weight_gradients. starts: of the list of all columns; offsets: of each group's.
void verify(const largest_gradients_row& op, Verifier& v) {
  v.require(op.columns > 0 && op.groups > 0 && op.rows % op.groups == 0, "columns and groups: positive, even groups");
  v.require(v.starts("starts", op.starts, 2) == op.columns, "starts: of one list of all columns");
  const Range offsets = v.offsets("offsets", op.offsets, op.groups * op.columns);
  const Range rows = v.list("row_grad", op.row_grad, op.rows);
  const i64 ny = op.across ? 1 : op.ny, nx = op.across ? 1 : op.nx;
  v.activations("in", op.in, {{v.tiles, op.in_tile}, {ny, op.in_y}, {nx, op.in_x}}, offsets);
  v.activations("grad", op.grad, {{v.tiles, op.grad_tile}, {ny, op.grad_y}, {nx, op.grad_x}}, rows);
}

void largest_gradients(const largest_gradients_row& op, Workspace& m, Part) {
  if (op.across && op.groups == 1) return largest_across(op, m);
  each_row(op.rows, op.columns, m,
           [&](i64 row, Workspace& mine) { weight_gradients(gradients_of(op, row), mine, {0, m.tiles, 0, 1}); });
}

// tokens, grad: as those of embedding_gradient; a row is one of the table.
void verify(const largest_embedding_gradients_row& op, Verifier& v) {
  v.require(op.rows <= 1 << 24 && op.channels > 0, "vocabulary and channels: out of range");
  v.activations("tokens", op.tokens, {{v.tiles, op.tokens_tile}, {op.places, 1}});
  v.activations("grad", op.grad, {{v.tiles, op.grad_tile}, {op.channels, op.grad_channel}, {op.places, 1}});
}

void largest_embedding_gradients(const largest_embedding_gradients_row& op, Workspace& m, Part) {
  const Readers readers(op, m);
  each_row(op.rows, op.channels, m, [&](i64 row, Workspace& mine) {
    std::fill_n(mine.gradients, op.channels, 0.0f);
    const std::size_t token = static_cast<std::size_t>(row);
    for (i64 k = readers.starts[token]; k < readers.starts[token + 1]; ++k) {
      const i64 at = readers.at[static_cast<std::size_t>(k)], lane = at % LANES, place = at / LANES;
      const vec* const grad = m.activations + op.grad + place / op.places * op.grad_tile + place % op.places;
      for (i64 channel = 0; channel < op.channels; ++channel)
        mine.gradients[channel] += grad[channel * op.grad_channel][lane];
    }
  });
}

// grad: of a number for each row, which all examples share, at an address of each tile.
void verify(const largest_number_gradients_row& op, Verifier& v) {
  v.activations("grad", op.grad, {{v.tiles, op.grad_tile}}, v.list("addresses", op.addresses, op.rows));
}

void largest_number_gradients(const largest_number_gradients_row& op, Workspace& m, Part) {
  each_row(op.rows, 1, m, [&](i64 row, Workspace& mine) {
    number_gradients_row one{};
    one.rows = one.ny = one.nx = 1;
    one.grad = op.grad, one.grad_tile = op.grad_tile, one.addresses = op.addresses + row;
    number_gradients(one, mine, {0, m.tiles, 0, 1});
  });
}

}  // namespace lthfunc
