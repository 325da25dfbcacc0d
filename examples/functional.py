# %% [markdown]
# # Lottery tickets as pure functions
#
# A network, its training and its pruning are functions of trees. This example trains a network on the bundled digits,
# prunes it step by step, and looks at what is left. It runs in half a minute on one core.

# %%
import torch

import lthfunc as lf

data = lf.data.load("digits")
print(data.name, tuple(data.train.x.shape), data.classes, "classes")

# %% [markdown]
# Any `nn.Module` becomes a `Model`: its structure without its values. A state is a tree of parameters, buffers, masks,
# the optimiser's state and the step. The same seed draws the same weights.

# %%
net = torch.nn.Sequential(
    torch.nn.Conv2d(1, 8, 3),
    torch.nn.ReLU(),
    torch.nn.Flatten(),
    torch.nn.Linear(8 * 36, 32),
    torch.nn.ReLU(),
    torch.nn.Linear(32, 10),
)
model = lf.from_module(net)
start = lf.init(model, seed=0)
print({name: tuple(leaf.shape) for name, leaf in start.params.items()})
print(lf.count(start.masks))

# %% [markdown]
# Training is a transformation of states. Nothing is changed in place: `start` stays what it was, and the same call
# gives the same bits.

# %%
train = lf.train(model, data, optimizer=lf.adam(1.2e-3), steps=300, seed=0)
dense = train(start)
assert lf.same_bits(dense, train(start))
print(f"dense: {lf.accuracy_on(model, dense, data):.3f}")

# %% [markdown]
# Pruning is four tree functions: scores, how many weights each layer keeps, which they are, and where they start again.
# `prune` composes the first three.

# %%
scores = lf.magnitude(dense.params, dense.masks)
keep = lf.globally(scores, dense.masks, 0.5)
masks = lf.unstructured(scores, dense.masks, keep)
assert lf.same_bits(masks, lf.prune(fraction=0.5)(dense).masks)
print({name: f"{lf.density({name: mask}):.2f}" for name, mask in masks.items()})

# %% [markdown]
# Iterative magnitude pruning is a fold: train, prune, rewind, and again. The last training shows what the ticket is
# worth, beside the same masks on other weights.

# %%
find = lf.compose(train, lf.prune(fraction=0.5), lf.rewind(to=start))
ticket = lf.iterate(find, rounds=4)(start)
other = lf.rewind(to=lf.init(model, seed=1))(ticket)
for name, state in (("ticket", ticket), ("reinitialised", other)):
    print(f"{name}: {lf.density(state.masks):.3f} of the weights, {lf.accuracy_on(model, train(state), data):.3f}")

# %% [markdown]
# A score of one's own is a function of parameters and masks; so are allocations and structures. This one keeps the
# convolution dense and whole rows of the rest together.


# %%
def by_row(params, masks):
    """Each weight counts what its row does, and itself a little."""
    found = {}
    for name in masks:
        size = params[name].abs()
        rows = size.flatten(1).mean(1).view(-1, *(1,) * (size.ndim - 1))
        found[name] = rows + 0.01 * size
    return found


rows = lf.with_prunable(model, never_prune=["0.weight"])
state = lf.prune(density=0.3, score=by_row)(train(lf.init(rows, seed=0)))
print({name: f"{lf.density({name: mask}):.2f}" for name, mask in state.masks.items()})

# %% [markdown]
# A finished ticket leaves as a plain module, or as a file.

# %%
module = lf.to_module(lf.ticket(train(ticket)), model)
print(type(module).__name__, module(data.test.x[:2]).shape)
lf.save_ticket("ticket.safetensors", lf.ticket(ticket))
