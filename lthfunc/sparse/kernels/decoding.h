// A network that is given a sequence token by token: its program is one for a single token, in which a few columns move
// with the token's place.
#pragma once

#include <vector>

#include "execution.h"

namespace lthfunc {

// A column of an instruction, which for each place before the last holds `step` less than the program says.
struct Moving {
  i64 row, column, step;
};

// Places of the activations that hold zeros where a sequence begins: the states of recurrent layers. They are counted
// as the program counts its own: in floats where it is one for single examples, in vectors otherwise.
struct State {
  i64 first, count;
};

// How tokens are drawn. temperature: 0 for the likeliest one. most: how many of the likeliest may be drawn; 0 for all.
struct Drawing {
  double temperature;
  i64 most;
};

class Decoder {
 public:
  // places: of a sequence, of which `program` is for the last. Throws std::invalid_argument where a column cannot move,
  // or not as far, or where a state lies outside its memory. workspace: of one example, without inputs and outputs.
  Decoder(const Program& program, std::vector<Moving> moving, std::vector<State> states, i64 places,
          const Workspace& workspace, bool threads);

  // The logits of what follows a token at a place, all places before which were asked for in turn.
  void decode(i64 token, i64 place, float* logits);
  // Fills tokens[given …] one by one, each from those before it. draws: a number in [0, 1) for each of them. Where a
  // sequence has no place left, the last half of it is read again as one of its own.
  void generate(i64* tokens, i64 given, i64 count, const double* draws, Drawing drawing);

 private:
  i64 least(const Moving& each) const;
  i64& at(const Moving& each);
  void move(i64 place);
  void begin();

  Program program_;
  const std::vector<Moving> moving_;
  const std::vector<State> states_;
  const i64 places_;
  const bool threads_;
  Workspace workspace_;
  i64 place_;  // that program_ is for
};

}  // namespace lthfunc
