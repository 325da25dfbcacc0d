// Tables of places where lanes are tokens: each lane has the row of its token's place in the sequence.
#include <algorithm>

#include "verify.h"

namespace lthfunc {
namespace {

template <typename Row>
void verify_sequences(const Row& op, const Verifier& v) {
  v.require(op.tiles > 0 && op.tiles <= v.tiles, "tiles: of a sequence");
}

// Lists of places have -1 where there is nothing to read.
Range some_of(const Verifier& v, Range entries) {
  v.require(entries.low >= -1, "places: -1 for none");
  return {std::max<i64>(0, entries.low), std::max<i64>(0, entries.high)};
}

}  // namespace

// Constants that are others for each token of a sequence: 16 for each of its tiles and each row, side by side.
void verify(const load_places_row& op, Verifier& v) {
  verify_sequences(op, v);
  v.activations("out", op.out, {{v.tiles, op.out_tile}}, v.list("addresses", op.addresses, op.rows));
  v.constants("first", op.first, op.tiles * op.rows * LANES);
}

void load_places(const load_places_row& op, Workspace& m, Part part) {
  const i32* const addresses = m.lists + op.addresses;
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    const float* const from = m.constants + op.first + tile % op.tiles * op.rows * LANES;
    vec* const out = m.activations + op.out + tile * op.out_tile;
    for (i64 k = part.row; k < part.rows; ++k) out[addresses[k]] = load(from + k * LANES);
  }
}

// The same of a parameter's values. places: behind the first one, 16 for each tile of a sequence and each row; -1 for
// zeros, where a token is none of the sequence or its value was pruned.
void verify(const load_place_values_row& op, Verifier& v) {
  verify_sequences(op, v);
  v.activations("out", op.out, {{v.tiles, op.out_tile}}, v.list("addresses", op.addresses, op.rows));
  v.values("first", op.first, {}, some_of(v, v.list("places", op.places, op.tiles * op.rows * LANES)));
}

void load_place_values(const load_place_values_row& op, Workspace& m, Part part) {
  const i32* const addresses = m.lists + op.addresses;
  const float* const values = m.values + op.first;
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    const i32* const places = m.lists + op.places + tile % op.tiles * op.rows * LANES;
    vec* const out = m.activations + op.out + tile * op.out_tile;
    for (i64 k = part.row; k < part.rows; ++k) {
      vec value{};
      for (int lane = 0; lane < LANES; ++lane) {
        const i32 place = places[k * LANES + lane];
        if (place >= 0) value[lane] = values[place];
      }
      out[addresses[k]] = value;
    }
  }
}

// Their gradients, each the sum over all sequences of one token's. places: of the token's number in the first one, in
// floats behind `grad`; -1 where no token read the value.
void verify(const place_gradients_row& op, Verifier& v) {
  verify_sequences(op, v);
  v.require(v.tiles % op.tiles == 0, "tiles: of whole sequences");
  v.floats("grad", op.grad, {{v.tiles / op.tiles, op.tiles * op.grad_tile * LANES}},
           some_of(v, v.list("places", op.places, op.rows)));
  v.gradients("gradients", op.gradients, op.rows);
}

void place_gradients(const place_gradients_row& op, Workspace& m, Part part) {
  const i32* const places = m.lists + op.places;
  float* const gradients = m.gradients + op.gradients;
  for (i64 k = part.row; k < part.rows; ++k) {
    float total = 0.0f;
    if (places[k] >= 0)
      for (i64 tile = 0; tile + op.tiles <= m.tiles; tile += op.tiles)
        total += reinterpret_cast<const float*>(m.activations + op.grad + tile * op.grad_tile)[places[k]];
    gradients[k] = total;
  }
}

}  // namespace lthfunc
