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

// Where a layer's weights begin among all values, how many survive, and how many of them remain in an exchange.
struct Layer {
  i64 first, count, kept;
};

// The layers of an exchange, one after the other in what is dropped and what grows.
std::vector<Layer> layers_of(const Tensor& layers, i64 values) {
  const i64* const rows = data<i64>("layers", layers, 0);
  require(layers.numel() % 3 == 0, "layers: three numbers for each");
  std::vector<Layer> found;
  for (i64 k = 0; k < layers.numel(); k += 3) {
    const Layer layer{rows[k], rows[k + 1], rows[k + 2]};
    require(layer.kept >= 0 && layer.kept <= layer.count && layer.first >= 0 && layer.count <= values - layer.first,
            "layers: out of range");
    found.push_back(layer);
  }
  return found;
}

void drop_smallest(const Tensor& values, const Tensor& places, const Tensor& layers, const Tensor& remaining,
                   const Tensor& numbers, const Tensor& dropped) {
  const float* const from = data<float>("values", values, 0);
  i64 all = 0, kept = 0;
  const std::vector<Layer> found = layers_of(layers, values.numel());
  for (const Layer& layer : found) all += layer.count, kept += layer.kept;
  const i64* at = data<i64>("places", places, all);
  i64 *stays = data<i64>("remaining", remaining, kept), *which = data<i64>("numbers", numbers, kept);
  i64* goes = data<i64>("dropped", dropped, all - kept);
  for (const Layer& layer : found) {
    drop(from + layer.first, at, layer.count, layer.first, layer.kept, stays, which, goes);
    at += layer.count, stays += layer.kept, which += layer.kept, goes += layer.count - layer.kept;
  }
}

// again: of each layer, how many come that were dropped.
void merge_places(const Tensor& remaining, const Tensor& numbers, const Tensor& dropped, const Tensor& coming,
                  const Tensor& layers, const Tensor& places, const Tensor& sources, const Tensor& again) {
  i64 all = 0, kept = 0;
  const std::vector<Layer> found = layers_of(layers, sources.numel());
  for (const Layer& layer : found) all += layer.count, kept += layer.kept;
  const i64 *stays = data<i64>("remaining", remaining, kept), *which = data<i64>("numbers", numbers, kept);
  require(coming.numel() == all - kept, "coming: as many places as are dropped");
  const i64 *goes = data<i64>("dropped", dropped, all - kept), *comes = data<i64>("coming", coming, all - kept);
  i64 *at = data<i64>("places", places, all), *from = data<i64>("sources", sources, 0);
  i64* counted = data<i64>("again", again, static_cast<i64>(found.size()));
  for (const Layer& layer : found) {
    const i64 others = layer.count - layer.kept;
    *counted++ = merge(stays, which, layer.kept, comes, others, goes, at, from + layer.first);
    stays += layer.kept, which += layer.kept, goes += others, comes += others, at += layer.count;
  }
}

void find_free_places(const Tensor& numbers, const Tensor& taken, const Tensor& places) {
  free_places(data<i64>("numbers", numbers, 0), numbers.numel(), data<i64>("taken", taken, 0), taken.numel(),
              data<i64>("places", places, numbers.numel()));
}

bool are_finite(const Tensor& numbers) { return all_finite(data<float>("numbers", numbers, 0), numbers.numel()); }

// Rows of numbers in the order of their sources, zero where there is none.
void move_numbers(const Tensor& numbers, const Tensor& sources, const Tensor& moved) {
  const i64 count = sources.numel(), rows = count ? moved.numel() / count : 0, had = rows ? numbers.numel() / rows : 0;
  require(moved.numel() == rows * count && numbers.numel() == rows * had, "takes rows of one number for each source");
  const float* const from = data<float>("numbers", numbers, 0);
  const i64* const at = data<i64>("sources", sources, 0);
  float* const to = data<float>("moved", moved, 0);
  require(std::all_of(at, at + count, [=](i64 each) { return each < had; }), "sources: no such number");
  if (!had) return std::fill_n(to, rows * count, 0.0f), void();
  for (i64 row = 0; row < rows; ++row)
    for (i64 k = 0; k < count; ++k) {
      const float number = from[row * had + std::max<i64>(at[k], 0)];  // no branch: which ones came anew is random
      to[row * count + k] = at[k] < 0 ? 0.0f : number;
    }
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

// lists: where each begins, then what each reads, and of transposed ones which survivors these are.
void make_matrix_lists(const Tensor& places, i64 rows, i64 columns, bool transposed, const Tensor& addresses, i64 block,
                       const Tensor& lists) {
  require(rows > 0 && columns > 0 && block > 0 && rows < MOST && columns < MOST, "sizes out of range");
  const i64 count = places.numel(), read = transposed ? rows : columns, blocks = (read + block - 1) / block;
  const i64 bounds = (transposed ? columns : rows) * blocks + 1;
  const i64* const at = data<i64>("addresses", addresses, read);
  require(count < MOST && std::all_of(
                              at, at + read, [](i64 each) { return each >= 0 && each < MOST / BYTES; }),
          "a list reaches further than 32 bits count");
  i32* const starts = data<i32>("lists", lists, bounds + (transposed ? 2 : 1) * count);
  i32* const offsets = starts + bounds;
  matrix_lists({data<i64>("places", places, 0), count, rows, columns}, transposed, at, block, blocks, starts, offsets,
               transposed ? offsets + count : nullptr);
}

}  // namespace
}  // namespace lthfunc

STABLE_TORCH_LIBRARY_FRAGMENT(lthfunc, library) {
  library.def("largest(Tensor scores, Tensor taken, Tensor(a!) found) -> ()");
  library.def(
      "drop_smallest(Tensor values, Tensor places, Tensor layers, Tensor(a!) remaining, Tensor(b!) numbers, "
      "Tensor(c!) dropped) -> ()");
  library.def(
      "merge_places(Tensor remaining, Tensor numbers, Tensor dropped, Tensor coming, Tensor layers, "
      "Tensor(a!) places, Tensor(b!) sources, Tensor(c!) again) -> ()");
  library.def("free_places(Tensor numbers, Tensor taken, Tensor(a!) places) -> ()");
  library.def("are_finite(Tensor numbers) -> bool");
  library.def(
      "largest_gradients(int program, int instruction, Tensor activations, int examples, Tensor taken, "
      "Tensor(a!) found) -> bool");
  library.def(
      "add_layer_gradients(int program, int instruction, Tensor activations, int examples, Tensor(a!) sums) -> ()");
  library.def("move_numbers(Tensor numbers, Tensor sources, Tensor(a!) moved) -> ()");
  library.def(
      "matrix_lists(Tensor places, int rows, int columns, bool transposed, Tensor addresses, int block, "
      "Tensor(a!) lists) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lthfunc, CPU, library) {
  library.impl("largest", TORCH_BOX(&lthfunc::find_largest));
  library.impl("drop_smallest", TORCH_BOX(&lthfunc::drop_smallest));
  library.impl("merge_places", TORCH_BOX(&lthfunc::merge_places));
  library.impl("free_places", TORCH_BOX(&lthfunc::find_free_places));
  library.impl("are_finite", TORCH_BOX(&lthfunc::are_finite));
  library.impl("largest_gradients", TORCH_BOX(&lthfunc::find_largest_gradients));
  library.impl("add_layer_gradients", TORCH_BOX(&lthfunc::add_layer_gradients));
  library.impl("move_numbers", TORCH_BOX(&lthfunc::move_numbers));
  library.impl("matrix_lists", TORCH_BOX(&lthfunc::make_matrix_lists));
}
