// The bounds that kernels' contracts are made of, and the walk through a program.
#include "verify.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "single.h"

namespace lthfunc {
namespace {

using wide = __int128;  // no sum of products of columns overflows it

// No column is larger, so that no product of two overflows 64 bits; but thresholds, which are never multiplied.
constexpr i64 LARGEST = i64{1} << 31, LARGEST_THRESHOLD = i64{1} << 32;
// Rows of what an optimiser keeps, at most: two moments, a sum and an average are four.
constexpr i64 MOST_KEPT = 16;

constexpr struct {
  const char* name;
  i64 columns;
  const char* names;
  void (*verify)(const i64*, Verifier&);
} instructions[] = {
#define INSTRUCTION(name, ...)                            \
  {#name, sizeof(name##_row) / sizeof(i64), #__VA_ARGS__, \
   [](const i64* row, Verifier& v) { verify(*reinterpret_cast<const name##_row*>(row), v); }},
#include "instructions.def"
};

// What the names of an instruction's columns say about them.
struct Columns {
  std::vector<std::string> names;
  std::vector<i64> buffers;  // where a buffer lies: those that have a step to the next tile
  std::vector<i64> halved;   // for each of them, the column that tells whether its numbers have 16 bits; or -1
  i64 threshold = -1;

  explicit Columns(const char* list) {
    std::istringstream text(list);
    for (std::string name; std::getline(text >> std::ws, name, ',');) names.push_back(name);
    for (std::size_t k = 0; k < names.size(); ++k) {
      if (std::count(names.begin(), names.end(), names[k] + "_tile")) {
        buffers.push_back(HEAD + static_cast<i64>(k));
        const auto half = std::find(names.begin(), names.end(), names[k] + "_half");
        halved.push_back(half == names.end() ? -1 : HEAD + (half - names.begin()));
      }
      if (names[k] == "threshold") threshold = HEAD + static_cast<i64>(k);
    }
  }
  bool is_buffer(const char* name) const {
    return std::any_of(buffers.begin(), buffers.end(),
                       [&](i64 column) { return names[static_cast<std::size_t>(column - HEAD)] == name; });
  }
};
const Columns& columns_of(i64 opcode) {
  static const std::vector<Columns> all = [] {
    std::vector<Columns> found;
    for (const auto& each : instructions) found.emplace_back(each.names);
    return found;
  }();
  return all[static_cast<std::size_t>(opcode)];
}

// Whether an instruction may be split like this: no part of it then reads or writes what another one writes.
bool can_split(i64 opcode, i64 split) {
  switch (opcode) {
    case op_products: return split == split_by_rows || split == split_by_tiles;
    case op_weight_gradients: return split == split_by_rows || split == split_sums || split == split_by_tiles;
    case op_dense_convolution_gradients: return split == split_by_rows || split == split_sums;
    case op_group_normalise_gradient:
    case op_rolling_gradients:
    case op_token_normalise_gradient: return split == split_sums;
    // Each row takes all tiles, or none.
    case op_dense_products:
    case op_spread_weights:
    case op_transpose_weights:
    case op_by_example:
    case op_dense_weight_gradients:
    case op_batch_statistics:
    case op_gradient_means:
    case op_number_gradients:
    case op_keep_gradients:
    case op_add_gradients:
    case op_embedding_gradient:
    case op_gather_gradients:
    case op_token_attention:
    case op_token_attention_gradient:
    case op_place_gradients:
    case op_accumulate:
    case op_clip_values:
    case op_square_sums:
    case op_clip_norm:
    case op_adam:
    case op_sgd:
    case op_average: return split == split_by_rows;
    case op_cross_entropy:
    case op_largest_gradients:
    case op_largest_embedding_gradients:
    case op_largest_number_gradients:
    case op_average_constants: return split == split_whole;
    default: return split == split_by_tiles;
  }
}

}  // namespace

void Verifier::refuse(const std::string& why) const {
  const i64 opcode = head(program.row(at_)).opcode;
  const char* const name = opcode >= 0 && opcode < opcodes ? instructions[opcode].name : "unknown";
  throw std::invalid_argument("lthfunc: instruction " + std::to_string(at_) + " (" + name + "): " + why);
}

void Verifier::require(bool holds, const char* what) const {
  if (!holds) refuse(what);
}

void Verifier::check() {
  const i64 longest = program.width;
  for (at_ = 0; at_ < program.count(); ++at_) {
    const i64* const row = program.row(at_);
    const Head& h = head(row);
    require(h.opcode >= 0 && h.opcode < opcodes, "unknown opcode");
    require(instructions[h.opcode].columns <= longest, "columns are missing");
    require(can_split(h.opcode, h.split), "cannot be split like this");
    require(h.rows > 0 && h.rows < LARGEST && h.work >= 0 && h.work < (i64{1} << 52), "rows and work out of range");
    const Columns& columns = columns_of(h.opcode);
    for (i64 k = HEAD; k < instructions[h.opcode].columns; ++k)
      require(row[k] >= -1 && row[k] < (k == columns.threshold ? LARGEST_THRESHOLD : LARGEST),
              "a column is out of range");
    instructions[h.opcode].verify(row, *this);
    if (program.local == 0) continue;
    for (std::size_t k = 0; k < columns.buffers.size(); ++k) {
      const i64 column = columns.buffers[k], half = columns.halved[k];
      const bool whole = half < 0 || row[half] == 0;
      if (whole && row[column] >= vectors() - program.local) program.local_places.push_back({at_, column});
    }
  }
  if (outputs_until_ > outputs_) throw std::invalid_argument("lthfunc: outputs that no instruction stores");
  program.single = has_single(program);
}

Range Verifier::inside(const char* name, const char* memory, i64 size, i64 first, std::initializer_list<Axis> axes,
                       Range beside) const {
  wide reach = 0;
  for (const Axis& axis : axes) {
    if (axis.count < 0 || axis.step < 0) refuse(std::string(name) + ": negative size or step");
    if (axis.count == 0) return {0, -1};
    reach += static_cast<wide>(axis.count - 1) * axis.step;
  }
  if (first < 0 || static_cast<wide>(first) + beside.low < 0 || first + reach + beside.high >= size)
    refuse(std::string(name) + " reaches outside the " + memory);
  return {first + beside.low, static_cast<i64>(first + reach + beside.high)};
}

// An index may step nowhere, where what it reads is the same for all; but not more often than there are places for
// what it writes, so that a program that isn't one ends. The first index counts tiles, which a run bounds.
void Verifier::bounded(const char* name, i64 places, std::initializer_list<Axis> axes) const {
  wide runs = 1;
  for (const Axis* axis = axes.begin() + 1; axis < axes.end(); ++axis)
    if (axis->count > 0 && (runs *= axis->count) > places) refuse(std::string(name) + ": more places than there are");
}

void Verifier::movable(const char* name, i64 first, i64 least, i64 last) const {
  const i64 from = vectors() - program.local;
  if (program.local == 0 || last < from || least > last) return;
  const Head& h = head(program.row(at_));
  if (first < from || least < from || !columns_of(h.opcode).is_buffer(name) ||
      (h.split != split_by_tiles && h.split != split_sums))
    refuse(std::string(name) + " cannot be a local buffer");
}

void Verifier::activations(const char* name, i64 first, std::initializer_list<Axis> axes, Range beside) const {
  bounded(name, program.vectors, axes);
  const Range places = inside(name, "activations", vectors(), first, axes, beside);
  movable(name, first, places.low, places.high);
}

// Whole vectors: what lies between them is in one of them.
void Verifier::floats(const char* name, i64 vector, std::initializer_list<Axis> axes, Range beside) const {
  const Range places = inside(name, "activations", vectors() * LANES, vector * LANES, axes, beside);
  if (places.low <= places.high) movable(name, vector, places.low / LANES, places.high / LANES);
}

void Verifier::activations_of(const char* name, i64 half, i64 first, std::initializer_list<Axis> axes,
                              Range beside) const {
  if (half == 0) return activations(name, first, axes, beside);
  require(half == 1, "half: 0 or 1");
  bounded(name, 2 * program.vectors, axes);
  inside(name, "activations", 2 * (vectors() - program.local), first, axes, beside);
}

void Verifier::values(const char* name, i64 first, std::initializer_list<Axis> axes, Range beside) const {
  inside(name, "values", program.values, first, axes, beside);
}

void Verifier::inputs(i64 count, i64 kind) {
  require(kind >= 0 && kind < kinds && (program.kind == -1 || program.kind == kind), "kind: one known kind");
  program.kind = kind;
  program.stored = std::max(program.stored, count);
  program.inputs_until = at_ + 1;
}

void Verifier::input_gradients(i64 count) {
  program.input_gradients = std::max(program.input_gradients, count);
  program.gradients_from = std::min(program.gradients_from, at_);
}

void Verifier::outputs(i64 first, i64 count) {
  outputs_ += count;
  outputs_until_ = std::max(outputs_until_, first + count);
  program.features = std::max(program.features, outputs_until_);
}

void Verifier::gradients(const char* name, i64 first, i64 count) {
  program.writes_gradients = true;
  program.gradients_from = std::min(program.gradients_from, at_);
  inside(name, "gradients", program.numbers, first, {{count, 1}}, {});
}

void Verifier::constants(const char* name, i64 first, i64 count) const {
  inside(name, "constants", program.constants, first, {{count, 1}}, {});
}

void Verifier::kept(const char* name, i64 row) {
  if (row < 0 || row >= MOST_KEPT) refuse(std::string(name) + ": no such row");
  program.kept = std::max(program.kept, row + 1);
}

Range Verifier::list(const char* name, i64 first, i64 count, i64 step) const {
  inside(name, "lists", static_cast<i64>(program.lists.size()), first, {{count, step}}, {});
  if (count == 0) return {};
  const i32* const entries = program.lists.data() + first;
  Range found{entries[0], entries[0]};
  for (i64 k = 1; k < count; ++k) {
    found.low = std::min<i64>(found.low, entries[k * step]);
    found.high = std::max<i64>(found.high, entries[k * step]);
  }
  return found;
}

Range Verifier::offsets(const char* name, i64 first, i64 count, i64 step) const {
  const Range bytes = list(name, first, count, step);
  for (i64 k = 0; k < count; ++k)
    if (program.lists[first + k * step] % BYTES) refuse(std::string(name) + ": an offset between vectors");
  return {bytes.low / BYTES, bytes.high / BYTES};
}

i64 Verifier::starts(const char* name, i64 first, i64 count) const {
  if (list(name, first, count).low < 0) refuse(std::string(name) + ": a negative start");
  const i32* const entries = program.lists.data() + first;
  for (i64 k = 1; k < count; ++k)
    if (entries[k] < entries[k - 1]) refuse(std::string(name) + ": a list ends before it starts");
  return entries[count - 1];
}

i64 Verifier::survivors(i64 first, i64 bits, i64 words, i64 rows, bool closed) const {
  const i64 end = starts("starts", first, rows + closed);
  require(words >= 0 && words < LARGEST / rows, "words: out of range");
  const Range masks = list("bits", bits, rows * words);
  require(masks.low >= 0 && masks.high < 1 << LANES, "bits: not masks of 16");
  i64 most = 0;
  for (i64 row = 0; row < rows; ++row) {
    i64 count = 0;
    for (i64 word = row * words; word < (row + 1) * words; ++word)
      count += __builtin_popcount(program.lists[bits + word]);
    const i64 start = program.lists[first + row];
    require(!closed || start + count == program.lists[first + row + 1],
            "bits: other survivors than the row starts say");
    most = std::max(most, start + count);
  }
  return closed ? end : most;
}

}  // namespace lthfunc
