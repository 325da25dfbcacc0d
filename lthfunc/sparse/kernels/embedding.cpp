// Rows of a table by the numbers of tokens, which are floats in tiles, and the gradient of the table.
#include <algorithm>

#include "single.h"
#include "tokens.h"

namespace lthfunc {
// tokens: a vector a place. The table: rows of `channels` floats, `value_row` apart, at a vector of the activations
// (spread) or among the values. out: (channels, places) of each tile.
void verify(const embed_row& op, Verifier& v) {
  v.require(op.vocabulary > 0 && op.vocabulary <= 1 << 24 && op.channels > 0, "vocabulary and channels: out of range");
  v.activations("tokens", op.tokens, {{v.tiles, op.tokens_tile}, {op.places, 1}});
  v.activations("out", op.out, {{v.tiles, op.out_tile}, {op.channels, op.out_channel}, {op.places, 1}});
  if (op.spread >= 0)
    v.floats("spread", op.spread, {{op.vocabulary, op.value_row}, {op.channels, 1}});
  else
    v.values("values", op.values, {{op.vocabulary, op.value_row}, {op.channels, 1}});
}

void embed(const embed_row& op, Workspace& m, Part part) {
  const float* const table =
      op.spread < 0 ? m.values + op.values : reinterpret_cast<const float*>(m.activations + op.spread);
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    const i64 examples = std::min<i64>(LANES, m.examples - tile * LANES);
    for (i64 place = 0; place < op.places; ++place) {
      const vec tokens = m.activations[op.tokens + tile * op.tokens_tile + place];
      const float* from[LANES];
      for (i64 lane = 0; lane < LANES; ++lane)
        from[lane] = table + (lane < examples ? row_of(tokens[lane], op.vocabulary) : 0) * op.value_row;
      vec* const out = m.activations + op.out + tile * op.out_tile + place;
      for (i64 channel = 0; channel < op.channels; channel += LANES) {
        const i64 count = std::min<i64>(LANES, op.channels - channel);
        vec block[LANES];
        for (i64 lane = 0; lane < LANES; ++lane) block[lane] = load(from[lane] + channel, count);
        transpose(block);
        for (i64 k = 0; k < count; ++k) out[(channel + k) * op.out_channel] = block[k];
      }
    }
  }
}

void embed_single(const embed_row& op, Workspace& m) {
  const float *const tokens = place(m, op.tokens), *const table = m.values + op.values;
  float* const out = place(m, op.out);
  for (i64 p = 0; p < op.places; ++p) {
    const float* const from = table + row_of(tokens[p], op.vocabulary) * op.value_row;
    for (i64 channel = 0; channel < op.channels; ++channel) out[channel * op.out_channel + p] = from[channel];
  }
}

// grad: as out above. room: the table's gradient, rows of `words` vectors, of which a row of the instruction is 16
// channels. padding: a token without a gradient; -1 for none.
void verify(const embedding_gradient_row& op, Verifier& v) {
  v.require(op.vocabulary > 0 && op.vocabulary <= 1 << 24 && op.channels > (op.rows - 1) * LANES &&
                op.channels <= op.rows * LANES && op.words >= op.rows,
            "vocabulary and channels: out of range");
  v.activations("tokens", op.tokens, {{v.tiles, op.tokens_tile}, {op.places, 1}});
  v.activations("grad", op.grad, {{v.tiles, op.grad_tile}, {op.channels, op.grad_channel}, {op.places, 1}});
  v.activations("room", op.room, {{op.vocabulary, op.words}, {op.rows, 1}});
}

// Tokens are added in their order by whoever has the channels, so that sums don't depend on the number of threads.
void embedding_gradient(const embedding_gradient_row& op, Workspace& m, Part part) {
  for (i64 row = part.row; row < part.rows; ++row) {
    vec* const room = m.activations + op.room + row;
    for (i64 token = 0; token < op.vocabulary; ++token) room[token * op.words] = vec{};
    const i64 count = std::min<i64>(LANES, op.channels - row * LANES);
    for (i64 tile = 0; tile < m.tiles; ++tile) {
      const i64 examples = std::min<i64>(LANES, m.examples - tile * LANES);
      for (i64 place = 0; place < op.places; ++place) {
        const vec tokens = m.activations[op.tokens + tile * op.tokens_tile + place];
        const vec* const grad = m.activations + op.grad + tile * op.grad_tile + row * LANES * op.grad_channel + place;
        vec block[LANES];
        for (i64 k = 0; k < LANES; ++k) block[k] = k < count ? grad[k * op.grad_channel] : vec{};
        transpose(block);
        for (i64 lane = 0; lane < examples; ++lane) {
          const i64 token = row_of(tokens[lane], op.vocabulary);
          if (token != op.padding) room[token * op.words] += block[lane];
        }
      }
    }
  }
}

// places: of a row's number among the floats from vector `in` on.
void verify(const gather_gradients_row& op, Verifier& v) {
  v.floats("in", op.in, {}, v.list("places", op.places, op.rows));
  v.gradients("gradients", op.gradients, op.rows);
}

void gather_gradients(const gather_gradients_row& op, Workspace& m, Part part) {
  const float* const in = reinterpret_cast<const float*>(m.activations + op.in);
  const i32* const places = m.lists + op.places;
  float* const gradients = m.gradients + op.gradients;
  for (i64 k = part.row; k < part.rows; ++k) gradients[k] = in[places[k]];
}

namespace {

template <typename Row>
void verify_kept(const Row& op, Verifier& v) {
  v.require(op.count > 0 && op.share > 0 && op.rows * op.share >= op.count, "count and share: out of range");
  v.gradients("gradients", op.gradients, op.count);
  v.floats("room", op.room, {{op.count, 1}});
}

// function(gradient, number of the room) for the rows of a part.
template <typename Row, typename Function>
void each_kept(const Row& op, const Workspace& m, Part part, Function function) {
  float* const gradients = m.gradients + op.gradients;
  float* const room = reinterpret_cast<float*>(m.activations + op.room);
  const i64 end = std::min(op.count, part.rows * op.share);
  for (i64 k = part.row * op.share; k < end; ++k) function(gradients[k], room[k]);
}

}  // namespace

// gradients: `count` of them, side by side, and as many floats from vector `room` on.
void verify(const keep_gradients_row& op, Verifier& v) { verify_kept(op, v); }

void keep_gradients(const keep_gradients_row& op, Workspace& m, Part part) {
  each_kept(op, m, part, [](float& gradient, float& kept) { kept = gradient; });
}

void verify(const add_gradients_row& op, Verifier& v) { verify_kept(op, v); }

void add_gradients(const add_gradients_row& op, Workspace& m, Part part) {
  each_kept(op, m, part, [](float& gradient, float& kept) { gradient += kept; });
}

}  // namespace lthfunc
