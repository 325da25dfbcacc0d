// Scaled dot-product attention (Vaswani et al. 2017, eq. 1), lane by lane: a lane is an example, so no operand is
// transposed. Scores of a few queries lie in a near cache; the gradient computes them again.
//
// Products are taken in blocks of a few rows and columns, whose sums stay in registers: one register's lanes at a time,
// since 16 registers hold 12 sums beside what they are made of, but only six of two registers each.
#include <algorithm>
#include <vector>

#include "randomness.h"
#include "verify.h"

namespace lthfunc {
namespace {

// Rows of a block, and columns.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int AT_ONCE = 4, BESIDE = 4;
#else
constexpr int AT_ONCE = 4, BESIDE = 3;
#endif
constexpr int REGISTERS = LANES / LTHFUNC_REGISTER;  // of a vector
// Of a share of the gradient, whose scores, keys, values and gradients of both stay in a near cache meanwhile.
constexpr i64 QUERIES = 8, KEYS = 4 * BESIDE;

// One head of an operand: its first vector, and the steps to the next place and feature.
struct Operand {
  vec* first;
  i64 place, feature;

  vec* at(i64 p, i64 f = 0) const { return first + p * place + f * feature; }
};

#define LTHFUNC_HEAD(name, number, begin)                                                                          \
  Operand {                                                                                                        \
    m.activations + (begin) + tile *op.name##_tile + (number) * op.name##_head, op.name##_place, op.name##_feature \
  }

LTHFUNC_INLINE floats& register_of(vec& v, int number) { return reinterpret_cast<floats*>(&v)[number]; }
LTHFUNC_INLINE floats register_of(const vec& v, int number) { return reinterpret_cast<const floats*>(&v)[number]; }

// write(i, j, number of the register, sum over `count` of a[i] · b[j], whose next ones lie a_next and b_next behind).
template <int I, int J, typename Write>
LTHFUNC_INLINE void block(const vec* a, i64 a_step, i64 a_next, const vec* b, i64 b_step, i64 b_next, i64 count,
                          Write write) {
  LTHFUNC_UNROLL
  for (int number = 0; number < REGISTERS; ++number) {
    const vec *x = a, *y = b;
    floats sum[I][J] = {};
    for (i64 k = 0; k < count; ++k) {
      floats right[J];
      LTHFUNC_UNROLL
      for (int j = 0; j < J; ++j) right[j] = register_of(y[j * b_step], number);
      LTHFUNC_UNROLL
      for (int i = 0; i < I; ++i) {
        const floats left = register_of(x[i * a_step], number);
        LTHFUNC_UNROLL
        for (int j = 0; j < J; ++j) sum[i][j] += left * right[j];
      }
      x += a_next;
      y += b_next;
    }
    LTHFUNC_UNROLL
    for (int i = 0; i < I; ++i) {
      LTHFUNC_UNROLL
      for (int j = 0; j < J; ++j) write(i, j, number, sum[i][j]);
    }
  }
}

// function(first, how many as a constant) for what is left of a number of something.
template <int Most, typename Function>
LTHFUNC_INLINE void in_rest(i64 first, i64 count, Function function) {
  if constexpr (Most > 0) {
    if (count == Most) return function(first, std::integral_constant<int, Most>{});
    in_rest<Most - 1>(first, count, function);
  }
}

// The same for all of it, `Most` at a time.
template <int Most, typename Function>
LTHFUNC_INLINE void in_blocks(i64 count, Function function) {
  i64 k = 0;
  for (; k + Most <= count; k += Most) function(k, std::integral_constant<int, Most>{});
  in_rest<Most - 1>(k, count - k, function);
}

// How many keys the queries up to `last` read.
template <typename Row>
i64 keys_until(const Row& op, i64 last) {
  return op.causal ? std::min(op.keys, last + 1) : op.keys;
}

// Whether a query may not read a key.
template <typename Row>
bool masked(const Row& op, i64 query, i64 key) {
  return op.causal && key > query;
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
      in_blocks<AT_ONCE>(op.queries, [&](i64 query, auto some) {
        constexpr int I = decltype(some)::value;
        const i64 keys = keys_until(op, query + I - 1);
        in_blocks<BESIDE>(keys, [&](i64 key, auto more) {
          constexpr int J = decltype(more)::value;
          block<I, J>(q.at(query), q.place, q.feature, k.at(key), k.place, k.feature, op.features,
                      [&](int i, int j, int number, floats sum) {
                        register_of(scores[(key + j) * I + i], number) = sum * scale;
                      });
        });
        vec most[I], total[I] = {};
        LTHFUNC_UNROLL
        for (int i = 0; i < I; ++i) most[i] = scores[i];
        for (i64 key = 1; key < keys; ++key) {
          LTHFUNC_UNROLL
          for (int i = 0; i < I; ++i)
            if (!masked(op, query + i, key)) most[i] = max_or_nan(scores[key * I + i], most[i]);
        }
        for (i64 key = 0; key < keys; ++key) {
          LTHFUNC_UNROLL
          for (int i = 0; i < I; ++i) {
            const vec value = masked(op, query + i, key) ? vec{} : exponential(scores[key * I + i] - most[i]);
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
        in_blocks<BESIDE>(op.value_features, [&](i64 feature, auto more) {
          constexpr int J = decltype(more)::value;
          block<I, J>(scores, 1, I, v.at(0, feature), v.feature, v.place, keys,
                      [&](int i, int j, int number, floats sum) {
                        register_of(*out.at(query + i, feature + j), number) = sum * register_of(total[i], number);
                      });
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

void erase(Operand into, i64 first, i64 places, i64 features) {
  for (i64 f = 0; f < features; ++f)
    for (i64 p = first; p < first + places; ++p) *into.at(p, f) = vec{};
}

// What one head's share of some queries and keys adds to the gradients.
struct Share {
  vec* shares;   // of each key and query
  vec* changes;  // gradients of their scores
  i64 query, queries, key, keys;

  static i64 at(i64 key, i64 query) { return key * QUERIES + query; }
};

// into[key][feature] += sum over the share's queries of of[key][query] · with[query][feature].
void add_to_keys(const Share& share, const vec* of, Operand with, Operand into, i64 features) {
  in_blocks<AT_ONCE>(share.keys, [&](i64 key, auto some) {
    constexpr int I = decltype(some)::value;
    in_blocks<BESIDE>(features, [&](i64 feature, auto more) {
      constexpr int J = decltype(more)::value;
      block<I, J>(of + Share::at(key, 0), QUERIES, 1, with.at(share.query, feature), with.feature, with.place,
                  share.queries, [&](int i, int j, int number, floats sum) {
                    register_of(*into.at(share.key + key + i, feature + j), number) += sum;
                  });
    });
  });
}

// into[query][feature] = or += sum over the share's keys of the change of their score · with[key][feature].
void add_to_queries(const Share& share, Operand with, Operand into, i64 features, bool fresh) {
  in_blocks<AT_ONCE>(share.queries, [&](i64 query, auto some) {
    constexpr int I = decltype(some)::value;
    in_blocks<BESIDE>(features, [&](i64 feature, auto more) {
      constexpr int J = decltype(more)::value;
      block<I, J>(share.changes + query, 1, QUERIES, with.at(share.key, feature), with.feature, with.place, share.keys,
                  [&](int i, int j, int number, floats sum) {
                    floats& to = register_of(*into.at(share.query + query + i, feature + j), number);
                    to = fresh ? sum : to + sum;
                  });
    });
  });
}

// scores[key][query] = sum over features of left[query] · right[key].
void score(const Share& share, vec* scores, Operand left, Operand right, i64 features) {
  in_blocks<AT_ONCE>(share.queries, [&](i64 query, auto some) {
    constexpr int I = decltype(some)::value;
    in_blocks<BESIDE>(share.keys, [&](i64 key, auto more) {
      constexpr int J = decltype(more)::value;
      block<I, J>(left.at(share.query + query), left.place, left.feature, right.at(share.key + key), right.place,
                  right.feature, features, [&](int i, int j, int number, floats sum) {
                    register_of(scores[Share::at(key + j, query + i)], number) = sum;
                  });
    });
  });
}

}  // namespace

void attention_gradient(const attention_gradient_row& op, Workspace& m, Part part) {
  const float scale = m.constants[op.scale];
  std::vector<vec> memory(static_cast<std::size_t>(2 * KEYS * QUERIES + op.queries));
  Share share{memory.data(), memory.data() + KEYS * QUERIES, 0, 0, 0, 0};
  vec* const means = share.changes + KEYS * QUERIES;  // of each query's changes, by their shares
  for (i64 tile = part.tile; tile < part.tiles; ++tile)
    for (i64 head = part.row; head < part.rows; ++head) {
      const i64 other = head / op.group;
      const auto q = LTHFUNC_HEAD(q, head, op.q), out = LTHFUNC_HEAD(out, head, op.out);
      const auto k = LTHFUNC_HEAD(k, other, op.k), v = LTHFUNC_HEAD(v, other, op.v);
      const auto grad = LTHFUNC_HEAD(out, head, op.grad), into_q = LTHFUNC_HEAD(q, head, op.into_q);
      const auto into_k = LTHFUNC_HEAD(k, other, op.into_k), into_v = LTHFUNC_HEAD(v, other, op.into_v);
      const vec* const saved = m.activations + op.saved + tile * op.saved_tile + 2 * head * op.queries;
      std::fill_n(means, op.queries, vec{});
      for (i64 f = 0; f < op.value_features; ++f)
        for (i64 query = 0; query < op.queries; ++query) means[query] += *grad.at(query, f) * *out.at(query, f);
      for (share.key = 0; share.key < op.keys; share.key += KEYS) {
        const i64 last = std::min(op.keys, share.key + KEYS);
        if (head % op.group == 0) {
          if (!op.accumulate_k) erase(into_k, share.key, last - share.key, op.features);
          if (!op.accumulate_v) erase(into_v, share.key, last - share.key, op.value_features);
        }
        for (share.query = op.causal ? share.key / QUERIES * QUERIES : 0; share.query < op.queries;
             share.query += QUERIES) {
          share.queries = std::min(QUERIES, op.queries - share.query);
          share.keys = std::min(last, keys_until(op, share.query + share.queries - 1)) - share.key;
          score(share, share.shares, q, k, op.features);
          score(share, share.changes, grad, v, op.value_features);
          for (i64 key = 0; key < share.keys; ++key)
            for (i64 query = 0; query < share.queries; ++query) {
              const i64 at = Share::at(key, query), row = share.query + query, column = share.key + key;
              const vec most = saved[2 * row], total = saved[2 * row + 1];
              const vec weight = masked(op, row, column) ? vec{} : exponential(share.shares[at] * scale - most) * total;
              // What is dropped of a weight is dropped of its gradient.
              const vec kept = op.threshold ? kept_share(op, m, tile, head, row, column) : broadcast(1.0f);
              share.shares[at] = weight * kept;
              share.changes[at] = weight * (share.changes[at] * kept - means[row]) * scale;
            }
          add_to_queries(share, k, into_q, op.features, share.key == 0 && !op.accumulate_q);
          add_to_keys(share, share.changes, q, into_k, op.features);
          add_to_keys(share, share.shares, grad, into_v, op.value_features);
        }
      }
    }
}

}  // namespace lthfunc
