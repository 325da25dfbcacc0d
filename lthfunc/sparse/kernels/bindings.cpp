// The operators lthfunc::… of PyTorch, through its stable ABI: a library that is built once serves every later PyTorch.
#include <cmath>

#include "parallel.h"
#include "single.h"
#include "workspaces.h"

namespace lthfunc {
namespace {

// Slots of batches, each contiguous, with `needed` elements or more; nothing is read where none are needed.
void check_slots(const char* name, const Tensor& slots, i64 count, i64 needed, ScalarType type) {
  if (needed == 0) return;
  require(slots.scalar_type() == type, name, " must be ", name_of(type));
  require(slots.dim() > 0 && slots.size(0) >= count, name, " takes ", count, " batches");
  i64 step = 1;
  for (i64 k = slots.dim() - 1; k > 0; --k) {
    require(slots.size(k) == 1 || slots.stride(k) == step, name, ": batches must be contiguous");
    step *= slots.size(k);
  }
  require(step >= needed, name, " takes ", needed, " elements a batch, or more");
}

ScalarType stored_as(const Program& program) {
  return program.kind == kind_uint8   ? ScalarType::Byte
         : program.kind == kind_int64 ? ScalarType::Long
                                      : ScalarType::Float;
}

// How many numbers so many examples have, so many each.
i64 times(i64 count, i64 each) {
  i64 product = 0;
  require(!__builtin_mul_overflow(count, each, &product), "more numbers than memory has");
  return product;
}

i64 bytes_each(const Program& program) { return program.kind == kind_uint8 ? 1 : program.kind == kind_int64 ? 8 : 4; }

const char* slot(const Tensor& slots, i64 number) {
  if (!slots.numel()) return nullptr;
  return static_cast<const char*>(slots.data_ptr()) + number * slots.stride(0) * static_cast<i64>(slots.element_size());
}

i64 make_program(const Tensor& rows, const Tensor& lists, i64 vectors, i64 local, i64 values, i64 numbers,
                 i64 constants, i64 batch) {
  constexpr i64 most = i64{1} << 31;
  require(rows.dim() == 2 && rows.size(1) >= HEAD, "a program is rows of instructions, and lists");
  for (const i64 size : {vectors, local, values, numbers, constants, batch})
    require(size >= 0 && size < most, "a program's memory is out of range");
  require(numbers <= values, "a program has more gradients than values");
  require(local == 0 || (batch > 0 && local * tiles_of(batch) <= vectors),
          "a program's activations have no room for each tile's local buffers");
  const auto program =
      std::make_shared<Program>(Program{copied<i64>("rows", rows), rows.size(1), copied<i32>("lists", lists), vectors,
                                        values, constants, batch, numbers});
  program->local = local;
  return keep_program(program);
}

bool runs_single(i64 program) { return program_of(program)->single; }

void run(i64 number, i64 begin, i64 end, const Tensor& activations, const Tensor& values, const Tensor& gradients,
         const Tensor& partials, const Tensor& constants, const Tensor& kept, const Tensor& clock, const Tensor& totals,
         const Tensor& schedule, const Tensor& inputs, const Tensor& targets, const Tensor& outputs, i64 examples,
         i64 parts, i64 update, i64 steps, i64 step, i64 seed) {
  const std::shared_ptr<const Program> held = program_of(number);
  const Program& program = *held;
  require(begin >= 0 && begin <= end && end <= program.count(), "no such instructions");
  require(examples > 0 && examples <= program.batch && parts > 0 && parts < (i64{1} << 31) && steps > 0 && step >= 0,
          "takes 1 to ", program.batch, " examples, one part or more, and one step or more");
  require(!program.input_gradients, "takes a program without gradients of inputs");
  check_slots("inputs", inputs, steps, times(times(parts, examples), program.stored), stored_as(program));
  check_slots("targets", targets, steps, times(times(parts, examples), program.targets), ScalarType::Long);
  const bool threads = has_threads();
  const i64 written = program.writes_gradients ? program.numbers : 0;
  Workspace workspace = workspace_of(program, activations, values, constants, examples);
  workspace.gradients = data<float>("gradients", gradients, written);
  workspace.partials = data<float>("partials", partials, threads ? written * workspace.tiles : 0);
  workspace.kept = data<float>("kept", kept, program.kept * program.numbers);
  workspace.totals = data<double>("totals", totals, program.targets ? 2 : 0);
  workspace.outputs = data<float>("outputs", outputs, times(examples, program.features));
  workspace.seed = static_cast<std::uint32_t>(seed);
  const float* const rates = data<float>("schedule", schedule, 0);
  double* const powers = data<double>("clock", clock, clock.numel() || program.averages ? 6 : 0);
  workspace.clock = powers;
  workspace.parts = parts;
  const i64 part_bytes = times(times(examples, program.stored), bytes_each(program));
  for (i64 k = 0; k < steps; ++k) {
    if (rates) workspace.rate = rates[std::min(step + k, schedule.numel() - 1)];
    if (powers) {
      workspace.corrections[0] = static_cast<float>(1.0 / (1.0 - powers[0]));
      workspace.corrections[1] = static_cast<float>(1.0 / std::sqrt(1.0 - powers[1]));
    }
    // Slot k of the inputs holds the batch of the k-th step. Instructions before `update` run for each of its parts.
    const char* const batch = slot(inputs, k);
    const i64* const classes = reinterpret_cast<const i64*>(slot(targets, k));
    for (workspace.part = 0; workspace.part < parts; ++workspace.part) {
      workspace.inputs = batch + workspace.part * part_bytes;
      workspace.targets = classes ? classes + workspace.part * examples * program.targets : nullptr;
      workspace.step = static_cast<std::uint32_t>((step + k) * parts + workspace.part);
      run_step(program, begin, std::min(end, update), workspace, threads);
    }
    run_step(program, std::max(begin, update), end, workspace, threads);
    if (powers && end > update)  // a step may be several runs, of which one updates
      for (i64 power = 0; power < 3; ++power) powers[power] *= powers[power + 3];
  }
}

// A program's forward half, from inputs to outputs, or its backward half, from the outputs' gradients, which lie where
// the outputs were, to all others. What a half does not read or write may be empty.
void run_half(i64 number, i64 begin, i64 end, const Tensor& activations, const Tensor& values, const Tensor& gradients,
              const Tensor& partials, const Tensor& constants, const Tensor& inputs, const Tensor& outputs,
              const Tensor& input_gradients, i64 examples, i64 seed) {
  const std::shared_ptr<const Program> held = program_of(number);
  const Program& program = *held;
  require(begin >= 0 && begin <= end && end <= program.count(), "no such instructions");
  require(!program.targets && !program.kept && !program.averages, "takes a program without a loss and an optimiser");
  require(examples > 0 && examples <= program.batch, "takes 1 to ", program.batch, " examples");
  const bool reads = begin < program.inputs_until;
  const bool writes = end > program.gradients_from;
  const bool threads = has_threads();
  require(!reads || inputs.scalar_type() == stored_as(program), "inputs must be ", name_of(stored_as(program)));
  require(inputs.is_contiguous() && inputs.numel() >= (reads ? times(examples, program.stored) : 0), "inputs takes ",
          program.stored, " contiguous elements an example");
  const i64 written = writes && program.writes_gradients ? program.numbers : 0;
  Workspace workspace = workspace_of(program, activations, values, constants, examples);
  workspace.gradients = data<float>("gradients", gradients, written);
  workspace.partials = data<float>("partials", partials, threads ? written * workspace.tiles : 0);
  workspace.inputs = inputs.numel() ? inputs.data_ptr() : nullptr;
  workspace.outputs = data<float>("outputs", outputs, times(examples, program.features));
  workspace.input_gradients =
      data<float>("input_gradients", input_gradients, writes ? times(examples, program.input_gradients) : 0);
  workspace.seed = static_cast<std::uint32_t>(seed);
  run_step(program, begin, end, workspace, threads);
}

// The outputs (examples, features) of a program without gradients. One example takes kernels of its own where `single`.
Tensor infer(i64 number, const Tensor& activations, const Tensor& values, const Tensor& constants, const Tensor& inputs,
             bool single) {
  const std::shared_ptr<const Program> held = program_of(number);
  const Program& program = *held;
  require_inference(program);
  require(inputs.dim() > 0 && inputs.size(0) <= program.batch, "takes up to ", program.batch, " examples");
  const i64 examples = inputs.size(0);
  require(inputs.is_contiguous() && inputs.scalar_type() == stored_as(program) &&
              inputs.numel() >= times(examples, program.stored),
          "inputs takes ", program.stored, " contiguous elements of ", name_of(stored_as(program)), " an example");
  const Tensor outputs = empty({examples, program.features});
  Workspace workspace = workspace_of(program, activations, values, constants, examples);
  workspace.inputs = inputs.data_ptr();
  workspace.outputs = data<float>("outputs", outputs, 0);
  if (single && program.single && examples == 1)
    run_single(program, workspace);
  else if (examples > 0)
    run_step(program, 0, program.count(), workspace, has_threads());
  return outputs;
}

Tiles tiles_in(const Tensor& tensor) {
  require(tensor.dim() == 5 && tensor.size(4) == LANES && tensor.is_contiguous(),
          "takes contiguous tiles (tiles, channels, height, width, 16)");
  return {reinterpret_cast<float*>(vectors("tiles", tensor, 0)), tensor.size(0), tensor.size(1), tensor.size(2),
          tensor.size(3)};
}

template <typename T>
Vector<T> vector_in(const char* name, const Tensor& tensor) {
  return {data<T>(name, tensor, 0), tensor.numel()};
}

Lists lists_in(const Tensor& starts, const Tensor& offsets, const Maybe& which) {
  return {vector_in<i32>("starts", starts), vector_in<i32>("offsets", offsets),
          which ? vector_in<i32>("which", *which) : Vector<i32>{}};
}

Tensor product_tiles(const Tensor& input, const Tensor& values, const Maybe& bias, const Tensor& starts,
                     const Tensor& offsets, const Maybe& which, i64 channels, i64 height, i64 width, i64 stride_y,
                     i64 stride_x) {
  constexpr i64 most = i64{1} << 31;
  const Tiles in = tiles_in(input);
  require(channels >= 0 && height > 0 && width > 0 && channels < most && height < most && width < most &&
              channels * height < most / width && stride_y > 0 && stride_x > 0,
          "sizes or strides out of range");
  const Tensor output = empty({in.tiles, channels, height, width, LANES});
  layer_products(in, vector_in<float>("values", values), bias ? vector_in<float>("bias", *bias) : Vector<float>{},
                 lists_in(starts, offsets, which), stride_y, stride_x, tiles_in(output));
  return output;
}

Tensor gradient_values(const Tensor& input, const Tensor& grad, const Tensor& starts, const Tensor& offsets,
                       i64 stride_y, i64 stride_x) {
  const Tiles in = tiles_in(input), gradient = tiles_in(grad);
  require(in.tiles == gradient.tiles && stride_y > 0 && stride_x > 0, "takes as many tiles of inputs as of gradients");
  const Lists lists = lists_in(starts, offsets, {});
  const Tensor gradients = empty({lists.offsets.count});
  layer_gradients(in, gradient, lists, stride_y, stride_x, data<float>("gradients", gradients, 0));
  return gradients;
}

// The memory of a tensor whose elements fill it in any order (channels last, say), and its mask's words in that order.
std::pair<float*, const i32*> masked_memory(const Tensor& tensor, const Tensor& kept) {
  i64 reach = tensor.numel() ? 1 : 0;
  for (i64 k = 0; reach && k < tensor.dim(); ++k) reach += (tensor.size(k) - 1) * tensor.stride(k);
  require(reach == tensor.numel() && tensor.scalar_type() == ScalarType::Float, "takes a dense tensor of float32");
  require(kept.numel() == (reach + LANES - 1) / LANES, "takes a word for each 16 elements");
  return {reach ? static_cast<float*>(tensor.mutable_data_ptr()) : nullptr, data<i32>("kept", kept, 0)};
}

void mask(const Tensor& tensor, const Tensor& kept) {
  const auto [memory, words] = masked_memory(tensor, kept);
  mask_numbers(memory, tensor.numel(), words);
}

void add_pruned(const Tensor& tensor, const Tensor& kept, double summand) {
  const auto [memory, words] = masked_memory(tensor, kept);
  add_to_pruned(memory, tensor.numel(), words, static_cast<float>(summand));
}

}  // namespace
}  // namespace lthfunc

STABLE_TORCH_LIBRARY(lthfunc, library) {
  library.def(
      "make_program(Tensor rows, Tensor lists, int vectors, int local, int values, int numbers, int constants, "
      "int batch) -> int");
  library.def("free_program(int program) -> ()");
  library.def("runs_single(int program) -> bool");
  library.def(
      "run(int program, int begin, int end, Tensor(a!) activations, Tensor(b!) values, Tensor(c!) gradients, "
      "Tensor(d!) partials, Tensor(e!) constants, Tensor(f!) kept, Tensor(g!) clock, Tensor(h!) totals, Tensor "
      "schedule, "
      "Tensor inputs, Tensor targets, Tensor(i!) outputs, int examples, int parts, int update, int steps, int step, "
      "int seed) -> ()");
  library.def(
      "run_half(int program, int begin, int end, Tensor(a!) activations, Tensor values, Tensor(b!) gradients, "
      "Tensor(c!) partials, Tensor(d!) constants, Tensor inputs, Tensor(e!) outputs, Tensor(f!) input_gradients, "
      "int examples, int seed) -> ()");
  library.def(
      "infer(int program, Tensor(a!) activations, Tensor values, Tensor(b!) constants, Tensor inputs, bool single) -> "
      "Tensor");
  library.def(
      "products(Tensor input, Tensor values, Tensor? bias, Tensor starts, Tensor offsets, Tensor? which, "
      "SymInt channels, SymInt height, SymInt width, int stride_y, int stride_x) -> Tensor");
  library.def(
      "weight_gradients(Tensor input, Tensor grad, Tensor starts, Tensor offsets, int stride_y, int stride_x) -> "
      "Tensor");
  library.def("mask_(Tensor(a!) tensor, Tensor kept) -> ()");
  library.def("add_pruned_(Tensor(a!) tensor, Tensor kept, float summand) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lthfunc, CPU, library) {
  library.impl("make_program", TORCH_BOX(&lthfunc::make_program));
  library.impl("run", TORCH_BOX(&lthfunc::run));
  library.impl("run_half", TORCH_BOX(&lthfunc::run_half));
  library.impl("infer", TORCH_BOX(&lthfunc::infer));
  library.impl("products", TORCH_BOX(&lthfunc::product_tiles));
  library.impl("weight_gradients", TORCH_BOX(&lthfunc::gradient_values));
  library.impl("mask_", TORCH_BOX(&lthfunc::mask));
  library.impl("add_pruned_", TORCH_BOX(&lthfunc::add_pruned));
}

// Of no tensor, by which a device could be told.
STABLE_TORCH_LIBRARY_IMPL(lthfunc, CompositeImplicitAutograd, library) {
  library.impl("free_program", TORCH_BOX(&lthfunc::free_program));
  library.impl("runs_single", TORCH_BOX(&lthfunc::runs_single));
}
