// What a kernel is: a function of one instruction, the workspace, and the part of the work that is asked of it.
#pragma once

#include <algorithm>

#include "halves.h"

namespace lthfunc {

// The beginning of every row.
struct Head {
  i64 opcode, split, rows, work;
};
constexpr i64 HEAD = sizeof(Head) / sizeof(i64);
inline const Head& head(const i64* row) { return *reinterpret_cast<const Head*>(row); }

#define INSTRUCTION(name, ...) \
  struct name##_row : Head {   \
    i64 __VA_ARGS__;           \
  };
#include "instructions.def"

enum Opcode : i64 {
#define INSTRUCTION(name, ...) op_##name,
#include "instructions.def"
  opcodes
};
enum Split : i64 {
#define SPLIT(name) split_##name,
#include "instructions.def"
  splits
};
enum Kind : i64 {
#define STORED(dtype) kind_##dtype,
#include "instructions.def"
  kinds
};
enum Saved : i64 {
#define SAVED(name) name##_of,
#include "instructions.def"
  SAVED
};

class Largest;  // survivors.h

struct Workspace {
  vec* activations;
  const i32* lists;
  float* values;     // parameters: survivors and the rest
  float* gradients;  // one for each value but frozen ones, which come last
  float* partials;   // several threads: the gradients of each tile, before they are added up; else nothing
  i64 numbers;       // how many values have gradients
  float* constants;  // numbers of the instructions, running statistics, what normalisation saves
  float* kept;       // what an optimiser keeps from step to step: rows of one number for each gradient
  double* clock;     // powers of Adam's betas and of an average's decay, and these three themselves
  double* totals;    // loss, hits
  const void* inputs;
  const i64* targets;
  float* outputs;
  float* input_gradients;
  float rate;            // learning rate of this step
  float corrections[2];  // Adam's
  i64 examples, tiles;
  i64 part, parts;           // of a step's batch
  std::uint32_t seed, step;  // what dropout draws depends on
  Largest* largest;          // keeps the largest gradients of a layer
  float* sums;               // or what those of the layer are added to
};

// A range of tiles and a range of rows: whichever an instruction is split by; the other is whole.
struct Part {
  i64 tile, tiles, row, rows;
};

// A row of a buffer, by an instruction's columns: `op`, `m`, `tile`, `channel` and `y` are those of the caller.
#define LTHFUNC_AT(name) \
  (m.activations + op.name + tile * op.name##_tile + channel * op.name##_channel + y * op.name##_row)

// The same where numbers may have 16 bits: `call` gets what either kind of row points to.
#define LTHFUNC_EITHER(name, call)                                                                    \
  (op.name##_half ? call(reinterpret_cast<halves*>(m.activations) + op.name + tile * op.name##_tile + \
                         channel * op.name##_channel + y * op.name##_row)                             \
                  : call(LTHFUNC_AT(name)))

// What decides about a row of a gradient, at the same position of another buffer of its layout; nullptr for nothing.
template <typename Kind>
inline const Kind* gate_of(i64 gate, i64 gradient, const Kind* row) {
  return gate < 0 ? nullptr : row + (gate - gradient);
}

// What is read once, row by row, is fetched into a second-level cache while so many vectors before it are computed:
// processors foresee neither the next 4 kB of an image nor the next of its channels.
constexpr i64 AHEAD = 128;
LTHFUNC_INLINE void fetch(const void* at) { __builtin_prefetch(at, 0, 2); }

// From a row of a buffer to the one that is so many vectors on; names as above. Beyond the last one fetching is
// harmless.
#define LTHFUNC_AHEAD(name) \
  rows_ahead(y, op.height, std::max<i64>(AHEAD / std::max<i64>(op.width, 1), 1), op.name##_row, op.name##_channel)
inline i64 rows_ahead(i64 y, i64 height, i64 rows, i64 row_step, i64 channel_step) {
  const i64 there = y + rows;
  return there / height * channel_step + (there % height - y) * row_step;
}

// A gradient where its value is above zero, if there is a gate.
template <typename Kind>
LTHFUNC_INLINE vec gated(vec gradient, const Kind* gate, i64 x) {
  return !gate ? gradient : passing(gradient, read(gate[x]));
}

// What a pointwise function takes besides a number, and the function by its kind.
struct Settings {
  float number, other;
};
inline Settings settings_at(const Workspace& m, i64 place) { return {m.constants[place], m.constants[place + 1]}; }
vec value_of(i64 kind, vec x, Settings given);

// The kernels: each does a part of an instruction.
#define INSTRUCTION(name, ...) void name(const name##_row&, Workspace&, Part);
#include "instructions.def"

}  // namespace lthfunc
