"""The network as Python source that needs PyTorch alone, and its weights."""

from __future__ import annotations

import re
from pathlib import Path

import safetensors.torch
from torch import nn
from torch.fx import GraphModule

from lthfunc.errors import UserError
from lthfunc.execution.export.subject import Subject
from lthfunc.trees.writing import write_atomically

_SOURCE = '''"""{title}

    import safetensors.torch
    network = Network().eval()
    network.load_state_dict(safetensors.torch.load_file("{weights}"))
"""

import torch
from torch import nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
{layers}

{forward}
'''


def module(subject: Subject, path: Path) -> list[Path]:
    """The compacted network as a plain ``nn.Module``: a Python file, and beside it a safetensors file of weights."""
    if subject.compacted is None:
        raise UserError(f"--to: module takes a compacted network, and {subject.why_not_compacted}")
    network = subject.compacted.model.evaluating
    assert isinstance(network, GraphModule)
    weights = path.with_suffix(".safetensors")
    names = _flat_names(network)
    state = {names[name]: leaf.contiguous() for name, leaf in network.state_dict().items()}
    remaining = sum(leaf.numel() for leaf in network.parameters())
    title = (
        f"{subject.model.name} without inputs, units and channels that nothing depends on: {remaining:,} parameters."
    )
    source = _SOURCE.format(
        title=title, weights=weights.name, layers="\n".join(_layers(network, names)), forward=_forward(network)
    )
    write_atomically(weights, safetensors.torch.save(state))
    write_atomically(path, source.encode())
    return [weights]


def _layers(network: GraphModule, names: dict[str, str]) -> list[str]:
    lines, inside = [], set()
    for name, part in network.named_modules():
        if isinstance(part, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            lines.append(f"        self.{_flat(name)} = nn.{part!r}")
            inside |= {f"{name}.{leaf}" for leaf, _ in part.named_parameters()}
    for name, leaf in (*network.named_parameters(), *network.named_buffers()):
        if name not in inside:
            made = f"torch.zeros({list(leaf.shape)}, dtype={leaf.dtype})"
            lines.append(f"        self.register_buffer({names[name]!r}, {made})")
    return lines


def _flat_names(network: GraphModule) -> dict[str, str]:
    """State's names in the source: a layer's leaf keeps its last dot."""
    own = {name for name, part in network.named_modules() if isinstance(part, (nn.Linear, nn.Conv1d, nn.Conv2d))}
    names = {}
    for name in network.state_dict():
        owner, _, leaf = name.rpartition(".")
        names[name] = f"{_flat(owner)}.{leaf}" if owner in own else _flat(name)
    return names


def _flat(name: str) -> str:
    flat = re.sub(r"\W", "_", name)
    return f"_{flat}" if flat[0].isdigit() else flat


def _forward(network: GraphModule) -> str:
    """The graph's source, with each name of a module or leaf flat."""
    code = network.code.strip()
    code = re.sub(r";  (?:\w+ = )+None$", "", code, flags=re.MULTILINE)  # fx frees what was read for the last time
    code = re.sub(r"getattr\(([^,]+), \"(\d+)\"\)", r"\1.\2", code)  # fx's way to write self.0
    targets = {str(node.target) for node in network.graph.nodes if node.op in ("call_module", "get_attr")}
    for target in sorted(targets, key=len, reverse=True):
        code = re.sub(rf"self\.{re.escape(target)}(?![\w.])", f"self.{_flat(target)}", code)
    return "\n".join(f"    {line}".rstrip() for line in code.splitlines())
