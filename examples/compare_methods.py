"""Iterative magnitude pruning, SNIP and random pruning: three densities, three seeds, one plot."""

import matplotlib.pyplot as plt
import torch

import lthfunc as lf
from lthfunc.reports.charts import PALETTE

DENSITIES, SEEDS, ROUNDS, STEPS = [0.2, 0.05, 0.02], range(3), 5, 500
data = lf.data.load("digits")
model = lf.models.lenet300(data.shape, data.classes)
accuracies = {method: torch.zeros(len(DENSITIES), len(SEEDS)) for method in ("IMP", "SNIP", "random")}

for seed in SEEDS:
    train = lf.train(model, data, optimizer=lf.adam(1.2e-3), steps=STEPS, seed=seed)
    start = lf.init(model, seed)
    batches = lf.sample_batches(data, 60, count=10, seed=seed)
    scores = {"SNIP": lf.snip(lf.loss_of(model, start.buffers), batches), "random": lf.random_scores(seed)}
    for column, density in enumerate(DENSITIES):
        rate = 1 - density ** (1 / ROUNDS)
        find = lf.compose(train, lf.prune(fraction=rate), lf.rewind(to=start))
        tickets = {name: lf.prune(density=density, score=score)(start) for name, score in scores.items()}
        tickets["IMP"] = lf.iterate(find, rounds=ROUNDS)(start)
        for method, ticket in tickets.items():
            accuracies[method][column, seed] = lf.accuracy_on(model, train(ticket), data)

plt.figure(figsize=(6, 4), layout="constrained")
for (method, found), colour in zip(accuracies.items(), PALETTE, strict=False):
    percent = [f"{100 * density:g} %" for density in DENSITIES]
    mean, deviation = 100 * found.mean(1), 100 * found.std(1)
    plt.errorbar(percent, mean, deviation, capsize=3, marker="o", color=colour.light, label=method)
plt.xlabel("weights remaining")
plt.ylabel("test accuracy, %")
plt.legend(title=f"mean ± std of {len(SEEDS)} seeds")
plt.savefig("methods.png", dpi=200)
