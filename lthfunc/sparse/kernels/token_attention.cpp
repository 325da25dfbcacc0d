// Attention where lanes are tokens: a tile is 16 tokens of one sequence, a few tiles one after the other are all of it.
// A tile's 16 queries are lanes; a key's and a value's numbers are read one by one. So the sums over keys that softmax
// and outputs take are lane by lane. In the gradient, weights are computed once more, 16 keys by 16 queries at a time;
// transposed, they have keys for lanes, and so have the sums over queries that gradients of keys and values are.
#include <algorithm>
#include <vector>

#include "randomness.h"
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

// sum[k] += sum over a tile's 16 tokens of weights[token] · with[f + k][token], for `some` features from f on.
LTHFUNC_INLINE void add_weighted(const vec* weights, const TokenHead& with, i64 f, int some, vec (&sum)[SUMMED]) {
  if (some == SUMMED) {
    for (int token = 0; token < LANES; ++token) {
      LTHFUNC_UNROLL
      for (int k = 0; k < SUMMED; ++k) sum[k] += weights[token] * with.of(f + k, token);
    }
  } else {
    for (int k = 0; k < some; ++k)
      for (int token = 0; token < LANES; ++token) sum[k] += weights[token] * with.of(f + k, token);
  }
}

// into[feature] = or += the weighted sum of a tile's tokens.
void add_to_tile(const vec* weights, const TokenHead& with, const TokenHead& into, i64 features, bool fresh) {
  for (i64 f = 0; f < features; f += SUMMED) {
    const int some = static_cast<int>(std::min<i64>(SUMMED, features - f));
    vec sum[SUMMED] = {};
    add_weighted(weights, with, f, some, sum);
    for (int k = 0; k < some; ++k) into.at(f + k) = fresh ? sum[k] : into.at(f + k) + sum[k];
  }
}

// The tiles of a sequence that a tile of its queries reads, and up to which key each query does.
struct KeysRead {
  i64 begin, end;
  ivec last;

  // tiles: how many there are at all.
  template <typename Row>
  KeysRead(const Row& op, i64 tile, i64 tiles)
      : begin(tile / op.tiles * op.tiles),
        end(op.causal ? tile + 1 : std::min(begin + op.tiles, tiles)),
        last(op.causal ? lane_numbers() + broadcast_int(static_cast<i32>((tile - begin) * LANES))
                       : broadcast_int(static_cast<i32>(op.length - 1))) {}

  ivec reads(i64 key) const { return last >= broadcast_int(static_cast<i32>(key)); }
};

// The scores of one head for a tile's queries, from their products with keys, and what becomes of weights.
template <typename Row>
struct Scores {
  const Row& op;
  const Workspace& m;
  i64 tile, head;
  float scale;
  bool masked;
  vec of_queries{};

  Scores(const Row& row, const Workspace& workspace, i64 t, i64 h)
      : op(row),
        m(workspace),
        tile(t),
        head(h),
        scale(m.constants[op.scale]),
        masked(op.of_keys >= 0 || op.of_queries >= 0) {
    if (op.of_queries >= 0)
      of_queries = m.activations[op.of_queries + tile * op.of_queries_tile + head * op.of_queries_head];
  }

  // Of the key that is this token of a tile.
  vec of(vec product, i64 from, i64 token) const {
    vec score = product * scale;
    if (!masked) return score;
    if (op.of_keys >= 0) score += m.activations[op.of_keys + from * op.of_keys_tile + head * op.of_keys_head][token];
    return score + of_queries;
  }
  // The exponential of a score less the largest one, exactly zero where there is none. Of a query that reads no key all
  // weights are zero, as PyTorch has them.
  vec weight(vec score, vec most) const {
    const vec found = exponential(score - most);
    return masked ? where(score == broadcast(-__builtin_inff()), vec{}, found) : found;
  }
  vec largest(vec most) const { return masked ? where(most == broadcast(-__builtin_inff()), vec{}, most) : most; }
  vec reciprocal(vec total) const { return masked ? where(total == vec{}, vec{}, 1.0f / total) : 1.0f / total; }

  // What dropout multiplies weights of a key by: what it draws where lanes are examples.
  vec kept(i64 key) const {
    if (!op.threshold) return broadcast(1.0f);
    const i64 query = tile % op.tiles * LANES;
    const i64 place = (head * op.length + query) * op.length + key;
    return where(kept_tokens(m, op.number, op.threshold, tile / op.tiles, place, op.length),
                 broadcast(m.constants[op.keep_scale]), vec{});
  }
};

template <typename Row>
void verify_tokens(const Row& op, const Verifier& v) {
  v.require(op.tiles > 0 && op.group > 0 && op.features > 0 && op.value_features > 0, "sizes: positive");
  v.require(op.length > 0 && op.length <= op.tiles * LANES, "length: of tokens in a sequence's tiles");
  const i64 heads = op.rows * op.group;
#define LTHFUNC_TOKENS(label, name, begin, heads, count) \
  v.activations(label, begin, {{v.tiles, op.name##_tile}, {heads, op.name##_head}, {count, op.name##_feature}})
  LTHFUNC_TOKENS("q", q, op.q, heads, op.features);
  LTHFUNC_TOKENS("k", k, op.k, op.rows, op.features);
  LTHFUNC_TOKENS("v", v, op.v, op.rows, op.value_features);
  LTHFUNC_TOKENS("out", out, op.out, heads, op.value_features);
  if (op.of_keys >= 0) v.activations("of_keys", op.of_keys, {{v.tiles, op.of_keys_tile}, {heads, op.of_keys_head}});
  if (op.of_queries >= 0)
    v.activations("of_queries", op.of_queries, {{v.tiles, op.of_queries_tile}, {heads, op.of_queries_head}});
  v.constants("scale", op.scale);
  v.constants("keep_scale", op.keep_scale);
  if (op.saved >= 0) v.activations("saved", op.saved, {{v.tiles, op.saved_tile}, {heads, 2}, {2, 1}});
}

}  // namespace

// q, out: of `group` heads for each row, the features of 16 tokens in each tile; k, v: of one. out is none of the
// others. tiles: of a sequence of `length` tokens; those behind them are read by no others. saved: of each query its
// largest score and the reciprocal sum of exponentials, side by side; -1: nothing. of_keys, of_queries: a number of
// each token for every head.
void verify(const token_attention_row& op, Verifier& v) { verify_tokens(op, v); }

void token_attention(const token_attention_row& op, Workspace& m, Part part) {
  std::vector<vec> memory(static_cast<std::size_t>(std::min(op.tiles, part.tiles) * LANES));
  vec* const weights = memory.data();
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    const KeysRead read(op, tile, part.tiles);
    const i64 keys = (read.end - read.begin) * LANES;
    for (i64 head = part.row * op.group; head < part.rows * op.group; ++head) {
      const i64 other = head / op.group;
      const auto q = LTHFUNC_TOKEN_HEAD(q, op.q, tile, head), out = LTHFUNC_TOKEN_HEAD(out, op.out, tile, head);
      const Scores scores(op, m, tile, head);
      for (i64 from = read.begin; from < read.end; ++from)
        token_scores(q, LTHFUNC_TOKEN_HEAD(k, op.k, from, other), op.features, weights + (from - read.begin) * LANES);
      vec most = broadcast(-__builtin_inff()), total{};
      for (i64 key = 0; key < keys; ++key) {
        const vec score = scores.of(weights[key], read.begin + key / LANES, key % LANES);
        weights[key] = where(read.reads(key), score, broadcast(-__builtin_inff()));
        most = max_or_nan(weights[key], most);
      }
      most = scores.largest(most);
      for (i64 key = 0; key < keys; ++key) {
        const vec weight = where(read.reads(key), scores.weight(weights[key], most), vec{});
        total += weight;
        weights[key] = op.threshold ? weight * scores.kept(key) : weight;
      }
      total = scores.reciprocal(total);
      if (op.saved >= 0) {
        vec* const saved = m.activations + op.saved + tile * op.saved_tile + 2 * head;
        saved[0] = most;
        saved[1] = total;
      }
      for (i64 f = 0; f < op.value_features; f += SUMMED) {
        const int some = static_cast<int>(std::min<i64>(SUMMED, op.value_features - f));
        vec sum[SUMMED] = {};
        for (i64 from = read.begin; from < read.end; ++from)
          add_weighted(weights + (from - read.begin) * LANES, LTHFUNC_TOKEN_HEAD(v, op.v, from, other), f, some, sum);
        for (int k = 0; k < some; ++k) out.at(f + k) = sum[k] * total;
      }
    }
  }
}

// grad: as out; into_q, into_k, into_v: as q, k and v. accumulate_…: whether to add to what is there.
void verify(const token_attention_gradient_row& op, Verifier& v) {
  verify_tokens(op, v);
  v.require(op.saved >= 0, "saved: what the attention saved");
  const i64 heads = op.rows * op.group;
  LTHFUNC_TOKENS("grad", out, op.grad, heads, op.value_features);
  LTHFUNC_TOKENS("into_q", q, op.into_q, heads, op.features);
  LTHFUNC_TOKENS("into_k", k, op.into_k, op.rows, op.features);
  LTHFUNC_TOKENS("into_v", v, op.into_v, op.rows, op.value_features);
}

void token_attention_gradient(const token_attention_gradient_row& op, Workspace& m, Part part) {
  for (i64 tile = part.tile; tile < part.tiles; ++tile) {
    const KeysRead read(op, tile, part.tiles);
    for (i64 head = part.row * op.group; head < part.rows * op.group; ++head) {
      const i64 other = head / op.group;
      const auto q = LTHFUNC_TOKEN_HEAD(q, op.q, tile, head), into_q = LTHFUNC_TOKEN_HEAD(q, op.into_q, tile, head);
      const auto out = LTHFUNC_TOKEN_HEAD(out, op.out, tile, head), grad = LTHFUNC_TOKEN_HEAD(out, op.grad, tile, head);
      const vec* const saved = m.activations + op.saved + tile * op.saved_tile + 2 * head;
      const Scores scores(op, m, tile, head);
      vec mean{};  // of the changes of each query's weights, by the weights
      for (i64 f = 0; f < op.value_features; ++f) mean += grad.at(f) * out.at(f);
      for (i64 from = read.begin; from < read.end; ++from) {
        const auto k = LTHFUNC_TOKEN_HEAD(k, op.k, from, other), v = LTHFUNC_TOKEN_HEAD(v, op.v, from, other);
        vec weights[LANES], changes[LANES];  // of keys; the latter are gradients of their scores
        token_scores(q, k, op.features, weights);
        token_scores(grad, v, op.value_features, changes);
        for (int token = 0; token < LANES; ++token) {
          const i64 key = (from - read.begin) * LANES + token;
          const vec found = scores.weight(scores.of(weights[token], from, token), saved[0]) * saved[1];
          const vec weight = where(read.reads(key), found, vec{});
          // What is dropped of a weight is dropped of its gradient.
          const vec kept = scores.kept(key);
          weights[token] = weight * kept;
          changes[token] = weight * (changes[token] * kept - mean) * scores.scale;
        }
        add_to_tile(changes, k, into_q, op.features, from == read.begin && !op.accumulate_q);
        transpose(weights);
        transpose(changes);
        // The first of the queries that read this tile of keys.
        const bool first = head % op.group == 0 && tile == (op.causal ? from : read.begin);
        add_to_tile(weights, grad, LTHFUNC_TOKEN_HEAD(v, op.into_v, from, other), op.value_features,
                    first && !op.accumulate_v);
        add_to_tile(changes, q, LTHFUNC_TOKEN_HEAD(k, op.into_k, from, other), op.features, first && !op.accumulate_k);
      }
    }
  }
}

#undef LTHFUNC_TOKENS
#undef LTHFUNC_TOKEN_HEAD

}  // namespace lthfunc
