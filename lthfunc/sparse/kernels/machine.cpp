// The machine: takes the instructions of a program in turn, for one step or many, in one call from Python.
//
// Instructions next to each other that never mix examples run tile by tile, so that what one has written is still in
// a cache when the next reads it; threads share the tiles. The others are split by rows. Sums over tiles are added up
// in one order, so results don't depend on the number of threads.
#include "machine.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <vector>

#include "single.h"

namespace lthfunc {
namespace {

using at::Tensor;
using Kernel = void (*)(const i64*, Workspace&, Part);

// How an instruction may be split; the column `split` of every row.
enum Split : i64 {
  by_rows = 0,
  by_tiles = 1,
  sums = 2,  // by tiles as well, but it adds up gradients over all of them
  whole = 3,
};

constexpr Kernel kernels[] = {
#define INSTRUCTION(name, ...)                                        \
  [](const i64* row, Workspace& workspace, Part part) {               \
    name(*reinterpret_cast<const name##_row*>(row), workspace, part); \
  },
#include "instructions.def"
#undef INSTRUCTION
};

// The beginning of every row. work: about how many vectors the instruction touches.
struct Row {
  i64 opcode, split, rows, work;
};
const Row& head(const i64* row) { return *reinterpret_cast<const Row*>(row); }

// Vectors from which a second thread is worth waking: some 10 µs of work.
constexpr i64 WORTH_A_THREAD = 30'000;

void execute(const i64* row, Workspace& workspace, Part part) { kernels[head(row).opcode](row, workspace, part); }

void run_rows(const i64* row, Workspace& workspace, bool threads) {
  const i64 rows = head(row).rows;
  if (!threads || head(row).split == whole || head(row).work < WORTH_A_THREAD)
    return execute(row, workspace, {0, workspace.tiles, 0, rows});
  at::parallel_for(0, rows, 1, [&](i64 from, i64 to) { execute(row, workspace, {0, workspace.tiles, from, to}); });
}

// The tiles' own sums, added up in the order of the tiles: what one thread would have done, tile after tile.
void add_up(const i64* row, const Workspace& workspace) {
  const auto add = [&](i64 first, i64 count) {
    at::parallel_for(0, count, 4096, [&](i64 from, i64 to) {
      float* const total = workspace.gradients + first;
      for (i64 tile = 0; tile < workspace.tiles; ++tile) {
        const float* const part = workspace.partials + tile * workspace.numbers + first;
        for (i64 k = from; k < to; ++k) total[k] = tile ? total[k] + part[k] : part[k];
      }
    });
  };
  if (head(row).opcode == op_weight_gradients) {
    const auto& op = *reinterpret_cast<const weight_gradients_row*>(row);
    add(op.gradients, workspace.lists[op.starts + op.rows * op.blocks]);
    if (op.bias >= 0) add(op.bias, op.rows);
  } else if (head(row).opcode == op_dense_convolution_gradients) {
    const auto& op = *reinterpret_cast<const dense_convolution_gradients_row*>(row);
    add(op.gradients, workspace.lists[op.starts + op.rows]);
    if (op.bias >= 0) add(op.bias, op.rows);
  } else {
    const auto& op = *reinterpret_cast<const group_normalise_gradient_row*>(row);
    if (op.weight >= 0) add(op.weight, op.rows * op.channels);
    if (op.bias >= 0) add(op.bias, op.rows * op.channels);
  }
}

void run_tiles(const i64* program, i64 width, i64 begin, i64 end, Workspace& workspace, bool threads) {
  i64 work = 0;
  for (i64 k = begin; k < end; ++k) work += head(program + k * width).work;
  threads = threads && work >= WORTH_A_THREAD;
  const auto tiles = [&](i64 from, i64 to) {
    Workspace mine = workspace;
    if (!threads) mine.partials = nullptr;
    for (i64 tile = from; tile < to; ++tile) {
      if (threads) mine.gradients = workspace.partials + tile * workspace.numbers;
      for (i64 k = begin; k < end; ++k) {
        const i64* const row = program + k * width;
        execute(row, mine, {tile, tile + 1, 0, head(row).rows});
      }
    }
  };
  if (!threads) return tiles(0, workspace.tiles);
  TORCH_CHECK(workspace.partials || !workspace.gradients, "lthfunc: several threads need partial gradients");
  at::parallel_for(0, workspace.tiles, 1, tiles);
  for (i64 k = begin; k < end; ++k)
    if (head(program + k * width).split == sums) add_up(program + k * width, workspace);
}

void run_step(const i64* program, i64 width, i64 begin, i64 end, Workspace& workspace) {
  const bool threads = at::get_num_threads() > 1;
  const auto tilewise = [&](i64 k) {
    const i64 split = head(program + k * width).split;
    return split == by_tiles || split == sums;
  };
  for (i64 k = begin; k < end;) {
    if (!tilewise(k)) {
      run_rows(program + k++ * width, workspace, threads);
      continue;
    }
    const i64 first = k;
    while (k < end && tilewise(k)) ++k;
    run_tiles(program, width, first, k, workspace, threads);
  }
}

template <typename T>
T* data(const Tensor& tensor) {
  TORCH_CHECK(tensor.is_contiguous(), "lthfunc: memory must be contiguous");
  return tensor.numel() ? tensor.data_ptr<T>() : nullptr;
}

bool reads_targets(const Tensor& program, i64 begin, i64 end) {
  for (i64 k = begin; k < end; ++k)
    if (head(program.data_ptr<i64>() + k * program.size(1)).opcode == op_cross_entropy) return true;
  return false;
}

const char* slot(const Tensor& slots, i64 number) {
  if (!slots.numel()) return nullptr;
  return static_cast<const char*>(slots.data_ptr()) + number * slots.stride(0) * slots.element_size();
}

void run(const Tensor& program, i64 begin, i64 end, const Tensor& lists, const Tensor& activations,
         const Tensor& values, const Tensor& gradients, const Tensor& partials, const Tensor& constants,
         const Tensor& first, const Tensor& second, const Tensor& clock, const Tensor& totals, const Tensor& schedule,
         const Tensor& inputs, const Tensor& targets, const Tensor& outputs, i64 examples, i64 steps, i64 step,
         i64 seed) {
  TORCH_CHECK(reinterpret_cast<std::uintptr_t>(activations.data_ptr()) % sizeof(vec) == 0, "lthfunc: unaligned");
  TORCH_CHECK(begin >= 0 && end <= program.size(0), "lthfunc: no such instructions");
  TORCH_CHECK(!reads_targets(program, begin, end) || targets.scalar_type() == at::kLong,
              "lthfunc: targets must be int64");
  const i64 tiles = (examples + LANES - 1) / LANES;
  const i64 *const rows = data<i64>(program), width = program.size(1);
  const float* const rates = data<float>(schedule);
  double* const powers = data<double>(clock);
  TORCH_CHECK(steps == 1 || (inputs[0].is_contiguous() && targets[0].is_contiguous()),
              "lthfunc: batches must be contiguous");
  Workspace workspace{reinterpret_cast<vec*>(data<float>(activations)),
                      data<i32>(lists),
                      data<float>(values),
                      data<float>(gradients),
                      data<float>(partials),
                      values.numel(),
                      data<float>(constants),
                      data<float>(first),
                      data<float>(second),
                      powers,
                      data<double>(totals),
                      nullptr,
                      nullptr,
                      data<float>(outputs),
                      0.0f,
                      {1.0f, 1.0f},
                      examples,
                      tiles,
                      static_cast<std::uint32_t>(seed),
                      0};
  for (i64 k = 0; k < steps; ++k) {
    // Slot k of the inputs holds the batch of the k-th step.
    workspace.inputs = slot(inputs, k);
    workspace.step = static_cast<std::uint32_t>(step + k);
    workspace.targets = reinterpret_cast<const i64*>(slot(targets, k));
    if (rates) workspace.rate = rates[std::min(step + k, schedule.numel() - 1)];
    if (powers) {
      workspace.corrections[0] = static_cast<float>(1.0 / (1.0 - powers[0]));
      workspace.corrections[1] = static_cast<float>(1.0 / std::sqrt(1.0 - powers[1]));
    }
    run_step(rows, width, begin, end, workspace);
    if (powers) {
      powers[0] *= powers[2];
      powers[1] *= powers[3];
    }
  }
}

// The outputs (examples, features) of a program without gradients. One example takes kernels of its own where `single`.
Tensor infer(const Tensor& program, const Tensor& lists, const Tensor& activations, const Tensor& values,
             const Tensor& constants, const Tensor& inputs, i64 features, bool single) {
  TORCH_CHECK(reinterpret_cast<std::uintptr_t>(activations.data_ptr()) % sizeof(vec) == 0, "lthfunc: unaligned");
  TORCH_CHECK(inputs.is_contiguous(), "lthfunc: batches must be contiguous");
  const i64 examples = inputs.size(0), tiles = (examples + LANES - 1) / LANES;
  Tensor outputs = at::empty({examples, features}, at::kFloat);
  Workspace workspace{reinterpret_cast<vec*>(data<float>(activations)),
                      data<i32>(lists),
                      data<float>(values),
                      nullptr,
                      nullptr,
                      values.numel(),
                      data<float>(constants),
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr,
                      inputs.data_ptr(),
                      nullptr,
                      data<float>(outputs),
                      0.0f,
                      {1.0f, 1.0f},
                      examples,
                      tiles,
                      0,
                      0};
  if (single && examples == 1)
    run_single(data<i64>(program), program.size(1), program.size(0), workspace);
  else
    run_step(data<i64>(program), program.size(1), 0, program.size(0), workspace);
  return outputs;
}

bool runs_single(const Tensor& program) { return has_single(data<i64>(program), program.size(1), program.size(0)); }

}  // namespace
}  // namespace lthfunc

TORCH_LIBRARY(lthfunc, library) {
  library.def(
      "run(Tensor program, int begin, int end, Tensor lists, Tensor(a!) activations, Tensor(b!) values, "
      "Tensor(c!) gradients, Tensor(d!) partials, Tensor(e!) constants, Tensor(f!) first, Tensor(g!) second, "
      "Tensor(h!) clock, Tensor(i!) totals, Tensor schedule, Tensor inputs, Tensor targets, Tensor(j!) outputs, "
      "int examples, "
      "int steps, int step, int seed) -> ()");
  library.def(
      "infer(Tensor program, Tensor lists, Tensor(a!) activations, Tensor values, Tensor(b!) constants, Tensor inputs, "
      "int features, bool single) -> Tensor");
  library.def("runs_single(Tensor program) -> bool");
}

TORCH_LIBRARY_IMPL(lthfunc, CPU, library) {
  library.impl("run", lthfunc::run);
  library.impl("infer", lthfunc::infer);
  library.impl("runs_single", lthfunc::runs_single);
}
