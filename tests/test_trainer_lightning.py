"""Pruning in Lightning's Trainer: rounds, checkpoints, ranks, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import gradient_of
from loops import Twin, module_of
from torch import nn
from torch.optim.lr_scheduler import StepLR
from trainers import ADAM, EPOCHS, PRUNED, ROUND, START, Loader, functional, killed, stripped

import lthfunc as lf
from lthfunc.errors import UserError

L = pytest.importorskip("lightning.pytorch", reason="the package lightning is not installed")
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Net(L.LightningModule):  # type: ignore[misc, name-defined, unused-ignore]
    """The network of these tests, with its optimiser and schedule."""

    def __init__(self, optimizer: Any = lambda net: Twin(net, ADAM), scheduler: Any = None) -> None:
        super().__init__()
        self.net, self.optimizer, self.scheduler = module_of(START), optimizer, scheduler
        self.rates: list[float] = []

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return nn.functional.cross_entropy(self.net(batch["x"]), batch["labels"])

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.net)
        return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer)} if self.scheduler else optimizer


def fit(folder: Path, net: Net, pruning: Any, checkpoint: str | None = None, **more: Any) -> Any:
    saving = L.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    trainer = L.Trainer(**{"max_epochs": EPOCHS, "callbacks": [pruning, saving], **QUIET, **more})
    trainer.fit(net, Loader(), ckpt_path=checkpoint and folder / f"epoch={checkpoint}.ckpt")
    return getattr(pruning, "attached", None)


def rounds() -> Any:
    return lf.lightning_callback(PRUNED, epochs=ROUND, rewind=lf.rewound)


def test_a_training_that_is_killed_and_resumed_has_the_bits_of_the_functional_path(tmp_path: Path) -> None:
    killed(lambda: fit(tmp_path, Net(), rounds()))
    assert sorted(path.stem for path in tmp_path.iterdir()) == [f"epoch={number}" for number in range(4)]
    attached = fit(tmp_path, Net(), rounds(), "3")
    assert attached.round == 2
    assert lf.same_bits(stripped(attached.ticket(), "net."), lf.ticket(functional()))


def test_rounds_of_epochs_rewind_the_schedule_and_resume_with_the_same_bits(tmp_path: Path) -> None:
    """With mixed precision, clipped gradients, two steps in an epoch of four batches, and from within a round."""
    nets, found = [], []
    for checkpoint in (None, "4"):
        nets.append(Net(lambda net: torch.optim.AdamW(net.parameters(), 0.01), lambda each: StepLR(each, 1, 0.5)))
        pruning = lf.lightning_callback(PRUNED, epochs=3, rewind=lf.rewound, anchor_step=2, never_prune=["net.3.*"])
        more = {"precision": "bf16-mixed", "accumulate_grad_batches": 3, "gradient_clip_val": 0.5}
        found.append(fit(tmp_path, nets[-1], pruning, checkpoint, **more))
    assert lf.same_bits([found[1].state, found[1].anchor], [found[0].state, found[0].anchor])
    assert [*found[0].masks] == ["net.0.weight"]
    assert lf.count(found[0].masks).kept == 17  # of 48, three times without three tenths
    assert nets[0].rates[::4] == [0.01 / 2**epoch for epoch in (0, 1, 2, 1, 2, 1, 2, 1, 2)]


def test_accumulation_that_a_callback_schedules_counts_as_the_trainers(tmp_path: Path) -> None:
    """Four batches in an epoch, by which steps are counted."""

    def train(pruning: Any, scheduling: dict[int, int] | None = None, **more: Any) -> Any:
        callbacks = [pruning, *([L.callbacks.GradientAccumulationScheduler(scheduling)] if scheduling else [])]
        L.Trainer(max_epochs=4, callbacks=callbacks, enable_checkpointing=False, **QUIET, **more).fit(Net(), Loader())
        return pruning.attached

    def rounds(**more: Any) -> Any:
        return lf.lightning_callback(PRUNED, rewind=lf.rewound, **more)

    found = [train(rounds(epochs=2), {0: 3}), train(rounds(epochs=2), accumulate_grad_batches=3)]
    assert lf.same_bits(*(each.ticket() for each in found))
    assert (found[0].round, found[0].step) == (1, 4)
    with pytest.raises(UserError, match="epochs: their steps differ, since the number of accumulated batches changes"):
        train(rounds(epochs=2), {0: 1, 2: 4})
    assert (train(rounds(steps=6), {0: 1, 2: 4}).round, rounds(steps=6).attached) == (1, None)
    with pytest.raises(UserError, match=r"steps: invalid value 10 \(expected fewer than the trainer's 10\)"):
        train(rounds(steps=10), {0: 1, 2: 4})  # two epochs of four steps, and two of one


def test_a_plan_of_steps_goes_on_where_its_checkpoint_was(tmp_path: Path) -> None:
    def train(checkpoint: str | None = None, **more: Any) -> Any:
        plan = [(0, PRUNED), (10, PRUNED), (20, PRUNED)]
        net = Net(lambda net: torch.optim.Adagrad(net.parameters(), 0.1))  # whose state begins above zero
        return fit(tmp_path, net, lf.lightning_callback(plan, rewind=lf.rewound, **more), checkpoint)

    whole = train()
    resumed = train("3")
    assert lf.same_bits(resumed.state, whole.state)
    assert (whole.round, whole.step) == (3, 36 - 10 - 20)


def test_a_fast_run_needs_no_plan_of_its_own(tmp_path: Path) -> None:
    """Lightning's `fast_dev_run` takes a few batches, fewer than the rounds that are planned."""
    steps = lf.lightning_callback([(0, PRUNED), (30, PRUNED)])
    for pruning, begun in ((lf.lightning_callback(PRUNED, epochs=ROUND), 0), (steps, 1)):
        attached = fit(tmp_path, Net(), pruning, fast_dev_run=2)
        assert (attached.step, attached.round) == (2, begun)


def test_fitting_once_more_goes_on(tmp_path: Path) -> None:
    pruning = lf.lightning_callback(PRUNED, epochs=ROUND, rewind=lf.rewound)
    trainer, net = L.Trainer(max_epochs=6, callbacks=[pruning], enable_checkpointing=False, **QUIET), Net()
    trainer.fit(net, Loader())
    trainer.fit_loop.max_epochs = EPOCHS
    trainer.fit(net, Loader())
    assert lf.same_bits(stripped(pruning.attached.ticket(), "net."), lf.ticket(functional()))
    fit(tmp_path, Net(), pruning)  # from the start, with another Trainer
    assert lf.same_bits(stripped(pruning.attached.ticket(), "net."), lf.ticket(functional()))


class Halves(Loader):
    """Of each batch, the examples of this rank."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            yield {name: leaf[torch.distributed.get_rank() :: 2] for name, leaf in batch.items()}


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="ranks are forked here")
def test_ranks_hold_the_same_masks_or_say_so(tmp_path: Path) -> None:
    class Told(L.Callback):  # type: ignore[misc, name-defined, unused-ignore]
        def on_train_batch_end(self, *_: Any) -> None:
            for name, mask in pruning.attached.masks.items():
                assert not gradient_of(net.get_parameter(name))[~mask].any()

        def on_train_end(self, *_: Any) -> None:
            torch.save(tuple(pruning.attached.ticket()), tmp_path / f"{torch.distributed.get_rank()}.pt")

    def train(callback: Any) -> None:
        more = {"strategy": "ddp_fork", "devices": 2, "use_distributed_sampler": False, "enable_checkpointing": False}
        L.Trainer(max_epochs=EPOCHS, callbacks=[callback, Told()], **more, **QUIET).fit(net, Halves())

    net = Net()
    pruning = lf.lightning_callback(PRUNED, epochs=ROUND, rewind=lf.rewound)
    train(pruning)
    tickets = [lf.Ticket(*torch.load(tmp_path / f"{rank}.pt")) for rank in range(2)]
    assert lf.same_bits([tickets[0].params, tickets[0].masks], [tickets[1].params, tickets[1].masks])
    assert lf.count(tickets[0].masks).kept == 35  # of 72, twice without three tenths

    def of_its_own(params: Any, masks: Any) -> Any:
        return lf.random_scores(torch.distributed.get_rank())(params, masks)

    with pytest.raises(Exception, match="plan: round 1: the masks of rank 1 differ from those of rank 0"):
        train(lf.lightning_callback(lf.prune(fraction=0.3, score=of_its_own), epochs=ROUND))


def test_what_cannot_work_is_refused_in_one_line(tmp_path: Path) -> None:
    def refused(pruning: Any, checkpoint: str | None = None, net: Any = None, folder: Path = tmp_path) -> str:
        with pytest.raises(UserError) as error:
            fit(folder, net or Net(), pruning, checkpoint)
        assert "\n" not in str(error.value)
        return str(error.value)

    make = lf.lightning_callback
    assert "epochs: invalid value 9 (expected fewer than the trainer's 9)" in refused(make(PRUNED, epochs=9))
    assert "steps: invalid value 40 (expected fewer than the trainer's 36)" in refused(make(PRUNED, steps=40))
    assert "its last round begins after 38 steps of 36" in refused(make([(1, PRUNED), (38, PRUNED)]))
    again = make([(20, PRUNED)] * 2, rewind=lf.rewound, anchor_step=3)
    assert "its last round begins after 37 steps of 36" in refused(again)
    with pytest.raises(UserError, match=r"^lightning_callback: plan must be a transformation, such as .*, not 0\.5"):
        make(0.5, epochs=2)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="give epochs or steps"):
        make(PRUNED, epochs=2, steps=3)
    with pytest.raises(UserError, match="a whole number of at least 1"):
        make(PRUNED, epochs=0)
    strange = Net(lambda _: torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1))
    assert "optimizer does not own net.0.weight" in refused(make(PRUNED, epochs=2), net=strange)
    assert not any(leaf._post_accumulate_grad_hooks for leaf in strange.parameters())

    fit(tmp_path, Net(), make(PRUNED, epochs=1), max_epochs=2)
    assert "epochs is 2, and was 1 in the checkpoint" in refused(make(PRUNED, epochs=2), "1")
    assert "its masks are of another network" in refused(make(PRUNED, epochs=1, never_prune=["net.3.*"]), "1")
    steps, none = tmp_path / "steps", tmp_path / "none"
    fit(steps, Net(), make([(2, PRUNED), (3, PRUNED)]), max_epochs=1)
    other = refused(make([(1, PRUNED), (3, PRUNED)]), "0", folder=steps)
    assert "its rounds began at [2, 3], those of this one at [1, 3]" in other
    fit(none, Net(), L.Callback(), max_epochs=1)
    assert "has no masks; it was saved without this callback" in refused(make(PRUNED, epochs=1), "0", folder=none)
