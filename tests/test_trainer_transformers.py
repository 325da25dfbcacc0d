"""Pruning in the Trainer of Hugging Face transformers: rounds, checkpoints, and what is refused."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import Twin, module_of
from torch import nn
from torch.utils.data import DataLoader
from trainers import ADAM, EPOCHS, PRUNED, ROUND, START, Endless, Loader, functional, killed, stripped

import lthfunc as lf
from lthfunc.errors import UserError

pytest.importorskip("accelerate", reason="the package accelerate is not installed")
T = pytest.importorskip("transformers", reason="the package transformers is not installed")


@pytest.fixture(autouse=True)
def _little_to_collect() -> Iterator[None]:
    """A Trainer collects garbage whenever it begins: half a second among all objects of a test run."""
    gc.freeze()
    yield
    gc.unfreeze()


class Net(nn.Module):
    """The network of these tests, with its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = module_of(START)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.net(x)
        return {"loss": nn.functional.cross_entropy(outputs, labels), "logits": outputs}


class Trainer(T.Trainer):  # type: ignore[misc, name-defined, unused-ignore]
    """With the batches of `lf.train`."""

    def get_train_dataloader(self) -> Any:
        return Loader()


def fit(folder: Path, pruning: Any, resume: bool | str = False, optimizers: Any = None, **more: Any) -> Any:
    arguments = T.TrainingArguments(
        str(folder), num_train_epochs=EPOCHS, report_to="none", disable_tqdm=True, use_cpu=True,
        **{"max_grad_norm": 0, "lr_scheduler_type": "constant", "save_strategy": "epoch", **more},
    )  # fmt: skip
    net = Net()
    pair = optimizers(net) if optimizers else (Twin(net.net, ADAM), None)
    trainer = Trainer(net, arguments, callbacks=[pruning], eval_dataset=Loader().dataset, optimizers=pair)
    trainer.train(resume_from_checkpoint=resume)
    return getattr(pruning, "attached", None)


def rounds() -> Any:
    return lf.transformers_callback(PRUNED, epochs=ROUND, rewind=lf.rewound)


def test_a_training_that_is_killed_and_resumed_has_the_bits_of_the_functional_path(tmp_path: Path) -> None:
    killed(lambda: fit(tmp_path, rounds()))
    assert sorted(int(path.name[11:]) for path in tmp_path.glob("checkpoint-*")) == [4, 8, 12, 16]
    attached = fit(tmp_path, rounds(), resume=True)
    assert attached.round == 2
    assert lf.same_bits(stripped(attached.ticket(), "net."), lf.ticket(functional()))


def test_rounds_of_epochs_rewind_the_schedule_and_resume_with_the_same_bits(tmp_path: Path) -> None:
    """With mixed precision, clipped gradients, and two steps in an epoch of four batches, from within such an epoch."""
    rates: list[float] = []

    def optimizers(net: nn.Module) -> Any:
        optimizer = torch.optim.AdamW(net.parameters(), 0.01)
        optimizer.register_step_post_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
        return optimizer, T.get_cosine_schedule_with_warmup(optimizer, 2, 6)

    def train(resume: str | bool = False) -> Any:
        pruning = lf.transformers_callback(PRUNED, epochs=3, rewind=lf.rewound, anchor_step=2, never_prune=["net.3.*"])
        more = {"gradient_accumulation_steps": 3, "max_grad_norm": 0.5, "bf16": True}
        return fit(tmp_path, pruning, resume, optimizers, save_strategy="steps", save_steps=3, **more)

    whole = train()
    assert rates[:3] == [0, 0.005, 0.01]
    assert rates == [*rates[:6], *3 * rates[2:6]]
    resumed = train(str(tmp_path / "checkpoint-9"))
    assert lf.same_bits([resumed.state, resumed.anchor], [whole.state, whole.anchor])
    assert [*whole.masks] == ["net.0.weight"]
    assert lf.count(whole.masks).kept == 17  # of 48, three times without three tenths


def test_a_plan_of_steps_goes_on_where_its_checkpoint_was(tmp_path: Path) -> None:
    def train(resume: str | bool = False) -> Any:
        pruning = lf.transformers_callback([(0, PRUNED), (10, PRUNED), (20, PRUNED)], rewind=lf.rewound)
        # Adagrad's state begins above zero.
        return fit(tmp_path, pruning, resume, lambda net: (torch.optim.Adagrad(net.parameters(), 0.1), None))

    whole = train()
    resumed = train(str(tmp_path / "checkpoint-16"))
    assert lf.same_bits(resumed.state, whole.state)
    assert (whole.round, whole.step) == (3, 36 - 10 - 20)


def test_weights_that_the_trainer_has_not_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5 saves a ViT under names that its Trainer doesn't find, and only logs; nothing is pruned yet."""
    whole = fit(tmp_path, rounds())
    first = str(tmp_path / "checkpoint-4")
    with monkeypatch.context() as patched:
        patched.setattr(T.Trainer, "_load_from_checkpoint", lambda *_: None)
        with pytest.raises(
            UserError, match=r"the Trainer has not read net\.0\.weight from the checkpoint.* from_pretrained"
        ):
            fit(tmp_path, rounds(), first)
    assert lf.same_bits(fit(tmp_path, rounds(), first).ticket(), whole.ticket())


def test_a_training_that_resumes_at_its_end_prunes_no_more(tmp_path: Path) -> None:
    def train(resume: bool = False) -> Any:
        return fit(tmp_path, lf.transformers_callback(PRUNED, steps=6), resume, max_steps=18)

    whole, again = train(), train(resume=True)
    assert again.round == 2
    assert lf.same_bits(again.masks, whole.masks)


def test_what_cannot_work_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(pruning: Any, resume: Any = False, optimizers: Any = None, **more: Any) -> str:
        with pytest.raises(UserError) as error:
            fit(tmp_path, pruning, resume, optimizers, **more)
        assert "\n" not in str(error.value)
        return str(error.value)

    def strange(_: nn.Module) -> Any:
        return torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1), None

    make = lf.transformers_callback
    assert "epochs: invalid value 9 (expected fewer than the trainer's 9)" in refused(make(PRUNED, epochs=9))
    assert "its last round begins after 37 steps of 36" in refused(make([(1, PRUNED), (37, PRUNED)]))
    not_called: Any = (0.5, lf.prune)
    for wrong in not_called:
        with pytest.raises(UserError, match=r"^transformers_callback: plan must be a transformation, such as .*, not"):
            make(wrong, epochs=2)
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch"}
    assert "load_best_model_at_end would bring back weights" in refused(make(PRUNED, epochs=2), **best)
    assert "optimizer does not own net.0.weight" in refused(make(PRUNED, epochs=2), optimizers=strange)
    fit(tmp_path, make(PRUNED, epochs=1), max_steps=8)
    assert "epochs is 2, and was 1 in the checkpoint" in refused(make(PRUNED, epochs=2), True)
    assert "its masks are of another network" in refused(make(PRUNED, epochs=1, never_prune=["net.3.*"]), True)
    fit(tmp_path, T.TrainerCallback(), max_steps=12)
    assert "has no masks; it was saved without this callback" in refused(make(PRUNED, epochs=1), True)
    monkeypatch.setattr(Trainer, "get_train_dataloader", lambda self: DataLoader(Endless(), None))
    assert "these data have no length; give steps" in refused(make(PRUNED, epochs=2), max_steps=9)
    assert fit(tmp_path, make(PRUNED, steps=3), max_steps=9).round == 2
