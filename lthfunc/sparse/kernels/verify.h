// What a program is held to before it may run: every place that an instruction reads or writes lies inside the memory
// that it names, whatever its numbers say. Each kernel has a `verify` beside it, which is its layout contract.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "machine.h"

namespace lthfunc {

// Instructions and lists, copied so that nothing outside can change them, and what they need of the memory they run on.
struct Program {
  std::vector<i64> rows;  // `width` numbers each
  i64 width;
  std::vector<i32> lists;
  i64 vectors, values, constants, batch;  // sizes: activations, values, constants; examples at most
  i64 numbers;                            // values that have gradients, which come first
  i64 features = 0, input_gradients = 0;  // numbers of an example's outputs, and of its inputs' gradients
  i64 stored = 0, kind = -1;              // numbers of an example's inputs, and their kind
  i64 inputs_until = 0;                   // the instruction behind the last that reads inputs
  i64 gradients_from = i64{1} << 62;      // the first that writes gradients
  i64 targets = 0;                        // of an example; 0: none are read
  bool writes_gradients = false, single = false;
  i64 local = 0;          // vectors of local buffers, of which each tile has room for a copy at the activations' end
  i64 kept = 0;           // rows of what an optimiser keeps
  bool averages = false;  // of values: it reads the clock

  struct Place {
    i64 row, column;
  };
  std::vector<Place> local_places;  // columns that say where a local buffer lies, in the order of rows

  i64 count() const { return static_cast<i64>(rows.size()) / width; }
  const i64* row(i64 k) const { return rows.data() + k * width; }
};

// An index that runs from 0 to count - 1, and what each step of it adds to an address.
struct Axis {
  i64 count, step;
};
// The least and the largest of some numbers.
struct Range {
  i64 low = 0, high = 0;
};

class Verifier {
 public:
  explicit Verifier(Program& checked) : program(checked), tiles((checked.batch + LANES - 1) / LANES) {}

  // All of it. Throws std::invalid_argument with the instruction and its column where an access could lie outside.
  void check();
  void require(bool holds, const char* what) const;

  // first + a sum of indices times steps, plus anything in `beside`: inside a memory for all of them.
  void activations(const char* name, i64 first, std::initializer_list<Axis> axes, Range beside = {}) const;
  void floats(const char* name, i64 vector, std::initializer_list<Axis> axes, Range beside = {}) const;
  // The same in vectors of half the size, which are never local; half: 1, or 0 for those of whole size.
  void activations_of(const char* name, i64 half, i64 first, std::initializer_list<Axis> axes, Range beside = {}) const;
  void values(const char* name, i64 first, std::initializer_list<Axis> axes, Range beside = {}) const;
  void gradients(const char* name, i64 first, i64 count);
  void inputs(i64 count, i64 kind);
  void input_gradients(i64 count);
  // An example's outputs from `first` on.
  void outputs(i64 first, i64 count);
  void constants(const char* name, i64 first, i64 count = 1) const;
  void kept(const char* name, i64 row);

  // Lists: what their entries say; bytes to vectors, in vectors; where lists of rows start, up to their end.
  Range list(const char* name, i64 first, i64 count, i64 step = 1) const;
  Range offsets(const char* name, i64 first, i64 count, i64 step = 1) const;
  i64 starts(const char* name, i64 first, i64 count) const;
  // Survivors of rows of `words` bit masks: each row has as many as its start and the next one leave room for.
  i64 survivors(i64 first, i64 bits, i64 words, i64 rows, bool closed = true) const;

  Program& program;
  const i64 tiles;

 private:
  // Vectors of the activations that one copy of local buffers reaches to.
  i64 vectors() const { return program.vectors - (tiles - 1) * program.local; }
  // Refuses loops over more places than there are.
  void bounded(const char* name, i64 places, std::initializer_list<Axis> axes) const;
  // Refuses a place among local buffers that no tile's copy of them would be found for.
  void movable(const char* name, i64 first, i64 least, i64 last) const;
  // Returns the least and the last place; nothing is read or written where the first is behind the last.
  Range inside(const char* name, const char* memory, i64 size, i64 first, std::initializer_list<Axis> axes,
               Range beside) const;
  [[noreturn]] void refuse(const std::string& why) const;

  i64 at_ = 0;
  i64 outputs_ = 0, outputs_until_ = 0;  // how many instructions store, and behind the last of them
};

// A place of `channels` × height × width vectors in each tile, by an instruction's columns.
#define LTHFUNC_INSIDE(name, channels, height, width) \
  v.activations(#name, op.name,                       \
                {{v.tiles, op.name##_tile}, {channels, op.name##_channel}, {height, op.name##_row}, {width, 1}})
#define LTHFUNC_INSIDE_HALF(name, channels, height, width) \
  v.activations_of(#name, op.name##_half, op.name,         \
                   {{v.tiles, op.name##_tile}, {channels, op.name##_channel}, {height, op.name##_row}, {width, 1}})
// The gate of a gradient has the gradient's steps, and numbers of its kind.
#define LTHFUNC_GATED(name, channels, height, width)                                                                  \
  do {                                                                                                                \
    LTHFUNC_INSIDE(name, channels, height, width);                                                                    \
    if (op.gate >= 0)                                                                                                 \
      v.activations("gate", op.gate,                                                                                  \
                    {{v.tiles, op.name##_tile}, {channels, op.name##_channel}, {height, op.name##_row}, {width, 1}}); \
  } while (false)
#define LTHFUNC_GATED_HALF(name, channels, height, width)                                                   \
  do {                                                                                                      \
    LTHFUNC_INSIDE_HALF(name, channels, height, width);                                                     \
    if (op.gate >= 0)                                                                                       \
      v.activations_of(                                                                                     \
          "gate", op.name##_half, op.gate,                                                                  \
          {{v.tiles, op.name##_tile}, {channels, op.name##_channel}, {height, op.name##_row}, {width, 1}}); \
  } while (false)

// A normalisation's weights and biases, one a channel, where there are any.
inline void verify_affine(i64 weight, i64 bias, i64 channels, const Verifier& v) {
  if (weight >= 0) v.values("weight", weight, {{channels, 1}});
  if (bias >= 0) v.values("bias", bias, {{channels, 1}});
}

#define INSTRUCTION(name, ...) void verify(const name##_row&, Verifier&);
#include "instructions.def"

}  // namespace lthfunc
