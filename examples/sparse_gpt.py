"""A GPT with one weight in a thousand, trained from scratch, and the circuit in it that closes brackets, drawn.

The text is Python's own documentation, which every CPython has.
"""

import argparse
import pydoc_data.topics
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import lthfunc as lf
from lthfunc.reports.charts import GREY, PALETTE

OPENING, CLOSING = "([", ")]"
QUICK = {"width": 64, "layers": 2, "density": 0.2, "steps": 400, "length": 32, "batch": 32, "most": 128}


def settings():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--width", type=int, default=1024, help="of the residual stream; heads are 32 wide")
    parser.add_argument("--layers", type=int, default=4, help="blocks of attention and an MLP")
    parser.add_argument("--density", type=float, default=0.001, help="of all weights")
    parser.add_argument("--steps", type=int, default=4000, help="of training")
    parser.add_argument("--length", type=int, default=64, help="characters that are read")
    parser.add_argument("--batch", type=int, default=16, help="windows of text in a step")
    parser.add_argument("--rate", type=float, default=3e-3, help="Adam's learning rate")
    parser.add_argument("--lose", type=float, default=0.02, help="accuracy that the circuit may lose")
    parser.add_argument(
        "--most", type=int, default=256, help="texts that weights are scored on, and as many that choose"
    )
    parser.add_argument("--seed", type=int, default=0, help="of masks, weights and batches")
    parser.add_argument("--state", metavar="FILE", help="the trained network: read where it is there, written if not")
    parser.add_argument("--out", default="circuit.svg", help="the picture: .svg, .png or .pdf")
    parser.add_argument("--quick", action="store_true", help=f"other defaults: {QUICK}".replace("'", ""))
    if parser.parse_args().quick:
        parser.set_defaults(**QUICK)
    given = parser.parse_args()
    for name, least in {"width": 32, "steps": 1, "batch": 1, "most": 2, "lose": 0}.items():
        if getattr(given, name) < least:
            parser.error(f"--{name}: {getattr(given, name)} is less than {least}")
    if Path(given.out).suffix not in (".svg", ".png", ".pdf"):
        parser.error(f"--out: {given.out} is no .svg, .png or .pdf")
    for path in (given.out, given.state or given.out):  # before a training of many minutes
        if not Path(path).absolute().parent.is_dir():
            parser.error(f"{path}: there is no such folder")
    return given


def text(length):
    """A data set of the documentation: windows of `length` characters, each with what follows."""
    topics = pydoc_data.topics.topics
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "topics.txt"
        file.write_text("\n\n".join(topics[name] for name in sorted(topics)), encoding="utf-8")
        return lf.data.load(f"text:{file}", options={"length": str(length)})


def trained(module, data, given):
    """The survivors after training. Twenty times on the way, SET exchanges a fifth of each layer's."""

    def exchange(network, now):
        return lf.random_growth(now.seed, now.step), 0.2

    def change(state, now):
        return lf.drop_and_grow(state, *exchange(None, now))

    every = max(1, given.steps // 25)
    updates = lf.MaskUpdates(tuple(range(every, 21 * every, every)), change, exchange=exchange)
    optimizer = lf.adam(lf.cosine(given.rate, given.steps))
    state, began = lf.init_packed(module, given.density, given.seed), time.perf_counter()
    for steps in sorted({max(1, given.steps * part // 10) for part in range(1, 11)}):  # ten parts, to see it learn
        state = lf.train_packed(
            module, data, optimizer=optimizer, steps=steps, batch_size=given.batch, seed=given.seed, updates=updates
        )(state)
        right, seconds = lf.packed_accuracy(module, state, data, "val"), time.perf_counter() - began
        print(f"{state}, {right:.1%} of the next characters right, {seconds:.0f} s", flush=True)
    return state


def closings(data, split, most):
    """Texts before a bracket that closes one in them, as many for each bracket, and the number of the bracket."""
    (length,), row = data.shape, getattr(data, split).x.flatten()
    opening, closing = ([data.labels.index(each) for each in brackets] for brackets in (OPENING, CLOSING))
    found, opened = [[] for _ in closing], []
    for place, number in enumerate(row.tolist()):
        opened = [(kind, at) for kind, at in opened if place - at <= length]
        if number in opening:
            opened.append((opening.index(number), place))
        elif opened and number == closing[opened[-1][0]]:
            kind, _ = opened.pop()
            if place >= length:
                found[kind].append(row[place - length : place])
    count = min(most // len(found), *map(len, found))
    chosen = [each for texts in found for each in texts[:: len(texts) // count][:count]]
    return torch.stack(chosen), torch.arange(len(found)).repeat_interleave(count)


def importance(model, task, loss, right):
    """A score: (gradient · weight)², as `lf.taylor` has it for one batch, at the cost of the survivors.

    The gradient is what a step of gradient descent at rate 1 takes from the weights. `loss` is the margin, not the
    cross-entropy, whose gradients vanish, and say nothing, where the network is sure.
    """
    part = min(32, len(task.train.x))  # texts in memory at a time
    descent = lf.chain(lf.accumulate(len(task.train.x) // part), lf.sgd(1.0))
    step = lf.train(
        model, task, optimizer=descent, steps=1, batch_size=part, loss=loss, metric=right, engine=lf.sparse_engine
    )

    def score(params, masks):
        after = step(lf.TrainState(params, {}, masks, (), torch.tensor(0))).params
        return {name: ((params[name] - after[name]) * params[name]).square() for name in masks}

    return score


def smallest(state, score, works):
    """The fewest weights with which the network works, among the networks on the way to one weight.

    Half of the weights are dropped by new scores again and again: a network that fails may be followed by one that
    works. After the last that works, the number is found by bisection, to one weight.
    """

    def keep(state, count, score):
        return lf.prune(density=count / lf.count(state.masks).total, score=score)(state)

    half = state
    while (left := lf.count(half.masks).kept) > 1:
        half = keep(half, left // 2, score)
        state = half if works(half) else state
    scores, enough = score(state.params, state.masks), lf.count(state.masks).kept
    fails = enough // 2
    while enough - fails > 1:
        middle = (fails + enough) // 2
        if works(keep(state, middle, lambda params, masks: scores)):
            enough = middle
        else:
            fails = middle
    return keep(state, enough, lambda params, masks: scores)


def edges(state, labels, layers):
    """Of each surviving weight (column, node) twice, where it reads and where it writes, and its value.

    Columns are the characters, then by turns the residual stream and a block's attention or MLP, then the logits.
    """
    width = state.params["norm.weight"].numel()

    def attention(unit):
        return "qkv"[unit // width], unit % width

    last = 4 * layers + 2
    ends = {
        "characters.weight": ((1, int), (0, labels.__getitem__)),
        "head.weight": ((last, labels.__getitem__), (last - 1, int)),
    }
    for block in range(layers):
        name, column = f"blocks.{block}.", 4 * block + 1
        ends[f"{name}attention.qkv.weight"] = (column + 1, attention), (column, int)
        ends[f"{name}attention.out.weight"] = (column + 2, int), (column + 1, lambda unit: ("v", unit))
        ends[f"{name}up.weight"] = (column + 3, int), (column + 2, int)
        ends[f"{name}down.weight"] = (column + 4, int), (column + 3, int)
    found = []
    for name, mask in state.masks.items():
        (to, write), (start, read) = ends[name]
        for place in mask.nonzero().tolist():
            value = float(state.params[name][tuple(place)])
            out, into = reversed(place) if name == "characters.weight" else place
            found.append(((start, read(into)), (to, write(out)), value))
    return found


def draw(found, layers, title, path):
    """The circuit from left to right: nodes are units, lines are weights, and a grey line is a residual channel."""
    columns = {}
    for start, to, _ in found:
        for column, node in (start, to):
            columns.setdefault(column, set()).add(node)
    at = {}
    for column, nodes in columns.items():
        for rank, node in enumerate(sorted(nodes, key=str)):
            at[column, node] = column, (rank + 0.5) / len(nodes)
    figure, axes = plt.subplots(figsize=(11, 6), layout="constrained")
    for column in range(1, 4 * layers + 1, 2):  # a channel goes on to the next column that has it
        for node in columns.get(column, ()):
            later = next((each for each in range(column + 2, 4 * layers + 2, 2) if node in columns.get(each, ())), None)
            if later:
                axes.plot(*zip(at[column, node], at[later, node], strict=True), color=GREY.light, lw=0.5, zorder=1)
    most = max(abs(value) for _, _, value in found)
    for start, to, value in found:
        colour = PALETTE[0 if value > 0 else 1].light
        width = 0.3 + 2 * abs(value) / most
        axes.plot(*zip(at[start], at[to], strict=True), color=colour, lw=width, alpha=0.7, zorder=2)
    axes.scatter(*zip(*at.values(), strict=True), s=12, color="black", zorder=3)
    for (column, node), place in at.items():
        if column in (0, 4 * layers + 2) or len(columns[column]) <= 24:
            name = repr(node) if isinstance(node, str) else "".join(map(str, node)) if isinstance(node, tuple) else node
            axes.annotate(name, place, (0, 4), textcoords="offset points", ha="center", fontsize=6)
    names = ["characters", *["residual", "attention", "residual", "MLP"] * layers, "residual", "logits"]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks([])
    axes.set_title(title)
    for colour, label in zip(PALETTE, ("positive weight", "negative weight"), strict=False):
        axes.plot([], [], color=colour.light, label=label)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    figure.savefig(path, dpi=200)


def main():
    given = settings()
    data = text(given.length)
    model = lf.models.char_transformer(
        data.shape, data.classes, width=given.width, layers=given.layers, heads=given.width // 32
    )
    if given.state and Path(given.state).exists():
        packed = lf.load_packed(given.state)
    else:
        packed = trained(model.training, data, given)
        if given.state:
            lf.save_packed(given.state, packed)
    print(f"test: {lf.packed_accuracy(model.training, packed, data):.1%} of the next characters right")

    task = lf.data.from_tensors(
        "brackets", closings(data, "train", 2 * given.most), closings(data, "test", given.most), val=given.most
    )
    closing = torch.tensor([data.labels.index(each) for each in CLOSING])

    def margin(outputs, kinds):  # how far the wrong bracket is ahead of the right one
        logits, kinds = outputs[:, -1, closing], kinds[:, None]
        return (logits.gather(1, 1 - kinds) - logits.gather(1, kinds)).mean()

    def right(outputs, kinds):
        return (outputs[:, -1, closing].argmax(1) == kinds).float().mean()

    def accuracy(state, split):
        return float(right(lf.sparse_program(model, state)(split.x), split.y))

    state = lf.unpack_state(packed)._replace(opt=())
    least = accuracy(state, task.val) - given.lose
    circuit = smallest(state, importance(model, task, margin, right), lambda state: accuracy(state, task.val) >= least)
    kept = lf.count(circuit.masks).kept
    for name, each in (("network", state), ("circuit", circuit)):
        count, chosen, tested = lf.count(each.masks).kept, accuracy(each, task.val), accuracy(each, task.test)
        choose = "weight chooses" if count == 1 else "weights choose"
        print(f"{name}: {count:,} {choose} between {' and '.join(CLOSING)}: {chosen:.1%} right, test {tested:.1%}")
    found = edges(circuit, data.labels, given.layers)
    draw(
        found,
        given.layers,
        f"{kept} {'weight that chooses' if kept == 1 else 'weights that choose'} between {' and '.join(CLOSING)}",
        given.out,
    )
    print(f"the circuit: {given.out}")


if __name__ == "__main__":
    try:
        main()
    except lf.UserError as error:
        raise SystemExit(f"sparse_gpt.py: {error}") from None
