// Which instructions have a kernel for one example. A program with any that is missing here takes a tile.
#include <algorithm>

#include "single.h"

namespace lthfunc {
namespace {

using Single = void (*)(const i64*, Workspace&);

template <typename Row, void (*Function)(const Row&, Workspace&)>
void called(const i64* row, Workspace& m) {
  Function(*reinterpret_cast<const Row*>(row), m);
}

Single single_of(const i64* row) {
  switch (row[0]) {
    case op_load_inputs: return called<load_inputs_row, load_inputs_single>;
    case op_store_outputs: return called<store_outputs_row, store_outputs_single>;
    case op_products: return called<products_row, products_single>;
    case op_dense_convolutions: return called<dense_convolutions_row, dense_convolutions_single>;
    case op_dense_products: return called<dense_products_row, dense_products_single>;
    case op_max_pool: return called<max_pool_row, max_pool_single>;
    case op_average_pool: return called<average_pool_row, average_pool_single>;
    case op_pointwise: return called<pointwise_row, pointwise_single>;
    case op_add: return called<add_row, add_single>;
    case op_normalise: return called<normalise_row, normalise_single>;
    case op_copy: return called<copy_row, copy_single>;
    case op_fill: return called<fill_row, fill_single>;
    case op_combine: return called<combine_row, combine_single>;
    case op_load_numbers: return called<load_numbers_row, load_numbers_single>;
    case op_resample: return called<resample_row, resample_single>;
    case op_token_normalise: return called<token_normalise_row, token_normalise_single>;
    case op_attention: return called<attention_row, attention_single>;
    case op_recurrent_cell: return called<recurrent_cell_row, recurrent_cell_single>;
    case op_embed: return called<embed_row, embed_single>;
    case op_batch_statistics: {
      const auto& op = *reinterpret_cast<const batch_statistics_row*>(row);
      return op.training ? nullptr : called<batch_statistics_row, batch_statistics_single>;
    }
    default: return nullptr;
  }
}

bool not_negative(const Program& program, i64 first, i64 count) {
  const i32* const entries = program.lists.data() + first;
  return std::all_of(entries, entries + count, [](i32 entry) { return entry >= 0; });
}

// Whether an instruction's columns are those that these kernels read: outputs side by side, offsets that are not
// negative, weights where the values are, and operands that lie side by side or are repeated. What is verified for
// vectors then holds for positions counted in floats.
bool reads_plainly(const i64* row, const Program& program) {
  if (head(row).opcode == op_products) {
    const auto& op = *reinterpret_cast<const products_row*>(row);
    return op.which < 0 && op.limits < 0 && (op.across || (op.out_x == 1 && !op.accumulate)) && !op.out_half &&
           op.norm < 0 && not_negative(program, op.offsets, program.lists[op.starts + op.rows * op.blocks]);
  }
  if (head(row).opcode == op_dense_convolutions) {
    const auto& op = *reinterpret_cast<const dense_convolutions_row*>(row);
    return op.spread < 0 && op.out_x == 1 && not_negative(program, op.offsets, op.entries);
  }
  if (head(row).opcode == op_dense_products) {
    const auto& op = *reinterpret_cast<const dense_products_row*>(row);
    return op.spread < 0 && op.value_step == 1;
  }
  if (head(row).opcode == op_combine) {
    const auto& op = *reinterpret_cast<const combine_row*>(row);
    return (op.a_column == 0 || op.a_column == 1) && (op.b_column == 0 || op.b_column == 1);
  }
  if (head(row).opcode == op_attention) {
    const auto& op = *reinterpret_cast<const attention_row*>(row);
    return op.k_place == 1 && op.v_place == 1 && op.threshold == 0;
  }
  if (head(row).opcode == op_normalise) {
    const auto& op = *reinterpret_cast<const normalise_row*>(row);
    return !op.in_half && !op.out_half && !op.b_half;
  }
  if (head(row).opcode == op_copy) {
    const auto& op = *reinterpret_cast<const copy_row*>(row);
    return !op.in_half && !op.out_half;
  }
  if (head(row).opcode == op_fill) return !reinterpret_cast<const fill_row*>(row)->out_half;
  if (head(row).opcode == op_embed) return reinterpret_cast<const embed_row*>(row)->spread < 0;
  return true;
}

}  // namespace

bool has_single(const Program& program) {
  for (i64 k = 0; k < program.count(); ++k)
    if (!single_of(program.row(k)) || !reads_plainly(program.row(k), program)) return false;
  return true;
}

void run_single(const Program& program, Workspace& workspace) {
  for (i64 k = 0; k < program.count(); ++k) single_of(program.row(k))(program.row(k), workspace);
}

}  // namespace lthfunc
