// Token by token: keys and values of earlier tokens stay among the activations, where each token's attention reads
// them, and so do the states of recurrent layers.
#include "decoding.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <stdexcept>

#include "single.h"

namespace lthfunc {
namespace {

// The number of an instruction's column.
template <typename Row>
i64 number_of(i64 Row::* column) {
  const Row row{};
  return &(row.*column) - reinterpret_cast<const i64*>(&row);
}

// The least number that a column which moves may hold, since attention reads one key or more; -1: it cannot move. What
// an instruction reads or writes at an earlier place lies inside its memory, since it does at the last.
i64 least_of(i64 opcode, i64 column) {
  switch (opcode) {
    case op_attention: return column == number_of(&attention_row::keys) ? 1 : -1;
    case op_copy: return column == number_of(&copy_row::out) ? 0 : -1;
    case op_load_numbers: return column == number_of(&load_numbers_row::first) ? 0 : -1;
    default: return -1;
  }
}

// The lists are those of the workspace.
Program without_lists(const Program& program) {
  Program found{program.rows,  program.width,  {}, program.vectors, program.values, program.constants,
                program.batch, program.numbers};
  found.features = program.features;
  found.single = program.single;
  return found;
}

void hold_to(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("lthfunc: ") + what);
}

// The number of the token that a draw chooses. room: for as many numbers.
i64 chosen(const float* logits, i64 count, double draw, Drawing drawing, std::vector<double>& room) {
  const float* const likeliest = std::max_element(logits, logits + count);
  if (*likeliest == HUGE_VALF || std::any_of(logits, logits + count, [](float each) { return each != each; }))
    throw std::out_of_range("the network's outputs are not numbers");
  if (drawing.temperature == 0) return likeliest - logits;
  double least = -HUGE_VAL;
  room.assign(logits, logits + count);
  if (drawing.most > 0 && drawing.most < count) {
    std::nth_element(room.begin(), room.begin() + (drawing.most - 1), room.end(), std::greater<double>());
    least = room[static_cast<std::size_t>(drawing.most - 1)];
  }
  double total = 0;
  for (i64 k = 0; k < count; ++k) {
    const double apart = (static_cast<double>(logits[k]) - *likeliest) / drawing.temperature;
    total += logits[k] < least ? 0.0 : std::exp(apart);
    room[static_cast<std::size_t>(k)] = total;
  }
  const auto found = std::upper_bound(room.begin(), room.end(), draw * total);
  return std::min<i64>(found - room.begin(), count - 1);
}

}  // namespace

Decoder::Decoder(const Program& program, std::vector<Moving> moving, std::vector<State> states, i64 places,
                 const Workspace& workspace, bool threads)
    : program_(without_lists(program)),
      moving_(std::move(moving)),
      states_(std::move(states)),
      places_(places),
      threads_(threads),
      workspace_(workspace),
      place_(places - 1) {
  hold_to(places_ > 0 && places_ < i64{1} << 31, "places: positive");
  hold_to(program.kind == kind_int64 && program.stored == 1 && program.local == 0, "takes a program for one token");
  for (const Moving& each : moving_) {
    hold_to(each.row >= 0 && each.row < program.count() && least(each) >= 0, "a column that cannot move");
    hold_to(each.step > 0 && each.step < i64{1} << 31 && at(each) >= each.step * (places_ - 1), "moves too far");
  }
  for (const State& each : states_)
    hold_to(each.first >= 0 && each.count >= 0 && each.count <= program.vectors - each.first, "a state outside");
  move(0);  // where columns that are named twice have moved twice
  for (const Moving& each : moving_) hold_to(at(each) >= least(each), "moves too far");
}

i64 Decoder::least(const Moving& each) const { return least_of(head(program_.row(each.row)).opcode, each.column); }

i64& Decoder::at(const Moving& each) {
  return program_.rows[static_cast<std::size_t>(each.row * program_.width + each.column)];
}

void Decoder::move(i64 place) {
  for (const Moving& each : moving_) at(each) += each.step * (place - place_);
  place_ = place;
}

void Decoder::begin() {
  const i64 floats = program_.single ? 1 : LANES;
  for (const State& each : states_)
    std::fill_n(lthfunc::place(workspace_, each.first * floats), each.count * floats, 0.0f);
}

void Decoder::decode(i64 token, i64 place, float* logits) {
  move(place);
  if (place == 0) begin();
  workspace_.inputs = &token;
  workspace_.outputs = logits;
  if (program_.single)
    run_single(program_, workspace_);
  else
    run_step(program_, 0, program_.count(), workspace_, threads_);
}

void Decoder::generate(i64* tokens, i64 given, i64 count, const double* draws, Drawing drawing) {
  std::vector<float> logits(static_cast<std::size_t>(program_.features));
  std::vector<double> room;
  i64 begin = 0, next = 0;  // of the sequence, and the token that was not read yet
  for (i64 made = 0; made < count; ++made) {
    const i64 length = given + made;
    if (length - begin > places_) begin = next = length - std::max<i64>(1, places_ / 2);
    for (; next < length; ++next) decode(tokens[next], next - begin, logits.data());
    tokens[length] = chosen(logits.data(), program_.features, draws[made], drawing, room);
  }
}

}  // namespace lthfunc
