// Causal attention where lanes are tokens: a tile is 16 tokens of one sequence, a few tiles one after the other are all
// of it. A tile's 16 queries are lanes; a key's and a value's numbers are read one by one. So the sums over keys that
// softmax and outputs take are lane by lane.
#include <algorithm>
#include <vector>

#include "verify.h"

namespace lthfunc {
namespace {

// Keys, and features, whose sums stay in registers: sixteen, or four of two registers each and more.
#ifdef __AVX512F__
constexpr int SUMMED = LANES;
#else
constexpr int SUMMED = 4;
#endif

// One head of an operand in one tile.
struct TokenHead {
  vec* first;
  i64 feature;

  vec& at(i64 f) const { return first[f * feature]; }
  // A token's number of a feature.
  float of(i64 f, i64 token) const { return reinterpret_cast<const float*>(&at(f))[token]; }
};

#define LTHFUNC_TOKEN_HEAD(name, begin, tile, number) \
  TokenHead { m.activations + (begin) + (tile) * op.name##_tile + (number) * op.name##_head, op.name##_feature }

// found[key] = sum over features of a[feature] · b[feature][key], for the 16 keys of a tile.
void token_scores(const TokenHead& a, const TokenHead& b, i64 features, vec* found) {
  for (int key = 0; key < LANES; key += SUMMED) {
    vec sum[SUMMED] = {};
    for (i64 f = 0; f < features; ++f) {
      const vec left = a.at(f);
      LTHFUNC_UNROLL
      for (int k = 0; k < SUMMED; ++k) sum[k] += left * b.of(f, key + k);
    }
    LTHFUNC_UNROLL
    for (int k = 0; k < SUMMED; ++k) found[key + k] = sum[k];
  }
}

// Which queries of a tile read one of its own keys: those from it on.
ivec reads_key(int key) { return lane_numbers() >= broadcast_int(key); }

template <typename Row>
void verify_tokens(const Row& op, const Verifier& v) {
  v.require(op.tiles > 0 && op.group > 0 && op.features > 0 && op.value_features > 0, "sizes: positive");
  const i64 heads = op.rows * op.group;
#define LTHFUNC_TOKENS(label, name, begin, heads, count) \
  v.activations(label, begin, {{v.tiles, op.name##_tile}, {heads, op.name##_head}, {count, op.name##_feature}})
  LTHFUNC_TOKENS("q", q, op.q, heads, op.features);
  LTHFUNC_TOKENS("k", k, op.k, op.rows, op.features);
  LTHFUNC_TOKENS("v", v, op.v, op.rows, op.value_features);
  LTHFUNC_TOKENS("out", out, op.out, heads, op.value_features);
  v.constants("scale", op.scale);
}

}  // namespace

// q, out: of `group` heads for each row, the features of 16 tokens in each tile; k, v: of one. out is none of the
// others. tiles: of a sequence.
void verify(const token_attention_row& op, Verifier& v) { verify_tokens(op, v); }

void token_attention(const token_attention_row& op, Workspace& m, Part part) {
  const float scale = m.constants[op.scale];
  std::vector<vec> memory(static_cast<std::size_t>(std::min(op.tiles, part.tiles) * LANES));
  vec* const weights = memory.data();
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    const i64 begin = tile / op.tiles * op.tiles;
    for (i64 head = part.row * op.group; head < part.rows * op.group; ++head) {
      const i64 other = head / op.group;
      const auto q = LTHFUNC_TOKEN_HEAD(q, op.q, tile, head), out = LTHFUNC_TOKEN_HEAD(out, op.out, tile, head);
      vec most = broadcast(-__builtin_inff()), total{};
      for (i64 from = begin; from <= tile; ++from) {
        vec* const scores = weights + (from - begin) * LANES;
        token_scores(q, LTHFUNC_TOKEN_HEAD(k, op.k, from, other), op.features, scores);
        for (int key = 0; key < LANES; ++key) {
          scores[key] = scores[key] * scale;
          if (from == tile) scores[key] = where(reads_key(key), scores[key], broadcast(-__builtin_inff()));
          most = max_or_nan(scores[key], most);
        }
      }
      const i64 keys = (tile - begin + 1) * LANES;
      for (i64 key = 0; key < keys; ++key) {
        weights[key] = exponential(weights[key] - most);
        if (key >= keys - LANES)
          weights[key] = where(reads_key(static_cast<int>(key - (keys - LANES))), weights[key], vec{});
        total += weights[key];
      }
      total = 1.0f / total;
      for (i64 f = 0; f < op.value_features; f += SUMMED) {
        const int some = static_cast<int>(std::min<i64>(SUMMED, op.value_features - f));
        vec sum[SUMMED] = {};
        for (i64 from = begin; from <= tile; ++from) {
          const auto v = LTHFUNC_TOKEN_HEAD(v, op.v, from, other);
          const vec* const mine = weights + (from - begin) * LANES;
          if (some == SUMMED) {
            for (int key = 0; key < LANES; ++key) {
              LTHFUNC_UNROLL
              for (int k = 0; k < SUMMED; ++k) sum[k] += mine[key] * v.of(f + k, key);
            }
          } else {
            for (int k = 0; k < some; ++k)
              for (int key = 0; key < LANES; ++key) sum[k] += mine[key] * v.of(f + k, key);
          }
        }
        for (int k = 0; k < some; ++k) out.at(f + k) = sum[k] * total;
      }
    }
  }
}

// Constants that are others for each token of a sequence: 16 for each of its tiles and each row, side by side.
void verify(const load_places_row& op, Verifier& v) {
  v.require(op.tiles > 0, "tiles: positive");
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

#undef LTHFUNC_TOKENS
#undef LTHFUNC_TOKEN_HEAD

}  // namespace lthfunc
