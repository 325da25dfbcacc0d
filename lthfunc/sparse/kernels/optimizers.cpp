// Optimisers over vectors of survivors: the updates of lthfunc/training/optimizers.py, number by number.
#include <stdexcept>

#include "verify.h"

namespace lthfunc {
namespace {

// The function on 16 numbers at a time, the last ones in a shorter vector.
template <typename Function>
LTHFUNC_INLINE void in_vectors(i64 first, i64 last, Function function) {
  i64 k = first;
  for (; k + LANES <= last; k += LANES) function(k, LANES);
  if (k < last) function(k, last - k);
}

// Of `rows` equal shares (whole vectors), those from row to rows.
struct Share {
  i64 first, last;
};
LTHFUNC_INLINE Share share_of(i64 first, i64 last, i64 shares, Part part) {
  const i64 size = ((last - first + shares - 1) / shares + LANES - 1) / LANES * LANES;
  const i64 from = first + part.row * size, to = first + part.rows * size;
  return {from < last ? from : last, to < last ? to : last};
}

}  // namespace

// Values, gradients and both moments: floats of one numbering, contiguous, of any alignment.
void verify(const adam_row& op, Verifier& v) {
  v.gradients("first", op.first, op.last - op.first);
  v.constants("beta1", op.beta1);
  v.constants("beta2", op.beta2);
  v.constants("epsilon", op.epsilon);
  v.constants("weight_decay", op.weight_decay);
  v.program.moments = 2;
}

void adam(const adam_row& op, Workspace& m, Part part) {
  const float* const numbers = m.constants;
  const float beta1 = numbers[op.beta1], beta2 = numbers[op.beta2], epsilon = numbers[op.epsilon];
  const float decay = numbers[op.weight_decay], rate = m.rate;
  const float stride = rate * m.corrections[0], widen = m.corrections[1];
  const float shrink = op.decoupled ? 1.0f - rate * decay : 1.0f, pull = op.decoupled ? 0.0f : decay;
  const Share share = share_of(op.first, op.last, op.rows, part);
  in_vectors(share.first, share.last, [&](i64 k, i64 count) {
    vec value = load(m.values + k, count);
    const vec gradient = load(m.gradients + k, count) + value * pull;
    vec mean = load(m.first + k, count), variance = load(m.second + k, count);
    mean = mean + (gradient - mean) * (1.0f - beta1);
    variance = variance * beta2 + gradient * gradient * (1.0f - beta2);
    value = value * shrink - mean * stride / (root(variance) * widen + epsilon);
    store(m.first + k, mean, count);
    store(m.second + k, variance, count);
    store(m.values + k, value, count);
  });
}

// Values, gradients and, with momentum, the velocity: floats of one numbering, contiguous, of any alignment.
void verify(const sgd_row& op, Verifier& v) {
  v.gradients("first", op.first, op.last - op.first);
  v.constants("momentum", op.momentum);
  v.constants("weight_decay", op.weight_decay);
}

void sgd(const sgd_row& op, Workspace& m, Part part) {
  const float momentum = m.constants[op.momentum], decay = m.constants[op.weight_decay], rate = m.rate;
  if (momentum != 0.0f && !m.first) throw std::invalid_argument("lthfunc: momentum takes a velocity");
  const Share share = share_of(op.first, op.last, op.rows, part);
  in_vectors(share.first, share.last, [&](i64 k, i64 count) {
    const vec value = load(m.values + k, count);
    vec gradient = load(m.gradients + k, count) + value * decay;
    if (momentum != 0.0f) {
      const vec velocity = load(m.first + k, count) * momentum + gradient;
      store(m.first + k, velocity, count);
      gradient = op.nesterov ? gradient + velocity * momentum : velocity;
    }
    store(m.values + k, value - gradient * rate, count);
  });
}

}  // namespace lthfunc
