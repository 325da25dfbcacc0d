// The operators lthfunc::… of PyTorch that find out which weights survive. Their results have memory already.
#include <algorithm>

#include "execution.h"
#include "parallel.h"
#include "survivors.h"
#include "tensors.h"

namespace lthfunc {
namespace {

constexpr i64 MOST = i64{1} << 31;

void find_largest(const Tensor& scores, const Tensor& taken, const Tensor& found) {
  Largest largest(scores.numel(), data<i64>("taken", taken, 0), taken.numel(), found.numel());
  largest.add(data<float>("scores", scores, 0), scores.numel());
  std::copy_n(largest.places(), found.numel(), data<i64>("found", found, 0));
}

void drop_smallest(const Tensor& values, const Tensor& places, i64 first, const Tensor& remaining,
                   const Tensor& numbers) {
  const i64 count = values.numel(), kept = remaining.numel();
  drop(data<float>("values", values, 0), data<i64>("places", places, count), count, first, kept,
       data<i64>("remaining", remaining, 0), data<i64>("numbers", numbers, kept));
}

i64 merge_places(const Tensor& remaining, const Tensor& numbers, const Tensor& coming, const Tensor& before,
                 const Tensor& places, const Tensor& sources) {
  const i64 count = remaining.numel(), comings = coming.numel(), all = count + comings;
  return merge(data<i64>("remaining", remaining, 0), data<i64>("numbers", numbers, count), count,
               data<i64>("coming", coming, 0), comings, data<i64>("before", before, all),
               data<i64>("places", places, all), data<i64>("sources", sources, all));
}

// Rows of numbers in the order of their sources, zero where there is none.
void move_numbers(const Tensor& numbers, const Tensor& sources, const Tensor& moved) {
  const i64 count = sources.numel(), rows = count ? moved.numel() / count : 0, had = rows ? numbers.numel() / rows : 0;
  require(moved.numel() == rows * count && numbers.numel() == rows * had, "takes rows of one number for each source");
  const float* const from = data<float>("numbers", numbers, 0);
  const i64* const at = data<i64>("sources", sources, 0);
  float* const to = data<float>("moved", moved, 0);
  require(std::all_of(at, at + count, [=](i64 each) { return each < had; }), "sources: no such number");
  for (i64 row = 0; row < rows; ++row)
    for (i64 k = 0; k < count; ++k) to[row * count + k] = at[k] < 0 ? 0.0f : from[row * had + at[k]];
}

// An instruction beside a program that takes the gradients of all of a layer's weights.
struct LayerGradients {
  std::shared_ptr<const Program> program;
  i64 instruction, size;

  LayerGradients(i64 number, i64 which) : program(program_of(number)), instruction(which), size(0) {
    if (which >= 0 && which < program->count()) size = layer_size(program->row(which));
    require(size > 0, "no such instruction");
  }

  // On the activations of another program's step. largest: keeps them; sums: to which they are added; one of both.
  void take(const Tensor& activations, i64 examples, Largest* largest, float* sums) const {
    require(examples > 0 && examples <= program->batch, "takes 1 to ", program->batch, " examples");
    Workspace workspace{};
    workspace.activations = vectors("activations", activations, program->vectors);
    workspace.lists = program->lists.data();
    workspace.examples = examples;
    workspace.tiles = tiles_of(examples);
    workspace.largest = largest;
    workspace.sums = sums;
    run_step(*program, instruction, instruction + 1, workspace, has_threads());
  }
};

// False where a gradient is NaN.
bool find_largest_gradients(i64 number, i64 instruction, const Tensor& activations, i64 examples, const Tensor& taken,
                            const Tensor& found) {
  const LayerGradients layer(number, instruction);
  Largest largest(layer.size, data<i64>("taken", taken, 0), taken.numel(), found.numel());
  layer.take(activations, examples, &largest, nullptr);
  if (!largest.are_numbers()) return false;
  std::copy_n(largest.places(), found.numel(), data<i64>("found", found, 0));
  return true;
}

// To those of other operations of the same layer.
void add_layer_gradients(i64 number, i64 instruction, const Tensor& activations, i64 examples, const Tensor& sums) {
  const LayerGradients layer(number, instruction);
  require(sums.numel() == layer.size, "takes a sum for each weight");
  layer.take(activations, examples, nullptr, data<float>("sums", sums, layer.size));
}

void make_matrix_lists(const Tensor& places, i64 rows, i64 columns, bool transposed, const Tensor& addresses, i64 block,
                       const Tensor& starts, const Tensor& offsets, const Maybe& which) {
  require(rows > 0 && columns > 0 && block > 0 && rows < MOST && columns < MOST, "sizes out of range");
  const i64 count = places.numel(), read = transposed ? rows : columns, blocks = (read + block - 1) / block;
  const i64* const at = data<i64>("addresses", addresses, read);
  require(count < MOST && std::all_of(
                              at, at + read, [](i64 each) { return each >= 0 && each < MOST / BYTES; }),
          "a list reaches further than 32 bits count");
  matrix_lists({data<i64>("places", places, 0), count, rows, columns}, transposed, at, block, blocks,
               data<i32>("starts", starts, (transposed ? columns : rows) * blocks + 1),
               data<i32>("offsets", offsets, count), which ? data<i32>("which", *which, count) : nullptr);
}

}  // namespace
}  // namespace lthfunc

STABLE_TORCH_LIBRARY_FRAGMENT(lthfunc, library) {
  library.def("largest(Tensor scores, Tensor taken, Tensor(a!) found) -> ()");
  library.def("drop_smallest(Tensor values, Tensor places, int first, Tensor(a!) remaining, Tensor(b!) numbers) -> ()");
  library.def(
      "merge_places(Tensor remaining, Tensor numbers, Tensor coming, Tensor before, Tensor(a!) places, "
      "Tensor(b!) sources) -> int");
  library.def(
      "largest_gradients(int program, int instruction, Tensor activations, int examples, Tensor taken, "
      "Tensor(a!) found) -> bool");
  library.def(
      "add_layer_gradients(int program, int instruction, Tensor activations, int examples, Tensor(a!) sums) -> ()");
  library.def("move_numbers(Tensor numbers, Tensor sources, Tensor(a!) moved) -> ()");
  library.def(
      "matrix_lists(Tensor places, int rows, int columns, bool transposed, Tensor addresses, int block, "
      "Tensor(a!) starts, Tensor(b!) offsets, Tensor(c!)? which) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lthfunc, CPU, library) {
  library.impl("largest", TORCH_BOX(&lthfunc::find_largest));
  library.impl("drop_smallest", TORCH_BOX(&lthfunc::drop_smallest));
  library.impl("merge_places", TORCH_BOX(&lthfunc::merge_places));
  library.impl("largest_gradients", TORCH_BOX(&lthfunc::find_largest_gradients));
  library.impl("add_layer_gradients", TORCH_BOX(&lthfunc::add_layer_gradients));
  library.impl("move_numbers", TORCH_BOX(&lthfunc::move_numbers));
  library.impl("matrix_lists", TORCH_BOX(&lthfunc::make_matrix_lists));
}
