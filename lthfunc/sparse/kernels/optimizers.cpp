// Optimisers and the parts around them, over vectors of survivors: the updates of lthfunc/training (optimizers.py,
// clipping.py, accumulation.py, averaging.py), number by number.
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

// A number of each value, of a row of what is kept.
LTHFUNC_INLINE float* row_of(const Workspace& m, i64 row) { return m.kept + row * m.numbers; }

// What a network weighs in an exponential moving average.
float weight_in(const Workspace& m, bool debias) {
  const double power = m.clock[2], decay = m.clock[5];
  if (debias) return static_cast<float>((1.0 - decay) / (1.0 - power));
  return power == decay ? 1.0f : static_cast<float>(1.0 - decay);  // the first one begins the average
}

LTHFUNC_INLINE void average_of(const float* from, float* average, i64 first, i64 last, float weight) {
  in_vectors(first, last, [&](i64 k, i64 count) {
    const vec mean = load(average + k, count);
    store(average + k, mean + (load(from + k, count) - mean) * weight, count);
  });
}

}  // namespace

// All of these: floats of one numbering, contiguous, of any alignment.
void verify(const accumulate_row& op, Verifier& v) {
  v.gradients("first", op.first, op.last - op.first);
  v.kept("sums", op.sums);
}

void accumulate(const accumulate_row& op, Workspace& m, Part part) {
  float* const sums = row_of(m, op.sums);
  const bool begins = m.part == 0, ends = m.part + 1 == m.parts;
  const float parts = static_cast<float>(m.parts);
  const Share share = share_of(op.first, op.last, op.rows, part);
  in_vectors(share.first, share.last, [&](i64 k, i64 count) {
    vec sum = load(m.gradients + k, count);
    if (!begins) sum = load(sums + k, count) + sum;
    store(sums + k, sum, count);
    if (ends) store(m.gradients + k, sum / parts, count);
  });
}

void verify(const clip_values_row& op, Verifier& v) {
  v.gradients("first", op.first, op.last - op.first);
  v.constants("limit", op.limit);
}

void clip_values(const clip_values_row& op, Workspace& m, Part part) {
  const vec most = broadcast(m.constants[op.limit]), least = broadcast(-m.constants[op.limit]);
  const Share share = share_of(op.first, op.last, op.rows, part);
  in_vectors(share.first, share.last, [&](i64 k, i64 count) {
    vec gradient = load(m.gradients + k, count);  // what is no number stays none
    gradient = where(gradient > most, most, gradient);
    store(m.gradients + k, where(gradient < least, least, gradient), count);
  });
}

// One share after the other, whichever thread takes them, so that sums have the same bits on any number of threads.
void verify(const square_sums_row& op, Verifier& v) {
  v.gradients("first", op.first, op.last - op.first);
  v.constants("sums", op.sums, op.rows);
}

void square_sums(const square_sums_row& op, Workspace& m, Part part) {
  for (i64 row = part.row; row < part.rows; ++row) {
    const Share share = share_of(op.first, op.last, op.rows, {part.tile, part.tiles, row, row + 1});
    vec total{};
    in_vectors(share.first, share.last, [&](i64 k, i64 count) {
      const vec gradient = load(m.gradients + k, count);
      total = total + gradient * gradient;
    });
    m.constants[op.sums + row] = sum(total);
  }
}

void verify(const clip_norm_row& op, Verifier& v) {
  v.gradients("first", op.first, op.last - op.first);
  v.require(op.shares >= 0, "shares: negative");
  v.constants("sums", op.sums, op.shares);
  v.constants("limit", op.limit);
}

void clip_norm(const clip_norm_row& op, Workspace& m, Part part) {
  double total = 0;
  for (i64 k = 0; k < op.shares; ++k) total += m.constants[op.sums + k];
  const float factor = m.constants[op.limit] / (static_cast<float>(std::sqrt(total)) + 1e-6f);
  if (factor >= 1.0f) return;
  const Share share = share_of(op.first, op.last, op.rows, part);
  in_vectors(share.first, share.last,
             [&](i64 k, i64 count) { store(m.gradients + k, load(m.gradients + k, count) * factor, count); });
}

void verify(const adam_row& op, Verifier& v) {
  v.gradients("first", op.first, op.last - op.first);
  v.constants("beta1", op.beta1);
  v.constants("beta2", op.beta2);
  v.constants("epsilon", op.epsilon);
  v.constants("weight_decay", op.weight_decay);
  v.kept("mean", op.mean);
  v.kept("variance", op.variance);
}

void adam(const adam_row& op, Workspace& m, Part part) {
  const float* const numbers = m.constants;
  const float beta1 = numbers[op.beta1], beta2 = numbers[op.beta2], epsilon = numbers[op.epsilon];
  const float decay = numbers[op.weight_decay], rate = m.rate;
  const float stride = rate * m.corrections[0], widen = m.corrections[1];
  const float shrink = op.decoupled ? 1.0f - rate * decay : 1.0f, pull = op.decoupled ? 0.0f : decay;
  float *const means = row_of(m, op.mean), *const variances = row_of(m, op.variance);
  const Share share = share_of(op.first, op.last, op.rows, part);
  in_vectors(share.first, share.last, [&](i64 k, i64 count) {
    vec value = load(m.values + k, count);
    const vec gradient = load(m.gradients + k, count) + value * pull;
    vec mean = load(means + k, count), variance = load(variances + k, count);
    mean = mean + (gradient - mean) * (1.0f - beta1);
    variance = variance * beta2 + gradient * gradient * (1.0f - beta2);
    value = value * shrink - mean * stride / (root(variance) * widen + epsilon);
    store(means + k, mean, count);
    store(variances + k, variance, count);
    store(m.values + k, value, count);
  });
}

void verify(const sgd_row& op, Verifier& v) {
  v.gradients("first", op.first, op.last - op.first);
  v.constants("momentum", op.momentum);
  v.constants("weight_decay", op.weight_decay);
  if (op.velocity >= 0) v.kept("velocity", op.velocity);
}

void sgd(const sgd_row& op, Workspace& m, Part part) {
  const float momentum = m.constants[op.momentum], decay = m.constants[op.weight_decay], rate = m.rate;
  float* const velocities = op.velocity < 0 ? nullptr : row_of(m, op.velocity);  // without momentum
  const Share share = share_of(op.first, op.last, op.rows, part);
  in_vectors(share.first, share.last, [&](i64 k, i64 count) {
    const vec value = load(m.values + k, count);
    vec gradient = load(m.gradients + k, count) + value * decay;
    if (velocities) {
      const vec velocity = load(velocities + k, count) * momentum + gradient;
      store(velocities + k, velocity, count);
      gradient = op.nesterov ? gradient + velocity * momentum : velocity;
    }
    store(m.values + k, value - gradient * rate, count);
  });
}

void verify(const average_row& op, Verifier& v) {
  v.require(op.last <= v.program.numbers, "last: behind the numbers that are kept");
  v.values("first", op.first, {{op.last - op.first, 1}});
  v.kept("into", op.into);
  v.program.averages = true;
}

void average(const average_row& op, Workspace& m, Part part) {
  const Share share = share_of(op.first, op.last, op.rows, part);
  average_of(m.values, row_of(m, op.into), share.first, share.last, weight_in(m, op.debias));
}

void verify(const average_constants_row& op, Verifier& v) {
  v.constants("first", op.first, op.count);
  v.constants("into", op.into, op.count);
  v.program.averages = true;
}

void average_constants(const average_constants_row& op, Workspace& m, Part) {
  average_of(m.constants + op.first, m.constants + op.into, 0, op.count, weight_in(m, op.debias));
}

}  // namespace lthfunc
