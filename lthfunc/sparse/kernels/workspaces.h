// The workspace of a run, of PyTorch's tensors, and what runs without gradients.
#pragma once

#include "execution.h"
#include "tensors.h"

namespace lthfunc {
namespace {

// What every run of a program has: its memory, and the batch's size.
Workspace workspace_of(const Program& program, const Tensor& activations, const Tensor& values, const Tensor& constants,
                       i64 examples) {
  Workspace workspace{};
  workspace.activations = vectors("activations", activations, program.vectors);
  workspace.lists = program.lists.data();
  workspace.values = data<float>("values", values, program.values);
  workspace.numbers = program.numbers;
  workspace.constants = data<float>("constants", constants, program.constants);
  workspace.corrections[0] = workspace.corrections[1] = 1.0f;
  workspace.examples = examples;
  workspace.tiles = tiles_of(examples);
  workspace.parts = 1;
  return workspace;
}

// Has neither memory for gradients nor for what an optimiser and averages keep.
void require_inference(const Program& program) {
  require(
      !program.writes_gradients && !program.input_gradients && !program.targets && !program.kept && !program.averages,
      "a program for training");
}

}  // namespace
}  // namespace lthfunc
