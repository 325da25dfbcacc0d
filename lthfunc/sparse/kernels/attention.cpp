// Scaled dot-product attention (Vaswani et al. 2017, eq. 1), lane by lane: a lane is an example, so no operand is
// transposed. Scores of a few queries lie in a near cache; the gradient computes them again.
//
// Products are taken in blocks of 4 × 4, in which eight loads serve sixteen multiply-adds.
#include <algorithm>
#include <vector>

#include "randomness.h"
#include "verify.h"

namespace lthfunc {
namespace {

constexpr int AT_ONCE = 4;  // queries, keys and features of a block
constexpr i64 QUERIES = 8;  // whose scores the gradient keeps

// One head of an operand: its first vector, and the steps to the next place and feature.
template <typename V>
struct Operand {
  V* first;
  i64 place, feature;

  V* at(i64 p, i64 f = 0) const { return first + p * place + f * feature; }
};

#define LTHFUNC_HEAD(name, number, begin)                                                                          \
  Operand<vec> {                                                                                                   \
    m.activations + (begin) + tile *op.name##_tile + (number) * op.name##_head, op.name##_place, op.name##_feature \
  }

// out[i][j] = sum over `count` of a[i] · b[j], whose next ones lie a_next and b_next behind.
template <int I, int J>
LTHFUNC_INLINE void add_block(const vec* a, i64 a_step, i64 a_next, const vec* b, i64 b_step, i64 b_next, i64 count,
                              vec (&sum)[I][J]) {
  for (i64 k = 0; k < count; ++k) {
    vec left[I], right[J];
    LTHFUNC_UNROLL
    for (int i = 0; i < I; ++i) left[i] = a[i * a_step];
    LTHFUNC_UNROLL
    for (int j = 0; j < J; ++j) right[j] = b[j * b_step];
    LTHFUNC_UNROLL
    for (int i = 0; i < I; ++i) {
      LTHFUNC_UNROLL
      for (int j = 0; j < J; ++j) sum[i][j] += left[i] * right[j];
    }
    a += a_next;
    b += b_next;
  }
}

// function(first, how many as a constant) for `count` of something, four at a time.
template <typename Function>
LTHFUNC_INLINE void by_fours(i64 count, Function function) {
  i64 k = 0;
  for (; k + AT_ONCE <= count; k += AT_ONCE) function(k, std::integral_constant<int, AT_ONCE>{});
  switch (count - k) {
    case 1: return function(k, std::integral_constant<int, 1>{});
    case 2: return function(k, std::integral_constant<int, 2>{});
    case 3: return function(k, std::integral_constant<int, 3>{});
    default: return;
  }
}

// How many keys the queries up to `last` read.
template <typename Row>
i64 keys_until(const Row& op, i64 last) {
  return op.causal ? std::min(op.keys, last + 1) : op.keys;
}

// Scores of I queries from `query` on with J keys from `key` on; those that are masked are minus infinity.
template <int I, int J, typename Row>
LTHFUNC_INLINE void score(const Row& op, Operand<vec> q, Operand<vec> k, i64 query, i64 key, float scale,
                          vec (&sum)[I][J]) {
  add_block<I, J>(q.at(query), q.place, q.feature, k.at(key), k.place, k.feature, op.features, sum);
  LTHFUNC_UNROLL
  for (int i = 0; i < I; ++i) {
    LTHFUNC_UNROLL
    for (int j = 0; j < J; ++j)
      sum[i][j] = op.causal && key + j > query + i ? broadcast(-__builtin_inff()) : sum[i][j] * scale;
  }
}

// What dropout multiplies a query's weight of a key by.
template <typename Row>
LTHFUNC_INLINE vec kept_share(const Row& op, const Workspace& m, i64 tile, i64 head, i64 query, i64 key) {
  const i64 place = ((tile * op.rows + head) * op.queries + query) * op.keys + key;
  return where(kept_lanes(m, op.number, op.threshold, place), broadcast(m.constants[op.keep_scale]), vec{});
}

template <typename Row>
void verify_operands(const Row& op, const Verifier& v) {
  v.require(op.group > 0 && op.rows % op.group == 0, "group: divides the heads");
  v.require(op.queries > 0 && op.keys > 0 && op.features > 0 && op.value_features > 0, "sizes: positive");
  const i64 shared = op.rows / op.group;
#define LTHFUNC_OPERAND(label, name, begin, heads, places, count) \
  v.activations(                                                  \
      label, begin,                                               \
      {{v.tiles, op.name##_tile}, {heads, op.name##_head}, {places, op.name##_place}, {count, op.name##_feature}})
  LTHFUNC_OPERAND("q", q, op.q, op.rows, op.queries, op.features);
  LTHFUNC_OPERAND("k", k, op.k, shared, op.keys, op.features);
  LTHFUNC_OPERAND("v", v, op.v, shared, op.keys, op.value_features);
  LTHFUNC_OPERAND("out", out, op.out, op.rows, op.queries, op.value_features);
  v.activations("saved", op.saved, {{v.tiles, op.saved_tile}, {op.rows, 2 * op.queries}, {op.queries, 2}, {2, 1}});
  v.constants("scale", op.scale);
  v.constants("keep_scale", op.keep_scale);
}

}  // namespace

// q, out: (heads, queries, features) of each tile, with steps of their own; k, v: (heads / group, keys, features). out
// is none of the others. saved: of each query its largest score and the reciprocal sum of exponentials, side by side.
void verify(const attention_row& op, Verifier& v) { verify_operands(op, v); }

void attention(const attention_row& op, Workspace& m, Part part) {
  const float scale = m.constants[op.scale];
  std::vector<vec> memory(static_cast<std::size_t>(op.keys * AT_ONCE));
  vec* const scores = memory.data();
  for (i64 tile = part.tile; tile < part.tiles; ++tile)
    for (i64 head = part.row; head < part.rows; ++head) {
      const auto q = LTHFUNC_HEAD(q, head, op.q), out = LTHFUNC_HEAD(out, head, op.out);
      const auto k = LTHFUNC_HEAD(k, head / op.group, op.k), v = LTHFUNC_HEAD(v, head / op.group, op.v);
      vec* const saved = m.activations + op.saved + tile * op.saved_tile + 2 * head * op.queries;
      by_fours(op.queries, [&](i64 query, auto some) {
        constexpr int I = decltype(some)::value;
        const i64 keys = keys_until(op, query + I - 1);
        vec most[I], total[I] = {};
        LTHFUNC_UNROLL
        for (int i = 0; i < I; ++i) most[i] = broadcast(-__builtin_inff());
        by_fours(keys, [&](i64 key, auto more) {
          constexpr int J = decltype(more)::value;
          vec sum[I][J] = {};
          score<I, J>(op, q, k, query, key, scale, sum);
          LTHFUNC_UNROLL
          for (int i = 0; i < I; ++i) {
            LTHFUNC_UNROLL
            for (int j = 0; j < J; ++j) {
              most[i] = max_or_nan(sum[i][j], most[i]);
              scores[(key + j) * I + i] = sum[i][j];
            }
          }
        });
        for (i64 key = 0; key < keys; ++key) {
          LTHFUNC_UNROLL
          for (int i = 0; i < I; ++i) {
            // The exponential of minus infinity is clamped to a number that is not zero.
            const bool masked = op.causal && key > query + i;
            const vec value = masked ? vec{} : exponential(scores[key * I + i] - most[i]);
            total[i] += value;
            scores[key * I + i] = op.threshold ? value * kept_share(op, m, tile, head, query + i, key) : value;
          }
        }
        LTHFUNC_UNROLL
        for (int i = 0; i < I; ++i) {
          total[i] = 1.0f / total[i];
          saved[2 * (query + i)] = most[i];
          saved[2 * (query + i) + 1] = total[i];
        }
        by_fours(op.value_features, [&](i64 feature, auto more) {
          constexpr int J = decltype(more)::value;
          vec sum[I][J] = {};
          add_block<I, J>(scores, 1, I, v.at(0, feature), v.feature, v.place, keys, sum);
          LTHFUNC_UNROLL
          for (int i = 0; i < I; ++i) {
            LTHFUNC_UNROLL
            for (int j = 0; j < J; ++j) *out.at(query + i, feature + j) = sum[i][j] * total[i];
          }
        });
      });
    }
}

// grad: as out; into_q, into_k, into_v: as q, k and v. accumulate_…: whether to add to what is there.
void verify(const attention_gradient_row& op, Verifier& v) {
  verify_operands(op, v);
  const i64 shared = op.rows / op.group;
  LTHFUNC_OPERAND("grad", out, op.grad, op.rows, op.queries, op.value_features);
  LTHFUNC_OPERAND("into_q", q, op.into_q, op.rows, op.queries, op.features);
  LTHFUNC_OPERAND("into_k", k, op.into_k, shared, op.keys, op.features);
  LTHFUNC_OPERAND("into_v", v, op.into_v, shared, op.keys, op.value_features);
}
#undef LTHFUNC_OPERAND

namespace {

void erase(Operand<vec> into, i64 places, i64 features) {
  for (i64 f = 0; f < features; ++f)
    for (i64 p = 0; p < places; ++p) *into.at(p, f) = vec{};
}

// into[key][feature] += sum over `count` queries of scores[key][query] · with[query][feature].
void add_products(const vec* scores, i64 count, i64 keys, Operand<vec> with, i64 query, Operand<vec> into,
                  i64 features) {
  by_fours(keys, [&](i64 key, auto some) {
    constexpr int I = decltype(some)::value;
    by_fours(features, [&](i64 feature, auto more) {
      constexpr int J = decltype(more)::value;
      vec sum[I][J];
      LTHFUNC_UNROLL
      for (int i = 0; i < I; ++i) {
        LTHFUNC_UNROLL
        for (int j = 0; j < J; ++j) sum[i][j] = *into.at(key + i, feature + j);
      }
      add_block<I, J>(scores + key * QUERIES, QUERIES, 1, with.at(query, feature), with.feature, with.place, count,
                      sum);
      LTHFUNC_UNROLL
      for (int i = 0; i < I; ++i) {
        LTHFUNC_UNROLL
        for (int j = 0; j < J; ++j) *into.at(key + i, feature + j) = sum[i][j];
      }
    });
  });
}

}  // namespace

void attention_gradient(const attention_gradient_row& op, Workspace& m, Part part) {
  const float scale = m.constants[op.scale];
  std::vector<vec> memory(static_cast<std::size_t>(2 * op.keys * QUERIES));
  vec* const shares = memory.data();                // of each key and query
  vec* const changes = shares + op.keys * QUERIES;  // gradients of their scores
  for (i64 tile = part.tile; tile < part.tiles; ++tile)
    for (i64 head = part.row; head < part.rows; ++head) {
      const i64 other = head / op.group;
      const auto q = LTHFUNC_HEAD(q, head, op.q), out = LTHFUNC_HEAD(out, head, op.out);
      const auto k = LTHFUNC_HEAD(k, other, op.k), v = LTHFUNC_HEAD(v, other, op.v);
      const auto grad = LTHFUNC_HEAD(out, head, op.grad), into_q = LTHFUNC_HEAD(q, head, op.into_q);
      const auto into_k = LTHFUNC_HEAD(k, other, op.into_k), into_v = LTHFUNC_HEAD(v, other, op.into_v);
      if (head % op.group == 0) {
        if (!op.accumulate_k) erase(into_k, op.keys, op.features);
        if (!op.accumulate_v) erase(into_v, op.keys, op.value_features);
      }
      const vec* const saved = m.activations + op.saved + tile * op.saved_tile + 2 * head * op.queries;
      for (i64 first = 0; first < op.queries; first += QUERIES) {
        const i64 count = std::min(QUERIES, op.queries - first), keys = keys_until(op, first + count - 1);
        by_fours(count, [&](i64 within, auto some) {
          constexpr int I = decltype(some)::value;
          const i64 query = first + within;
          vec mean[I] = {};
          for (i64 f = 0; f < op.value_features; ++f) {
            LTHFUNC_UNROLL
            for (int i = 0; i < I; ++i) mean[i] += *grad.at(query + i, f) * *out.at(query + i, f);
          }
          by_fours(keys, [&](i64 key, auto more) {
            constexpr int J = decltype(more)::value;
            vec sum[I][J] = {}, change[I][J] = {};
            score<I, J>(op, q, k, query, key, scale, sum);
            add_block<I, J>(grad.at(query), grad.place, grad.feature, v.at(key), v.place, v.feature, op.value_features,
                            change);
            LTHFUNC_UNROLL
            for (int i = 0; i < I; ++i) {
              const vec most = saved[2 * (query + i)], total = saved[2 * (query + i) + 1];
              LTHFUNC_UNROLL
              for (int j = 0; j < J; ++j) {
                const bool masked = op.causal && key + j > query + i;
                const vec share = masked ? vec{} : exponential(sum[i][j] - most) * total;
                // What is dropped of a weight is dropped of its gradient.
                const vec kept = op.threshold ? kept_share(op, m, tile, head, query + i, key + j) : broadcast(1.0f);
                shares[(key + j) * QUERIES + within + i] = share * kept;
                changes[(key + j) * QUERIES + within + i] = share * (change[i][j] * kept - mean[i]) * scale;
              }
            }
          });
          by_fours(op.features, [&](i64 feature, auto more) {
            constexpr int J = decltype(more)::value;
            vec sum[I][J] = {};
            add_block<I, J>(changes + within, 1, QUERIES, k.at(0, feature), k.feature, k.place, keys, sum);
            LTHFUNC_UNROLL
            for (int i = 0; i < I; ++i) {
              LTHFUNC_UNROLL
              for (int j = 0; j < J; ++j) {
                vec* const to = into_q.at(query + i, feature + j);
                *to = op.accumulate_q ? *to + sum[i][j] : sum[i][j];
              }
            }
          });
        });
        add_products(changes, count, keys, q, first, into_k, op.features);
        add_products(shares, count, keys, grad, first, into_v, op.value_features);
      }
    }
}

}  // namespace lthfunc
