"""Hugging Face's BERT, GPT-2, Llama and ViT, tiny and random: pruned, trained, compacted, specialised, exported."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import gradient_of
from torch import Tensor

import lthfunc as lf
from lthfunc.catalog.deployment import EXPORTS
from lthfunc.deployment.export.exportable import exportable_of
from lthfunc.errors import UserError
from lthfunc.training.engines.eager import eager
from lthfunc.trees.model import apply_evaluating
from lthfunc.trees.outputs import prediction
from lthfunc.trees.types import Dataset, Split

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

WORDS, LENGTH, CLASSES = 16, 6, 3
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
POSITIONS = {"vocab_size": WORDS, "max_position_embeddings": 8}
NAMES = ("bert", "gpt2", "llama", "vit")
#: What the sparse engine trains of them.
ON_SURVIVORS = ("bert", "vit")


def made(name: str, dropout: float = 0.1) -> Any:
    """dropout: BERT's; ViT has none here."""
    torch.manual_seed(0)
    if name == "bert":
        drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        config = transformers.BertConfig(**SMALL, **POSITIONS, **drops, num_labels=CLASSES)
        return transformers.BertForSequenceClassification(config)
    if name == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=WORDS, n_positions=8, n_embd=16, n_layer=1, n_head=2)
        )
    if name == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, **POSITIONS, num_key_value_heads=1))
    config = transformers.ViTConfig(**SMALL, image_size=8, patch_size=4, num_channels=1, num_labels=CLASSES)
    return transformers.ViTForImageClassification(config)


def data_for(name: str) -> Dataset:
    draw = torch.Generator().manual_seed(0)
    if name == "vit":
        x, y = torch.randn(24, 1, 8, 8, generator=draw), torch.arange(24) % CLASSES
    else:
        x = torch.randint(0, WORDS, (24, LENGTH), generator=draw)
        y = x[:, 0] % CLASSES if name == "bert" else x.roll(-1, 1)
    part = Split(x, y)
    return Dataset(name, part, part, part, WORDS if name in ("gpt2", "llama") else CLASSES)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code as its trace, which is ours; the compiler is PyTorch's and takes seconds."""
    monkeypatch.setattr(torch._inductor, "standalone_compile", lambda graph, *given, **settings: graph)


@pytest.mark.filterwarnings("ignore")  # of exporters, about themselves
@pytest.mark.parametrize("name", NAMES)
def test_networks_of_hugging_face(name: str, tmp_path: Path) -> None:
    module, data = made(name), data_for(name)
    model = lf.from_module(module, tokens=name != "vit")
    pruned = lf.prune(density=0.5)(lf.init(model, 1))
    if name == "gpt2":
        assert "transformer.h.0.attn.c_attn.weight" in model.prunable
    trainer = lf.make_trainer(model, data, optimizer=lf.sgd(0.1), batch_size=24)
    state, loss = lf.take_steps(trainer, pruned, seed=0, until=4)
    assert loss < lf.take_steps(trainer, pruned, seed=0, until=1)[1] * 4
    assert 0 <= lf.accuracy_on(model, state, data) <= 1
    for key, mask in state.masks.items():
        assert not state.params[key][~mask].any()
    ticket, shape, x = lf.ticket(state), data.shape, data.test.x[:5]

    # The reference: Hugging Face's own module with these values, by name.
    plain = made(name).eval()
    with torch.no_grad():
        for key, leaf in plain.named_parameters():
            leaf.copy_(state.params[key])
        wanted = plain(x).logits
    assert_same(apply_evaluating(model, state.params, state.buffers, x), wanted)

    small = lf.compact(model, ticket, shape)
    assert_same(small.model.evaluating(x), wanted)
    assert type(small.model.evaluating(x)) is type(plain(x))
    program = lf.specialize(ticket, model, x, format="dense")
    assert_same(program(x), wanted)
    assert "compiled code" not in program.report.left_out
    if name in ON_SURVIVORS:
        still = lf.from_module(made(name, dropout=0.0), tokens=name != "vit")
        sparse, dense = (
            lf.train(still, data, optimizer=lf.sgd(0.1), steps=3, batch_size=8, engine=engine)(pruned)
            for engine in (lf.sparse_engine, eager)
        )
        torch.testing.assert_close(sparse.params, dense.params, rtol=1e-4, atol=1e-5)
    else:
        with pytest.raises(UserError, match=r"^engine: sparse "):
            lf.train(model, data, optimizer=lf.sgd(0.1), steps=1, batch_size=8, engine=lf.sparse_engine)(pruned)

    subject = exportable_of(model, ticket, shape)
    assert subject.why_not_compacted is None
    EXPORTS.load("state-dict")(subject, tmp_path / "state.pt")
    loaded = made(name)
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=True)
    assert_same(loaded.eval()(x), wanted)
    EXPORTS.load("torch-export")(subject, tmp_path / "net.pt2")
    assert_same(torch.export.load(tmp_path / "net.pt2").module()(x), wanted)
    if importlib.util.find_spec("onnxruntime") is None:
        return
    import onnxruntime

    EXPORTS.load("onnx")(subject, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    got = session.run(None, {"inputs": x.numpy()})
    assert_same({"logits": torch.from_numpy(got[names.index("logits")])}, wanted)


def test_a_mask_of_attention_is_a_part_of_the_input() -> None:
    """Inputs by name, as the module calls them; padding is then not seen."""
    data = data_for("bert")
    mask = (torch.arange(LENGTH) < 4).long().expand(24, -1)
    pair = ({"input_ids": data.train.x, "attention_mask": mask}, data.train.y)
    parted = lf.data.from_tensors("d", pair, pair, val=4, classes=CLASSES)
    model = lf.from_module(made("bert"), parts=parted.parts)
    state = lf.init(model)
    plain = made("bert").eval()
    with torch.no_grad():
        for key, leaf in plain.named_parameters():
            leaf.copy_(state.params[key])
        wanted = plain(input_ids=data.train.x, attention_mask=mask).logits
    order = [int(torch.nonzero((data.train.x == row[:LENGTH].long()).all(1))[0]) for row in parted.test.x]
    assert_same(apply_evaluating(model, state.params, state.buffers, parted.test.x), wanted[order])
    trained = lf.train(model, parted, optimizer=lf.sgd(0.1), steps=2, batch_size=8)(lf.prune(density=0.5)(state))
    assert 0 <= lf.accuracy_on(model, trained, parted) <= 1


def assert_same(got: Any, wanted: Tensor) -> None:
    torch.testing.assert_close(prediction(got).detach(), wanted, rtol=1e-4, atol=1e-5)


class Loss(torch.nn.Module):
    """Gives what its `given` names."""

    def __init__(self, given: str) -> None:
        super().__init__()
        self.fc, self.given = torch.nn.Linear(4, 3), given

    def forward(self, x: Tensor) -> Any:
        y = self.fc(x)
        both = {"logits": y, "more": x, "loss": y.square().mean(), "first": y, "second": x}
        wanted = {"logits": ["more", "logits", "loss"], "loss": ["loss"], "single": ["first"]}
        if self.given == "tuple":
            return y, x
        return {key: both[key] for key in wanted.get(self.given, ["first", "second"])}


@pytest.mark.parametrize("given", ["logits", "loss", "single", "tuple", "unclear"])
def test_the_default_loss_finds_the_logits_or_says_what_to_give(given: str) -> None:
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    data = Dataset("d", Split(x, y), Split(x, y), Split(x, y), 3)
    model = lf.from_module(Loss(given))
    state = lf.init(model)
    metric = {"metric": lambda outputs, targets: outputs["loss"].double()} if given == "loss" else {}
    settings: dict[str, Any] = {"optimizer": lf.sgd(0.5), "steps": 1, "batch_size": 12, **metric}
    if given == "unclear":
        with pytest.raises(UserError, match=r"returns a dict of first, second, without an entry called logits; pass"):
            lf.train(model, data, **settings)(state)
        return
    run = lf.train(model, data, **settings)
    module: Any = lf.to_module(lf.ticket(state), model).fc
    weight = module.weight.detach().clone().requires_grad_()
    out = F.linear(x, weight, module.bias.detach())
    wanted = out.square().mean() if given == "loss" else F.cross_entropy(out, y)
    wanted.backward()
    torch.testing.assert_close(run(state).params["fc.weight"], weight.detach() - 0.5 * gradient_of(weight))
