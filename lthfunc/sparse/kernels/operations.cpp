// The products as operations of their own, for steps written in Python: on tiles (tiles, channels, height, width, 16).
// lthfunc/sparse/functional.py gives them gradients and names.
#include <algorithm>
#include <stdexcept>
#include <vector>

#include "execution.h"
#include "parallel.h"

namespace lthfunc {
namespace {

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("lthfunc: ") + what);
}

// The machine counts positions from one base: here, from one tensor to another.
i64 between(const Tiles& from, const Tiles& to) {
  return (reinterpret_cast<std::intptr_t>(to.memory) - reinterpret_cast<std::intptr_t>(from.memory)) / BYTES;
}

// How a layer's positions lie: stride between positions of the input, and whether they are the tiles (linear layers).
struct Strides {
  i64 y, x, across;
};
Strides strides_of(const Tiles& input, i64 stride_y, i64 stride_x, bool flat) {
  return {stride_y * input.width, flat ? input.tile() : stride_x, flat ? TILES_AT_ONCE : 0};
}

// Of a linear layer: an image of one position on both sides.
bool flat(const Tiles& a, const Tiles& b) { return a.plane() == 1 && b.plane() == 1; }

// Holds lists to what they index: rising starts of as many lists as outputs have channels, entries that are read from
// each position of a tile on, and which of `values` numbers each entry takes.
void check(const Lists& lists, const Tiles& input, Strides in, const Tiles& outputs, i64 values) {
  const auto& [starts, offsets, which] = lists;
  constexpr i64 most = i64{1} << 31;
  require(starts.count == outputs.channels + 1, "takes a start for each channel, and the last one's end");
  require(outputs.plane() > 0 && outputs.tile() < most && in.y >= 0 && in.x >= 0 && in.y < most && in.x < most,
          "sizes or strides out of range");
  require(starts.first[0] == 0 && std::is_sorted(starts.first, starts.first + starts.count) &&
              starts.first[outputs.channels] == offsets.count,
          "starts do not divide the offsets into lists");
  const i64 reach = (outputs.height - 1) * in.y + (in.across ? 0 : (outputs.width - 1) * in.x);
  require(std::all_of(
              offsets.first, offsets.first + offsets.count,
              [&](i32 offset) { return offset >= 0 && offset % BYTES == 0 && offset / BYTES + reach < input.tile(); }),
          "offsets reach outside a tile");
  require(which.first ? which.count == offsets.count && std::all_of(which.first, which.first + which.count,
                                                                    [&](i32 k) { return k >= 0 && k < values; })
                      : offsets.count <= values,
          "lists take values that are not there");
}

// One memory of lists, as the machine has them, that ends with where each channel of the outputs lies.
std::vector<i32> joined(const Lists& lists, const Tiles& outputs) {
  std::vector<i32> all;
  for (const auto& list : {lists.starts, lists.offsets, lists.which})
    all.insert(all.end(), list.first, list.first + list.count);
  for (i64 channel = 0; channel < outputs.channels; ++channel)
    all.push_back(static_cast<i32>(channel * outputs.plane()));
  return all;
}

Workspace workspace_of(const Tiles& tiles, const std::vector<i32>& lists) {
  Workspace workspace{};
  workspace.activations = reinterpret_cast<vec*>(tiles.memory);
  workspace.lists = lists.data();
  workspace.tiles = tiles.tiles;
  workspace.examples = tiles.tiles * LANES;
  return workspace;
}

}  // namespace

void layer_products(const Tiles& input, Vector<float> values, Vector<float> bias, const Lists& lists, i64 stride_y,
                    i64 stride_x, const Tiles& output) {
  const Strides in = strides_of(input, stride_y, stride_x, flat(input, output));
  check(lists, input, in, output, values.count);
  require(!bias.first || bias.count == output.channels, "takes a bias for each channel");
  const std::vector<i32> all = joined(lists, output);
  std::vector<float> numbers(values.first, values.first + values.count);
  numbers.insert(numbers.end(), bias.first, bias.first + bias.count);
  Workspace workspace = workspace_of(input, all);
  workspace.values = numbers.data();
  products_row row{};
  row.rows = output.channels;
  row.in_tile = input.tile();
  row.in_y = in.y;
  row.in_x = in.x;
  row.out = between(input, output);
  row.out_tile = output.tile();
  row.out_y = output.width;
  row.out_x = in.across ? output.tile() : 1;
  row.ny = output.height;
  row.nx = output.width;
  row.blocks = 1;
  row.offsets = lists.starts.count;
  row.which = lists.which.first ? row.offsets + lists.offsets.count : -1;
  row.row_out = static_cast<i64>(all.size()) - row.rows;
  row.bias = bias.first ? values.count : -1;
  row.limits = row.gate = row.codes = row.saved = row.b = row.sums = row.norm = -1;
  row.across = in.across;
  parallel_for(0, in.across ? row.rows : workspace.tiles, 1, [&](i64 from, i64 to) {
    Workspace mine = workspace;
    products(row, mine, in.across ? Part{0, workspace.tiles, from, to} : Part{from, to, 0, row.rows});
  });
}

void layer_gradients(const Tiles& input, const Tiles& grad, const Lists& lists, i64 stride_y, i64 stride_x,
                     float* gradients) {
  const Strides in = strides_of(input, stride_y, stride_x, flat(input, grad));
  check(lists, input, in, grad, lists.offsets.count);
  std::fill_n(gradients, lists.offsets.count, 0.0f);
  if (input.tiles == 0) return;
  const std::vector<i32> all = joined(lists, grad);
  Workspace workspace = workspace_of(input, all);
  workspace.gradients = gradients;
  weight_gradients_row row{};
  row.rows = grad.channels;
  row.in_tile = input.tile();
  row.in_y = in.y;
  row.in_x = in.x;
  row.grad = between(input, grad);
  row.grad_tile = grad.tile();
  row.grad_y = grad.width;
  row.grad_x = in.across ? grad.tile() : 1;
  row.ny = grad.height;
  row.nx = grad.width;
  row.blocks = 1;
  row.offsets = lists.starts.count;
  row.row_grad = static_cast<i64>(all.size()) - row.rows;
  row.bias = -1;
  row.across = in.across;
  parallel_for(0, row.rows, 1, [&](i64 from, i64 to) {
    Workspace mine = workspace;
    weight_gradients(row, mine, {0, workspace.tiles, from, to});
  });
}

}  // namespace lthfunc
