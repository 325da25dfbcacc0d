// Programs that were verified, and how they run; the layers' operations on tiles.
#pragma once

#include <memory>

#include "verify.h"

namespace lthfunc {

// Verifies a program and keeps it; returns its number. Whoever made one frees it; one that runs meanwhile ends first.
i64 keep_program(const std::shared_ptr<Program>& program);
void free_program(i64 number);
std::shared_ptr<const Program> program_of(i64 number);

// Instructions from `begin` to `end`, once. threads: whether several may share them.
void run_step(const Program& program, i64 begin, i64 end, Workspace& workspace, bool threads);

inline i64 tiles_of(i64 examples) { return (examples + LANES - 1) / LANES; }

// Contiguous tensors.
template <typename Number>
struct Vector {
  const Number* first = nullptr;
  i64 count = 0;
};
struct Tiles {
  float* memory;
  i64 tiles, channels, height, width;  // and 16 lanes

  i64 plane() const { return height * width; }
  i64 tile() const { return channels * plane(); }
};
struct Lists {
  Vector<i32> starts, offsets, which;
};

// Products of a layer, into `output`, and the gradients of its weights. bias, which: nothing where they have no memory.
void layer_products(const Tiles& input, Vector<float> values, Vector<float> bias, const Lists& lists, i64 stride_y,
                    i64 stride_x, const Tiles& output);
void layer_gradients(const Tiles& input, const Tiles& grad, const Lists& lists, i64 stride_y, i64 stride_x,
                     float* gradients);

// Numbers that a mask prunes: times zero, or plus a number. kept: bit k of word w is that of number 16 w + k.
void mask_numbers(float* numbers, i64 count, const i32* kept);
void add_to_pruned(float* numbers, i64 count, const i32* kept, float summand);

}  // namespace lthfunc
