// Programs for one example at a time, on the memory of a program for tiles.
#pragma once

#include "verify.h"

namespace lthfunc {

// Whether every instruction of a program, without gradients, has a kernel for one example.
bool has_single(const Program& program);
void run_single(const Program& program, Workspace& workspace);

// Places in the activations are counted in floats.
inline float* place(const Workspace& m, i64 first) { return reinterpret_cast<float*>(m.activations) + first; }

// The larger one, or NaN if one is NaN.
LTHFUNC_INLINE float max_or_nan(float a, float b) { return a > b || a != a ? a : b; }

// single.cpp
void products_single(const products_row&, Workspace&);
void dense_convolutions_single(const dense_convolutions_row&, Workspace&);
void dense_products_single(const dense_products_row&, Workspace&);
void load_inputs_single(const load_inputs_row&, Workspace&);
void store_outputs_single(const store_outputs_row&, Workspace&);
void batch_statistics_single(const batch_statistics_row&, Workspace&);
// Instructions that have no lists (single_pointwise.cpp).
void max_pool_single(const max_pool_row&, Workspace&);
void average_pool_single(const average_pool_row&, Workspace&);
void pointwise_single(const pointwise_row&, Workspace&);
void add_single(const add_row&, Workspace&);
void normalise_single(const normalise_row&, Workspace&);
void copy_single(const copy_row&, Workspace&);
void fill_single(const fill_row&, Workspace&);
// broadcasting.cpp, resampling.cpp
void combine_single(const combine_row&, Workspace&);
void load_numbers_single(const load_numbers_row&, Workspace&);
void resample_single(const resample_row&, Workspace&);
// Recurrent layers (recurrent.cpp).
void recurrent_cell_single(const recurrent_cell_row&, Workspace&);
// Tokens (single_tokens.cpp, embedding.cpp).
void token_normalise_single(const token_normalise_row&, Workspace&);
void attention_single(const attention_row&, Workspace&);
void embed_single(const embed_row&, Workspace&);

}  // namespace lthfunc
