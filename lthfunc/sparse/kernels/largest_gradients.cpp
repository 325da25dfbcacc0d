// The weights of a layer that have the largest gradients, pruned ones among them: gradients of some rows are there at a
// time, since those of all would take the memory of the dense layer.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "dense_gradients.h"
#include "parallel.h"
#include "survivors.h"
#include "verify.h"

namespace lthfunc {
namespace {

// Gradients that are held at a time, unless one row has more: they stay in a second-level cache.
constexpr i64 HELD_GRADIENTS = 1 << 15;

// Rows whose gradients are held at a time.
i64 held_rows(const largest_gradients_row& op, i64 width) {
  return std::clamp<i64>(HELD_GRADIENTS / width / ROWS * ROWS, ROWS, (op.rows + ROWS - 1) / ROWS * ROWS);
}

void add_magnitudes(Largest& largest, float* row, i64 columns) {
  std::transform(row, row + columns, row, [](float x) { return std::fabs(x); });
  largest.add(row, columns);
}

// Of a linear layer.
void largest_across(const largest_gradients_row& op, Workspace& m) {
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
      for (i64 some = from * ROWS; some < std::min(to * ROWS, rows); some += ROWS) {
        const float* grad[ROWS];
        for (i64 r = 0; r < ROWS; ++r)
          grad[r] = reinterpret_cast<const float*>(m.activations + op.grad +
                                                   row_grad[std::min(first + some + r, op.rows - 1)]);
        dense_gradient_rows(inputs.data(), width, grad, op.grad_tile * LANES, m.examples, held.data() + some * width);
      }
    });
    for (i64 row = 0; row < rows; ++row) add_magnitudes(*m.largest, held.data() + row * width, op.columns);
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

}  // namespace

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
  if (!m.largest) throw std::invalid_argument("lthfunc: largest_gradients is no part of a step");
  if (op.across && op.groups == 1) return largest_across(op, m);
  const i64 each = std::clamp<i64>(HELD_GRADIENTS / op.columns, 1, op.rows);
  std::vector<float> held(static_cast<std::size_t>(each * op.columns));
  for (i64 first = 0; first < op.rows; first += each) {
    const i64 rows = std::min(each, op.rows - first);
    parallel_for(0, rows, 8, [&](i64 from, i64 to) {
      Workspace mine = m;
      mine.partials = nullptr;
      for (i64 row = from; row < to; ++row) {
        mine.gradients = held.data() + row * op.columns;
        weight_gradients(gradients_of(op, first + row), mine, {0, m.tiles, 0, 1});
      }
    });
    for (i64 row = 0; row < rows; ++row) add_magnitudes(*m.largest, held.data() + row * op.columns, op.columns);
  }
}

}  // namespace lthfunc
