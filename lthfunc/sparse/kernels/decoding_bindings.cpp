// The operators lthfunc::… of PyTorch that read and write sequences token by token.
#include "decoding.h"
#include "parallel.h"
#include "workspaces.h"

namespace lthfunc {
namespace {

// moving, states: rows of three numbers and of two, as `Moving` and `State` have them.
Decoder decoder_of(const Program& program, const Tensor& moving, const Tensor& states, i64 places,
                   const Tensor& activations, const Tensor& values, const Tensor& constants) {
  require_inference(program);
  require(program.batch > 0, "takes a program for one example or more");
  require(moving.dim() == 2 && moving.size(1) == 3, "moving takes (row, column, step) of each column that moves");
  const std::vector<i64> numbers = copied<i64>("moving", moving);
  std::vector<Moving> columns;
  for (std::size_t k = 0; k < numbers.size(); k += 3) columns.push_back({numbers[k], numbers[k + 1], numbers[k + 2]});
  require(states.dim() == 2 && states.size(1) == 2, "states takes (first, count) of each of them");
  const std::vector<i64> kept = copied<i64>("states", states);
  std::vector<State> zeros;
  for (std::size_t k = 0; k < kept.size(); k += 2) zeros.push_back({kept[k], kept[k + 1]});
  return {program,
          std::move(columns),
          std::move(zeros),
          places,
          workspace_of(program, activations, values, constants, 1),
          has_threads()};
}

// The logits (tokens, features) after each of the first tokens of a sequence.
Tensor decode(i64 number, const Tensor& moving, const Tensor& states, i64 places, const Tensor& activations,
              const Tensor& values, const Tensor& constants, const Tensor& tokens) {
  const std::shared_ptr<const Program> held = program_of(number);
  Decoder decoder = decoder_of(*held, moving, states, places, activations, values, constants);
  const i64 count = tokens.numel();
  require(count <= places, "takes up to ", places, " tokens");
  const i64* const given = data<i64>("tokens", tokens, 0);
  const Tensor outputs = empty({count, held->features});
  float* const logits = data<float>("outputs", outputs, 0);
  for (i64 k = 0; k < count; ++k) decoder.decode(given[k], k, logits + k * held->features);
  return outputs;
}

// tokens: those given, and room for as many as there are draws.
void generate(i64 number, const Tensor& moving, const Tensor& states, i64 places, const Tensor& activations,
              const Tensor& values, const Tensor& constants, const Tensor& tokens, const Tensor& draws,
              double temperature, i64 most) {
  const std::shared_ptr<const Program> held = program_of(number);
  Decoder decoder = decoder_of(*held, moving, states, places, activations, values, constants);
  const i64 count = draws.numel(), given = tokens.numel() - count;
  require(given > 0, "takes one token or more");
  require(held->features > 0 && temperature >= 0 && most >= 0, "temperature and most: not negative");
  decoder.generate(data<i64>("tokens", tokens, given + count), given, count, data<double>("draws", draws, 0),
                   {temperature, most});
}

}  // namespace
}  // namespace lthfunc

STABLE_TORCH_LIBRARY_FRAGMENT(lthfunc, library) {
  library.def(
      "decode(int program, Tensor moving, Tensor states, int places, Tensor(a!) activations, Tensor values, "
      "Tensor(b!) constants, Tensor tokens) -> Tensor");
  library.def(
      "generate(int program, Tensor moving, Tensor states, int places, Tensor(a!) activations, Tensor values, "
      "Tensor(b!) constants, Tensor(c!) tokens, Tensor draws, float temperature, int most) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lthfunc, CPU, library) {
  library.impl("decode", TORCH_BOX(&lthfunc::decode));
  library.impl("generate", TORCH_BOX(&lthfunc::generate));
}
