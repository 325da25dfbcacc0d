// The machine: takes the instructions of a program in turn, for one step or many, in one call from Python.
//
// Instructions next to each other that never mix examples run tile by tile, so that what one has written is still in
// a cache when the next reads it; threads share the tiles. The others are split by rows. Sums over tiles are added up
// in one order, so results don't depend on the number of threads.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "single.h"

namespace lthfunc {
namespace {

using at::Tensor;
using Kernel = void (*)(const i64*, Workspace&, Part);

constexpr Kernel kernels[] = {
#define INSTRUCTION(name, ...)                                        \
  [](const i64* row, Workspace& workspace, Part part) {               \
    name(*reinterpret_cast<const name##_row*>(row), workspace, part); \
  },
#include "instructions.def"
};

// Vectors from which a second thread is worth waking: some 10 µs of work.
constexpr i64 WORTH_A_THREAD = 30'000;

void execute(const i64* row, Workspace& workspace, Part part) { kernels[head(row).opcode](row, workspace, part); }

void run_rows(const i64* row, Workspace& workspace, bool threads) {
  const i64 rows = head(row).rows;
  if (!threads || head(row).split == split_whole || head(row).work < WORTH_A_THREAD)
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

void run_tiles(const Program& program, i64 begin, i64 end, Workspace& workspace, bool threads) {
  i64 work = 0;
  for (i64 k = begin; k < end; ++k) work += head(program.row(k)).work;
  threads = threads && work >= WORTH_A_THREAD;
  const auto tiles = [&](i64 from, i64 to) {
    Workspace mine = workspace;
    if (!threads) mine.partials = nullptr;
    for (i64 tile = from; tile < to; ++tile) {
      if (threads) mine.gradients = workspace.partials + tile * workspace.numbers;
      for (i64 k = begin; k < end; ++k) execute(program.row(k), mine, {tile, tile + 1, 0, head(program.row(k)).rows});
    }
  };
  if (!threads) return tiles(0, workspace.tiles);
  at::parallel_for(0, workspace.tiles, 1, tiles);
  for (i64 k = begin; k < end; ++k)
    if (head(program.row(k)).split == split_sums) add_up(program.row(k), workspace);
}

void run_step(const Program& program, i64 begin, i64 end, Workspace& workspace, bool threads) {
  const auto tilewise = [&](i64 k) {
    const i64 split = head(program.row(k)).split;
    return split == split_by_tiles || split == split_sums;
  };
  for (i64 k = begin; k < end;) {
    if (!tilewise(k)) {
      run_rows(program.row(k++), workspace, threads);
      continue;
    }
    const i64 first = k;
    while (k < end && tilewise(k)) ++k;
    run_tiles(program, first, k, workspace, threads);
  }
}

// Programs that were verified, by number. Whoever made one frees it; one that runs meanwhile ends first.
std::mutex guard;
std::unordered_map<i64, std::shared_ptr<const Program>> programs;

i64 make_program(const Tensor& rows, const Tensor& lists, i64 vectors, i64 numbers, i64 constants, i64 batch) {
  static i64 made = 0;
  constexpr i64 most = i64{1} << 31;
  TORCH_CHECK_VALUE(rows.dim() == 2 && rows.size(1) >= HEAD && rows.is_contiguous() && lists.is_contiguous(),
                    "lthfunc: a program is rows of instructions, and lists");
  for (const i64 size : {vectors, numbers, constants, batch})
    TORCH_CHECK_VALUE(size >= 0 && size < most, "lthfunc: a program's memory is out of range");
  const i64* const first = rows.data_ptr<i64>();
  const i32* const entries = lists.data_ptr<i32>();
  const auto program = std::make_shared<Program>(Program{{first, first + rows.numel()},
                                                         rows.size(1),
                                                         {entries, entries + lists.numel()},
                                                         vectors,
                                                         numbers,
                                                         constants,
                                                         batch});
  Verifier(*program).check();
  const std::lock_guard<std::mutex> lock(guard);
  programs[++made] = program;
  return made;
}

void free_program(i64 number) {
  const std::lock_guard<std::mutex> lock(guard);
  programs.erase(number);
}

std::shared_ptr<const Program> program_of(i64 number) {
  const std::lock_guard<std::mutex> lock(guard);
  const auto found = programs.find(number);
  TORCH_CHECK_VALUE(found != programs.end(), "lthfunc: no program ", number);
  return found->second;
}

bool runs_single(i64 program) { return program_of(program)->single; }

// A tensor's memory, where it holds `needed` elements or more.
template <typename T>
T* data(const char* name, const Tensor& tensor, i64 needed) {
  TORCH_CHECK_VALUE(tensor.is_contiguous() && tensor.numel() >= needed, "lthfunc: ", name, " takes ", needed,
                    " contiguous elements or more");
  T* const memory = tensor.numel() ? tensor.data_ptr<T>() : nullptr;
  return memory;
}

vec* activations_of(const Program& program, const Tensor& activations) {
  float* const memory = data<float>("activations", activations, program.vectors * LANES);
  TORCH_CHECK_VALUE(reinterpret_cast<std::uintptr_t>(memory) % sizeof(vec) == 0,
                    "lthfunc: activations are not aligned");
  return reinterpret_cast<vec*>(memory);
}

// Slots of batches, each contiguous, with `needed` elements or more; nothing is read where none are needed.
void check_slots(const char* name, const Tensor& slots, i64 count, i64 needed, at::ScalarType dtype) {
  if (needed == 0) return;
  TORCH_CHECK(slots.scalar_type() == dtype, "lthfunc: ", name, " must be ",
              at::elementSize(dtype) == 8   ? "int64"
              : at::elementSize(dtype) == 4 ? "float32"
                                            : "uint8");
  TORCH_CHECK_VALUE(slots.dim() > 0 && slots.size(0) >= count, "lthfunc: ", name, " takes ", count, " batches");
  i64 step = 1;
  for (i64 k = slots.dim() - 1; k > 0; --k) {
    TORCH_CHECK_VALUE(slots.size(k) == 1 || slots.stride(k) == step, "lthfunc: ", name, ": batches must be contiguous");
    step *= slots.size(k);
  }
  TORCH_CHECK_VALUE(step >= needed, "lthfunc: ", name, " takes ", needed, " elements a batch, or more");
}

at::ScalarType stored_as(const Program& program) { return program.kind == kind_uint8 ? at::kByte : at::kFloat; }

const char* slot(const Tensor& slots, i64 number) {
  if (!slots.numel()) return nullptr;
  return static_cast<const char*>(slots.data_ptr()) + number * slots.stride(0) * slots.element_size();
}

i64 tiles_of(i64 examples) { return (examples + LANES - 1) / LANES; }

void run(i64 number, i64 begin, i64 end, const Tensor& activations, const Tensor& values, const Tensor& gradients,
         const Tensor& partials, const Tensor& constants, const Tensor& first, const Tensor& second,
         const Tensor& clock, const Tensor& totals, const Tensor& schedule, const Tensor& inputs, const Tensor& targets,
         const Tensor& outputs, i64 examples, i64 steps, i64 step, i64 seed) {
  const std::shared_ptr<const Program> held = program_of(number);
  const Program& program = *held;
  TORCH_CHECK_VALUE(begin >= 0 && begin <= end && end <= program.count(), "lthfunc: no such instructions");
  TORCH_CHECK_VALUE(examples > 0 && examples <= program.batch && steps > 0 && step >= 0, "lthfunc: takes 1 to ",
                    program.batch, " examples and one step or more");
  check_slots("inputs", inputs, steps, examples * program.stored, stored_as(program));
  check_slots("targets", targets, steps, program.reads_targets ? examples : 0, at::kLong);
  const bool threads = at::get_num_threads() > 1;
  const i64 written = program.writes_gradients ? program.numbers : 0;
  Workspace workspace{};
  workspace.activations = activations_of(program, activations);
  workspace.lists = program.lists.data();
  workspace.values = data<float>("values", values, program.numbers);
  workspace.gradients = data<float>("gradients", gradients, written);
  workspace.partials = data<float>("partials", partials, threads ? written * tiles_of(examples) : 0);
  workspace.numbers = program.numbers;
  workspace.constants = data<float>("constants", constants, program.constants);
  workspace.first = data<float>("first", first, program.moments > 0 || first.numel() ? program.numbers : 0);
  workspace.second = data<float>("second", second, program.moments > 1 ? program.numbers : 0);
  workspace.totals = data<double>("totals", totals, program.reads_targets ? 2 : 0);
  workspace.outputs = data<float>("outputs", outputs, examples * program.features);
  workspace.examples = examples;
  workspace.tiles = tiles_of(examples);
  workspace.seed = static_cast<std::uint32_t>(seed);
  workspace.corrections[0] = workspace.corrections[1] = 1.0f;
  const float* const rates = data<float>("schedule", schedule, 0);
  double* const powers = data<double>("clock", clock, clock.numel() ? 4 : 0);
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
    run_step(program, begin, end, workspace, threads);
    if (powers) {
      powers[0] *= powers[2];
      powers[1] *= powers[3];
    }
  }
}

// The outputs (examples, features) of a program without gradients. One example takes kernels of its own where `single`.
Tensor infer(i64 number, const Tensor& activations, const Tensor& values, const Tensor& constants, const Tensor& inputs,
             bool single) {
  const std::shared_ptr<const Program> held = program_of(number);
  const Program& program = *held;
  TORCH_CHECK_VALUE(!program.writes_gradients && !program.reads_targets, "lthfunc: a program for training");
  TORCH_CHECK_VALUE(inputs.dim() > 0 && inputs.size(0) <= program.batch, "lthfunc: takes up to ", program.batch,
                    " examples");
  const i64 examples = inputs.size(0);
  TORCH_CHECK_VALUE(inputs.is_contiguous() && inputs.scalar_type() == stored_as(program) &&
                        inputs.numel() >= examples * program.stored,
                    "lthfunc: inputs takes ", program.stored, " contiguous elements of ", stored_as(program),
                    " an example");
  const Tensor outputs = at::empty({examples, program.features}, at::kFloat);
  Workspace workspace{};
  workspace.activations = activations_of(program, activations);
  workspace.lists = program.lists.data();
  workspace.values = data<float>("values", values, program.numbers);
  workspace.numbers = program.numbers;
  workspace.constants = data<float>("constants", constants, program.constants);
  workspace.inputs = inputs.data_ptr();
  workspace.outputs = data<float>("outputs", outputs, 0);
  workspace.corrections[0] = workspace.corrections[1] = 1.0f;
  workspace.examples = examples;
  workspace.tiles = tiles_of(examples);
  if (single && program.single && examples == 1)
    run_single(program, workspace);
  else if (examples > 0)
    run_step(program, 0, program.count(), workspace, at::get_num_threads() > 1);
  return outputs;
}

}  // namespace
}  // namespace lthfunc

TORCH_LIBRARY(lthfunc, library) {
  library.def("make_program(Tensor rows, Tensor lists, int vectors, int values, int constants, int batch) -> int");
  library.def("free_program(int program) -> ()", lthfunc::free_program);
  library.def("runs_single(int program) -> bool", lthfunc::runs_single);
  library.def(
      "run(int program, int begin, int end, Tensor(a!) activations, Tensor(b!) values, Tensor(c!) gradients, "
      "Tensor(d!) partials, Tensor(e!) constants, Tensor(f!) first, Tensor(g!) second, Tensor(h!) clock, "
      "Tensor(i!) totals, Tensor schedule, Tensor inputs, Tensor targets, Tensor(j!) outputs, int examples, int steps, "
      "int step, int seed) -> ()");
  library.def(
      "infer(int program, Tensor(a!) activations, Tensor values, Tensor(b!) constants, Tensor inputs, bool single) -> "
      "Tensor");
}

TORCH_LIBRARY_IMPL(lthfunc, CPU, library) {
  library.impl("make_program", lthfunc::make_program);
  library.impl("run", lthfunc::run);
  library.impl("infer", lthfunc::infer);
}
