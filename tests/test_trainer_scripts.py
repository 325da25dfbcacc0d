"""Pruning in training scripts with Accelerate and with timm, whose loops are the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from loops import Twin, module_of
from torch import nn
from trainers import ADAM, EPOCHS, PRUNED, ROUND, START, STEPS_A_EPOCH, Loader, functional, killed

import lthfunc as lf


def last(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: int("".join(filter(str.isdigit, path.name))))


def with_accelerate(folder: Path, resume: bool = False) -> lf.Attached:
    import accelerate

    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # of other tests, whose precision it keeps
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="no")
    net: Any = module_of(START)
    net, optimizer = accelerator.prepare(net, Twin(net, ADAM))
    attached = lf.attach(net, optimizer, PRUNED, rewind=lf.rewound)
    accelerator.register_for_checkpointing(attached)
    loader, start = Loader(), 0
    if resume:
        accelerator.load_state(str(last(folder, "*")))
        start = int(last(folder, "*").name) + 1
    for epoch in range(start, EPOCHS):
        if epoch // ROUND > attached.round:
            attached.next_round()
        loader.set_epoch(epoch)
        for batch in loader:
            accelerator.backward(nn.functional.cross_entropy(net(batch["x"]), batch["labels"]))
            optimizer.step()
            optimizer.zero_grad()
        accelerator.save_state(str(folder / str(epoch)))
    attached.detach()
    return attached


def test_with_accelerate_a_killed_training_resumes_with_the_bits_of_the_functional_path(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the package accelerate is not installed")
    killed(lambda: with_accelerate(tmp_path))
    assert last(tmp_path, "*").name == "3"
    attached = with_accelerate(tmp_path, resume=True)
    assert attached.round == 2
    assert lf.same_bits(attached.ticket(), lf.ticket(functional()))


def with_timm(folder: Path, resume: str = "", attach_first: bool = True) -> lf.Attached:
    from timm.models import resume_checkpoint
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import CheckpointSaver

    net, start = module_of(START), None
    optimizer = create_optimizer_v2(net, opt="adam", lr=0.01, weight_decay=0.0)
    if resume and not attach_first:
        start = resume_checkpoint(net, resume, optimizer)
    attached = lf.attach(net, optimizer, PRUNED, rewind=lf.rewound, save_with_optimizer=True)
    if resume and attach_first:
        start = resume_checkpoint(net, resume, optimizer)
    schedule, epochs = create_scheduler_v2(optimizer, num_epochs=ROUND, cycle_limit=3, cycle_decay=1.0)
    saver = CheckpointSaver(net, optimizer, checkpoint_dir=str(folder))
    assert schedule is not None
    assert epochs == EPOCHS
    schedule.step(start or 0)
    loader = Loader()
    for epoch in range(start or 0, epochs):
        if epoch // ROUND > attached.round:
            attached.next_round()
        loader.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(batch["x"]), batch["labels"]).backward()
            optimizer.step()
        saver.save_checkpoint(epoch, metric=epoch)
        schedule.step(epoch + 1)
    attached.detach()
    return attached


def test_with_timm_a_killed_training_resumes_with_the_masks_of_the_functional_path(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="the package timm is not installed")
    killed(lambda: with_timm(tmp_path))
    checkpoint = last(tmp_path, "checkpoint-*")
    assert checkpoint.name.startswith("checkpoint-3.")
    first, second = (with_timm(tmp_path, str(checkpoint), attach_first) for attach_first in (True, False))
    assert lf.same_bits(first.ticket(), second.ticket())
    rates = torch.tensor([0.01, 0.0075, 0.0025], dtype=torch.float64)  # half a cosine in each round
    expected = functional(lf.adam(rates.repeat_interleave(STEPS_A_EPOCH)))
    assert lf.same_bits(first.masks, expected.masks)
    for name in expected.masks:
        torch.testing.assert_close(first.state.params[name], expected.params[name], atol=1e-4, rtol=1e-3)
