// One example of tokens: normalisation and attention, with vectors along what lies side by side: the channels of a
// token alone, or the places of a sequence.
#include <algorithm>
#include <cmath>
#include <vector>

#include "single.h"

namespace lthfunc {
namespace {

// The first `count` of 16 numbers among the activations, and zeros. What lies behind them is read as well: floats fill
// a part of the memory that vectors are verified for.
LTHFUNC_INLINE vec some(const float* from, i64 count) {
  return count >= LANES ? load(from) : where(first_lanes(count), load(from), vec{});
}

struct TokenNorm {
  const float *weight, *bias;  // nullptr for none
  float share, epsilon;
  bool centred, relu;
};

void normalise_token(const TokenNorm& norm, const float* in, float* out, i64 channels) {
  vec total{}, squares{};
  for (i64 c = 0; norm.centred && c < channels; c += LANES) total += some(in + c, channels - c);
  const float mean = sum(total) * norm.share;
  for (i64 c = 0; c < channels; c += LANES) {
    const vec apart = where(first_lanes(channels - c), load(in + c) - mean, vec{});
    squares += apart * apart;
  }
  const float deviation = 1.0f / std::sqrt(sum(squares) * norm.share + norm.epsilon);
  for (i64 c = 0; c < channels; c += LANES) {
    const i64 count = std::min<i64>(LANES, channels - c);
    vec value = (load(in + c) - mean) * deviation;
    if (norm.weight) value = value * load(norm.weight + c, count);
    if (norm.bias) value = value + load(norm.bias + c, count);
    store(out + c, norm.relu ? rectified(value) : value, count);
  }
}

// Up to 16 places side by side.
void normalise_places(const TokenNorm& norm, const float* in, i64 in_channel, float* out, i64 out_channel, i64 channels,
                      i64 count) {
  vec mean{}, squares{};
  for (i64 c = 0; norm.centred && c < channels; ++c) mean += load(in + c * in_channel);
  mean = mean * norm.share;
  for (i64 c = 0; c < channels; ++c) {
    const vec apart = load(in + c * in_channel) - mean;
    squares += apart * apart;
  }
  const vec deviation = 1.0f / root(squares * norm.share + norm.epsilon);
  for (i64 c = 0; c < channels; ++c) {
    const float weight = norm.weight ? norm.weight[c] : 1.0f, bias = norm.bias ? norm.bias[c] : 0.0f;
    const vec value = (load(in + c * in_channel) - mean) * deviation * weight + bias;
    store(out + c * out_channel, norm.relu ? rectified(value) : value, count);
  }
}

}  // namespace

void token_normalise_single(const token_normalise_row& op, Workspace& m) {
  const TokenNorm norm{op.weight < 0 ? nullptr : m.values + op.weight,
                       op.bias < 0 ? nullptr : m.values + op.bias,
                       1.0f / static_cast<float>(op.channels),
                       m.constants[op.epsilon],
                       op.centred != 0,
                       op.relu != 0};
  const bool alone = op.rows * op.width == 1 && op.in_channel == 1 && op.out_channel == 1;
  if (alone) return normalise_token(norm, place(m, op.in), place(m, op.out), op.channels);
  for (i64 y = 0; y < op.rows; ++y)
    for (i64 x = 0; x < op.width; x += LANES)
      normalise_places(norm, place(m, op.in + y * op.in_row + x), op.in_channel, place(m, op.out + y * op.out_row + x),
                       op.out_channel, op.channels, std::min<i64>(LANES, op.width - x));
}

namespace {

// Blocks of 16 keys whose scores are summed up at once, since each addition waits for the one before.
constexpr int BLOCKS = 4;

// Products of a query with the keys of Blocks · 16 places from `k` on.
template <int Blocks>
LTHFUNC_INLINE void scores_of(const attention_row& op, const float* q, const float* k, float scale, float* scores) {
  vec total[Blocks] = {};
  for (i64 f = 0; f < op.features; ++f) {
    const vec query = broadcast(q[f * op.q_feature]);
    LTHFUNC_UNROLL
    for (int block = 0; block < Blocks; ++block) total[block] += query * load(k + f * op.k_feature + block * LANES);
  }
  LTHFUNC_UNROLL
  for (int block = 0; block < Blocks; ++block) store(scores + block * LANES, total[block] * scale);
}

// Scores into the weights of softmax, but for their sum, whose reciprocal is returned; zeros behind the last key.
float weights_of(float* scores, i64 keys) {
  vec largest = broadcast(-__builtin_inff());
  for (i64 key = 0; key < keys; key += LANES)
    largest = max_or_nan(where(first_lanes(keys - key), load(scores + key), broadcast(-__builtin_inff())), largest);
  float most = largest[0];
  for (int lane = 1; lane < LANES; ++lane) most = max_or_nan(largest[lane], most);
  vec total{};
  for (i64 key = 0; key < keys; key += LANES) {
    const vec weight = where(first_lanes(keys - key), exponential(load(scores + key) - most), vec{});
    store(scores + key, weight);
    total += weight;
  }
  return 1.0f / sum(total);
}

// Means of values, weighted, of up to 16 features.
void weighted(const attention_row& op, const float* weights, i64 keys, const float* v, float share, float* out,
              i64 count) {
  vec totals[LANES] = {};
  for (i64 f = 0; f < count; ++f) {
    const float* const from = v + f * op.v_feature;
    vec total{};
    for (i64 key = 0; key < keys; key += LANES) total += load(weights + key) * some(from + key, keys - key);
    totals[f] = total;
  }
  const vec found = sums_of(totals) * share;
  for (i64 f = 0; f < count; ++f) out[f * op.out_feature] = found[f];
}

}  // namespace

void attention_single(const attention_row& op, Workspace& m) {
  const float scale = m.constants[op.scale];
  std::vector<float> memory(static_cast<std::size_t>(op.keys + BLOCKS * LANES));
  float* const scores = memory.data();
  for (i64 head = 0; head < op.rows; ++head) {
    const float* const k = place(m, op.k + head / op.group * op.k_head);
    const float* const v = place(m, op.v + head / op.group * op.v_head);
    for (i64 query = 0; query < op.queries; ++query) {
      const float* const q = place(m, op.q + head * op.q_head + query * op.q_place);
      float* const out = place(m, op.out + head * op.out_head + query * op.out_place);
      const i64 keys = op.causal ? std::min(op.keys, query + 1) : op.keys;
      i64 key = 0;
      for (; key + (BLOCKS - 1) * LANES < keys; key += BLOCKS * LANES)
        scores_of<BLOCKS>(op, q, k + key, scale, scores + key);
      for (; key < keys; key += LANES) scores_of<1>(op, q, k + key, scale, scores + key);
      const float share = weights_of(scores, keys);
      for (i64 f = 0; f < op.value_features; f += LANES)
        weighted(op, scores, keys, v + f * op.v_feature, share, out + f * op.out_feature,
                 std::min<i64>(LANES, op.value_features - f));
    }
  }
}

}  // namespace lthfunc
