"""The network as Python source that needs only PyTorch, and its weights."""

from __future__ import annotations

import operator
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from lthfunc.deployment.compaction.liveness import args_of
from lthfunc.deployment.compaction.modules import BuildOutput
from lthfunc.deployment.export.exportable import Exportable, Exported, compared
from lthfunc.errors import UserError
from lthfunc.trees.atomic_io import write_atomically

_SOURCE = '''"""{title}

    import safetensors.torch
    network = Network().eval()
    network.load_state_dict(safetensors.torch.load_file("{weights}"))
"""

from math import inf, nan

import torch
from torch import device, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
{layers}

{forward}
'''


def module(subject: Exportable, path: Path) -> Exported:
    """The compacted network as a plain ``nn.Module``: a Python file and a safetensors file of weights beside it."""
    if subject.compacted is None:
        raise UserError(f"export: module takes a compacted network, and {subject.why_not_compacted}")
    network = _flat(subject.compacted.model.evaluating)
    weights = path.with_suffix(".safetensors")
    state = {name: leaf.detach().contiguous() for name, leaf in network.state_dict().items()}
    remaining = sum(leaf.numel() for leaf in network.parameters())
    title = f"{subject.model.name} without dead inputs, units and channels: {remaining:,} parameters."
    source = _SOURCE.format(
        title=title, weights=weights.name, layers="\n".join(_layers(network)), forward=_forward(network)
    )
    payload = safetensors.torch.save(state)
    found = compared(subject, "module", _made(source, payload))
    write_atomically(weights, payload)
    write_atomically(path, source.encode())
    return Exported([weights], found)


def _made(source: str, payload: bytes) -> nn.Module:
    """The network of a source that this module has written, with its weights."""
    names: dict[str, Any] = {}
    exec(source, names)
    network: nn.Module = names["Network"]().eval()
    network.load_state_dict(safetensors.torch.load(payload))
    return network


def _flat(network: nn.Module) -> GraphModule:
    """The network with names without dots, and dictionaries or tuples for classes that the source cannot import."""
    assert isinstance(network, GraphModule)
    graph, new, parts, flat = Graph(), dict[Node, Any](), dict[str, Any](), dict[str, str]()
    for name in dict.fromkeys(str(node.target) for node in network.graph.nodes if node.op == "call_module"):
        flat[name] = _unused(name, flat.values())
    for node in network.graph.nodes:
        if isinstance(node.target, BuildOutput):
            given = [new[each] for each in args_of(node)]
            keys = node.target.keys
            new[node] = tuple(given) if keys is None else dict(zip(keys, given, strict=True))
        elif node.op == "output":
            graph.output(torch.fx.node.map_arg(args_of(node)[0], new.__getitem__))
        else:
            new[node] = graph.node_copy(node, new.__getitem__)
        if node.op in ("call_module", "get_attr"):
            target = str(node.target)
            owner, _, leaf = target.rpartition(".")
            if owner in flat:  # another operation reads a layer's weight
                flat[target] = f"{flat[owner]}.{leaf}"
            name = flat.setdefault(target, _unused(target, flat.values()))
            parts[name] = operator.attrgetter(target)(network)
            new[node].target = name
    return GraphModule(parts, graph)


def _unused(target: str, names: Collection[str]) -> str:
    """A unique name of letters, digits and underscores."""
    name = re.sub(r"\W", "_", target)
    name = f"_{name}" if name[0].isdigit() else name
    while name in names:
        name += "_"
    return name


def _layers(network: GraphModule) -> list[str]:
    lines, inside = [], set()
    for name, part in network.named_children():
        lines.append(f"        self.{name} = nn.{part!r}")
        inside |= {f"{name}.{leaf}" for leaf in part.state_dict()}
    for name, leaf in (*network.named_parameters(), *network.named_buffers()):
        if name not in inside:
            made = f"torch.zeros({list(leaf.shape)}, dtype={leaf.dtype})"
            lines.append(f"        self.register_buffer({name!r}, {made})")
    return lines


def _forward(network: GraphModule) -> str:
    """The graph's source."""
    code = network.code.strip()
    code = re.sub(r";  (?:\w+ = )+None$", "", code, flags=re.MULTILINE)  # fx frees values after their last use
    return "\n".join(f"    {line}".rstrip() for line in code.splitlines())
