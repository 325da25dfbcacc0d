// The bounds that kernels' contracts are made of, and the walk through a program.
#include "verify.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "single.h"

namespace lthfunc {
namespace {

using wide = __int128;  // no sum of products of columns overflows it

// No column is larger, so that no product of two overflows 64 bits.
constexpr i64 LARGEST = i64{1} << 32;
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

// Columns of an instruction that say where a buffer lies: those that have a step to the next tile.
std::vector<i64> buffers_of(const char* names) {
  std::vector<std::string> columns;
  std::istringstream text(names);
  for (std::string name; std::getline(text >> std::ws, name, ',');) columns.push_back(name);
  std::vector<i64> found;
  for (std::size_t k = 0; k < columns.size(); ++k)
    if (std::count(columns.begin(), columns.end(), columns[k] + "_tile")) found.push_back(HEAD + static_cast<i64>(k));
  return found;
}

bool sums_up(i64 opcode) {
  return opcode == op_weight_gradients || opcode == op_dense_convolution_gradients ||
         opcode == op_group_normalise_gradient || opcode == op_token_normalise_gradient;
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
    require(h.split >= 0 && h.split < splits && (h.split != split_sums || sums_up(h.opcode)),
            "cannot be split like this");
    require(h.rows > 0 && h.rows < LARGEST && h.work >= 0 && h.work < (i64{1} << 52), "rows and work out of range");
    for (i64 k = HEAD; k < instructions[h.opcode].columns; ++k)
      require(row[k] >= -1 && row[k] < LARGEST, "a column is out of range");
    instructions[h.opcode].verify(row, *this);
    for (const i64 column : buffers_of(instructions[h.opcode].names))
      if (row[column] >= vectors() - program.local) program.local_places.push_back({at_, column});
  }
  program.single = has_single(program);
}

void Verifier::inside(const char* name, const char* memory, i64 size, i64 first, std::initializer_list<Axis> axes,
                      Range beside) const {
  wide reach = 0;
  for (const Axis& axis : axes) {
    if (axis.count < 0 || axis.step < 0) refuse(std::string(name) + ": negative size or step");
    if (axis.count == 0) return;
    reach += static_cast<wide>(axis.count - 1) * axis.step;
  }
  if (first < 0 || static_cast<wide>(first) + beside.low < 0 || first + reach + beside.high >= size)
    refuse(std::string(name) + " reaches outside the " + memory);
}

void Verifier::activations(const char* name, i64 first, std::initializer_list<Axis> axes, Range beside) const {
  inside(name, "activations", vectors(), first, axes, beside);
}

void Verifier::floats(const char* name, i64 vector, std::initializer_list<Axis> axes, Range beside) const {
  inside(name, "activations", vectors() * LANES, vector * LANES, axes, beside);
}

void Verifier::values(const char* name, i64 first, std::initializer_list<Axis> axes, Range beside) const {
  inside(name, "values", program.numbers, first, axes, beside);
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
