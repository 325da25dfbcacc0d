// The products as operations of their own, for steps written in Python: pure, on tensors of tiles
// (tiles, channels, height, width, 16). lthfunc/sparse/functional.py gives them gradients and names.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "machine.h"

namespace lthfunc {
namespace {

using at::Tensor;

vec* vectors(const Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.dim() == 5 && tensor.size(4) == LANES && tensor.is_contiguous(),
                    "lthfunc: takes contiguous tiles (tiles, channels, height, width, 16)");
  float* const memory = tensor.data_ptr<float>();
  TORCH_CHECK_VALUE(reinterpret_cast<std::uintptr_t>(memory) % sizeof(vec) == 0, "lthfunc: tiles are not aligned");
  return reinterpret_cast<vec*>(memory);
}

// The machine counts positions from one base: here, from one tensor to another.
i64 between(const vec* from, const vec* to) {
  return (reinterpret_cast<std::intptr_t>(to) - reinterpret_cast<std::intptr_t>(from)) / BYTES;
}

Workspace workspace_of(const Tensor& tiles) {
  Workspace workspace{};
  workspace.activations = vectors(tiles);
  workspace.tiles = tiles.size(0);
  workspace.examples = workspace.tiles * LANES;
  return workspace;
}

// How a layer's positions lie: stride between positions of the input, and whether they are the tiles (linear layers).
struct Strides {
  i64 y, x, across;
};
Strides strides_of(const Tensor& input, i64 stride_y, i64 stride_x, bool flat) {
  return {stride_y * input.size(3), flat ? input.stride(0) / LANES : stride_x, flat ? TILES_AT_ONCE : 0};
}

Tensor rows_of(const Tensor& tiles) {
  const i64 channel = tiles.size(2) * tiles.size(3);
  return at::arange(tiles.size(1), at::kInt).mul_(channel);
}

// Holds lists to what they index: rising starts of `rows` lists, entries that are read from each of ny × nx positions
// of a tile on, and which of `values` numbers each entry takes.
void check_lists(const Tensor& lists, i64 rows, i64 entries, const Tensor& input, Strides in, i64 ny, i64 nx,
                 const i32* which, i64 values) {
  constexpr i64 most = i64{1} << 31;
  TORCH_CHECK_VALUE(ny > 0 && nx > 0 && in.y >= 0 && in.x >= 0 && ny < most && nx < most && in.y < most && in.x < most,
                    "lthfunc: sizes or strides out of range");
  const i32 *const starts = lists.data_ptr<i32>(), *const offsets = starts + rows + 1;
  TORCH_CHECK_VALUE(starts[0] == 0 && std::is_sorted(starts, offsets) && starts[rows] == entries,
                    "lthfunc: starts do not divide the offsets into ", rows, " lists");
  const i64 room = input.size(1) * input.size(2) * input.size(3);
  const i64 reach = (ny - 1) * in.y + (in.across ? 0 : (nx - 1) * in.x);
  TORCH_CHECK_VALUE(
      std::all_of(offsets, offsets + entries,
                  [&](i32 offset) { return offset >= 0 && offset % BYTES == 0 && offset / BYTES + reach < room; }),
      "lthfunc: offsets reach outside a tile");
  TORCH_CHECK_VALUE(
      which ? std::all_of(which, which + entries, [&](i32 number) { return number >= 0 && number < values; })
            : entries <= values,
      "lthfunc: lists take values that are not there");
}

Tensor products_of(const Tensor& input, const Tensor& values, const std::optional<Tensor>& bias, const Tensor& starts,
                   const Tensor& offsets, const std::optional<Tensor>& which, i64 channels, i64 height, i64 width,
                   i64 stride_y, i64 stride_x) {
  TORCH_CHECK_VALUE(input.dim() == 5 && starts.numel() == channels + 1 && height > 0 && width > 0 && stride_y > 0 &&
                        stride_x > 0 && channels * height < (i64{1} << 31) / width &&
                        (!which || which->numel() == offsets.numel()) && (!bias || bias->numel() == channels),
                    "lthfunc: takes starts, offsets and biases of ", channels, " channels");
  const Tensor output = at::empty({input.size(0), channels, height, width, LANES}, input.options());
  // One memory of lists and one of values, as the machine has them; both are short beside the tiles.
  const Tensor lists = at::cat({starts, offsets, which ? *which : starts.slice(0, 0, 0), rows_of(output)});
  const Tensor numbers = bias ? at::cat({values, *bias}) : values.contiguous();
  Workspace workspace = workspace_of(input);
  workspace.lists = lists.data_ptr<i32>();
  workspace.values = numbers.data_ptr<float>();
  const bool flat = height * width == 1 && input.size(2) * input.size(3) == 1;
  const Strides in = strides_of(input, stride_y, stride_x, flat);
  check_lists(lists, channels, offsets.numel(), input, in, height, width,
              which ? workspace.lists + starts.numel() + offsets.numel() : nullptr, values.numel());
  const i64 tile = output.stride(0) / LANES;
  products_row row{};
  row.rows = channels;
  row.in_tile = input.stride(0) / LANES;
  row.in_y = in.y;
  row.in_x = in.x;
  row.out = between(workspace.activations, vectors(output));
  row.out_tile = tile;
  row.out_y = width;
  row.out_x = flat ? tile : 1;
  row.ny = height;
  row.nx = width;
  row.blocks = 1;
  row.offsets = starts.numel();
  row.which = which ? row.offsets + offsets.numel() : -1;
  row.row_out = lists.numel() - channels;
  row.bias = bias ? values.numel() : -1;
  row.limits = row.gate = row.codes = row.saved = row.b = -1;
  row.across = in.across;
  const auto execute = [&](i64 from, i64 to) {
    Workspace mine = workspace;
    products(row, mine, flat ? Part{0, workspace.tiles, from, to} : Part{from, to, 0, channels});
  };
  at::parallel_for(0, flat ? channels : workspace.tiles, 1, execute);
  return output;
}

Tensor weight_gradients_of(const Tensor& input, const Tensor& grad, const Tensor& starts, const Tensor& offsets,
                           i64 stride_y, i64 stride_x) {
  TORCH_CHECK_VALUE(input.dim() == 5 && grad.dim() == 5 && input.size(0) == grad.size(0) &&
                        starts.numel() == grad.size(1) + 1 && stride_y > 0 && stride_x > 0,
                    "lthfunc: takes as many tiles of inputs as of gradients, and their lists");
  const Tensor gradients = at::zeros({offsets.numel()}, input.options());
  const Tensor lists = at::cat({starts, offsets, rows_of(grad)});
  Workspace workspace = workspace_of(input);
  workspace.lists = lists.data_ptr<i32>();
  workspace.gradients = gradients.data_ptr<float>();
  const bool flat = grad.size(2) * grad.size(3) == 1 && input.size(2) * input.size(3) == 1;
  const Strides in = strides_of(input, stride_y, stride_x, flat);
  check_lists(lists, grad.size(1), offsets.numel(), input, in, grad.size(2), grad.size(3), nullptr, offsets.numel());
  if (workspace.tiles == 0) return gradients;
  weight_gradients_row row{};
  row.rows = grad.size(1);
  row.in_tile = input.stride(0) / LANES;
  row.in_y = in.y;
  row.in_x = in.x;
  row.grad = between(workspace.activations, vectors(grad));
  row.grad_tile = grad.stride(0) / LANES;
  row.grad_y = grad.size(3);
  row.grad_x = flat ? row.grad_tile : 1;
  row.ny = grad.size(2);
  row.nx = grad.size(3);
  row.blocks = 1;
  row.offsets = starts.numel();
  row.row_grad = lists.numel() - row.rows;
  row.bias = -1;
  row.across = in.across;
  at::parallel_for(0, row.rows, 1, [&](i64 from, i64 to) {
    Workspace mine = workspace;
    weight_gradients(row, mine, {0, workspace.tiles, from, to});
  });
  return gradients;
}

}  // namespace
}  // namespace lthfunc

TORCH_LIBRARY_FRAGMENT(lthfunc, library) {
  library.def(
      "products(Tensor input, Tensor values, Tensor? bias, Tensor starts, Tensor offsets, Tensor? which, "
      "SymInt channels, SymInt height, SymInt width, int stride_y, int stride_x) -> Tensor");
  library.def(
      "weight_gradients(Tensor input, Tensor grad, Tensor starts, Tensor offsets, int stride_y, int stride_x) -> "
      "Tensor");
}

TORCH_LIBRARY_IMPL(lthfunc, CPU, library) {
  library.impl("products",
               [](const at::Tensor& input, const at::Tensor& values, const std::optional<at::Tensor>& bias,
                  const at::Tensor& starts, const at::Tensor& offsets, const std::optional<at::Tensor>& which,
                  int64_t channels, int64_t height, int64_t width, int64_t stride_y, int64_t stride_x) {
                 return lthfunc::products_of(input, values, bias, starts, offsets, which, channels, height, width,
                                             stride_y, stride_x);
               });
  library.impl("weight_gradients", lthfunc::weight_gradients_of);
}
