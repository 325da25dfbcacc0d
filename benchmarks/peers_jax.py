"""JAX, as its users train masked networks: jit, optax, donated arguments; and the same through lax.scan."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from lthfunc.deployment.timing import TimedFunction
from lthfunc.trees.types import Batch, TrainState

from .networks import Case
from .peers import LR

#: Steps in one call of the scan.
SCANNED = 50
JIT = "JAX jit, donated"


def why_not(case: Case) -> str | None:
    """Why JAX cannot run this network here, or None."""
    if not case.layers:
        return "not written for JAX"
    try:
        import jax  # noqa: F401
        import optax  # noqa: F401
    except ImportError:
        return "JAX or optax is not installed (the extra `bench`)"
    return None


def use_threads(threads: int) -> None:
    """Before JAX is imported: restrict it to one thread if one is requested."""
    if threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def jitted(case: Case, state: TrainState, ready: Sequence[Batch]) -> dict[str, TimedFunction]:
    """The two variants, by name."""
    import jax
    import jax.numpy as jnp
    import optax

    params, masks = _params(state)
    apply = _network(case)
    optimizer = optax.adam(LR)

    def step(carry: Any, batch: Any) -> Any:
        params, opt = carry

        def loss(params: Any) -> Any:
            logits = apply(params, batch[0])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

        value, grads = jax.value_and_grad(loss)(params)
        grads = [(w * m, b) for (w, b), m in zip(grads, masks, strict=True)]
        updates, opt = optimizer.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt), value

    batches = [(jnp.asarray(x.numpy()), jnp.asarray(y.numpy())) for x, y in ready[:SCANNED]]
    many = tuple(jnp.stack(parts) for parts in zip(*batches, strict=True))
    once = jax.jit(step, donate_argnums=0)
    scanned = jax.jit(lambda carry, many: jax.lax.scan(step, carry, many), donate_argnums=0)
    first = params, optimizer.init(params)
    carries = {"step": first, "scan": jax.tree.map(jnp.copy, first)}

    def run(n: int) -> None:
        carry = carries["step"]
        for i in range(n):
            carry, _ = once(carry, batches[i % len(batches)])
        carries["step"] = jax.block_until_ready(carry)

    def run_scanned(n: int) -> None:
        carry = carries["scan"]
        for _ in range(max(1, round(n / len(batches)))):
            carry, _ = scanned(carry, many)
        carries["scan"] = jax.block_until_ready(carry)

    variants: dict[str, TimedFunction] = {JIT: run}
    if not any(layer.startswith("conv") for layer in case.layers):
        # Within a scan, XLA's CPU convolutions are some 80 times slower than outside, so they are not measured.
        variants["JAX lax.scan"] = run_scanned
    return variants


def _params(state: TrainState) -> tuple[Any, Any]:
    import jax.numpy as jnp

    leaves, masks = [], []
    names = list(state.masks)
    for name in names:
        bias = name.removesuffix("weight") + "bias"
        leaves.append(tuple(jnp.asarray(state.params[key].numpy().copy()) for key in (name, bias)))
        masks.append(jnp.asarray(state.masks[name].float().numpy()))
    return leaves, masks


def _network(case: Case) -> Any:
    import jax
    from jax import lax

    def apply(params: Any, x: Any) -> Any:
        rest = iter(params)
        for layer in case.layers:
            kind, *settings = layer.split()
            if kind == "relu":
                x = jax.nn.relu(x)
            elif kind == "pool":
                x = lax.reduce_window(x, -np.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
            elif kind == "fc":
                weight, bias = next(rest)
                x = x.reshape(x.shape[0], -1) @ weight.T + bias
            else:
                weight, bias = next(rest)
                pad = int(settings[1].removeprefix("pad"))
                x = lax.conv_general_dilated(x, weight, (1, 1), [(pad, pad)] * 2) + bias[:, None, None]
        return x

    return apply
