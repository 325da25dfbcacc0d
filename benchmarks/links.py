"""Ranks on links of a known rate: network namespaces joined by a bridge, each with an interface of limited rate."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from lthfunc.errors import UserError

_NUMBERS = itertools.count()


class Host(NamedTuple):
    """Where a rank runs. prefix: of its command; interface: for its traffic; head: the address of rank 0."""

    prefix: tuple[str, ...]
    interface: str
    head: str


@contextmanager
def hosts(ranks: int, megabits: float | None) -> Iterator[list[Host]]:
    """One host per rank: on this machine's loopback, or on links of a rate in Mbit/s, removed when the context ends.

    Raises UserError where such links cannot be set up.
    """
    if megabits is None:
        yield [Host((), "lo", "127.0.0.1")] * ranks
        return
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None:
        raise UserError("--rate: links of a known rate take root and Linux's ip and tc (iproute2)")
    tag = f"l{os.getpid() % 100_000}x{next(_NUMBERS)}"  # the system takes its time to release the last ones
    spaces = [f"{tag}n{number}" for number in range(ranks)]
    try:
        _run(f"ip link add {tag}b type bridge")
        _run(f"ip link set {tag}b up")
        for number, space in enumerate(spaces):
            outer, inner = f"{tag}o{number}", f"{tag}i{number}"
            _run(f"ip netns add {space}")
            _run(f"ip link add {outer} type veth peer name {inner}")
            _run(f"ip link set {inner} netns {space}")
            _run(f"ip link set {outer} master {tag}b up")
            _run(f"ip -n {space} addr add 10.213.7.{number + 1}/24 dev {inner}")
            _run(f"ip -n {space} link set {inner} up")
            _run(f"ip -n {space} link set lo up")
            _run(f"tc -n {space} qdisc add dev {inner} root tbf rate {megabits}mbit burst 32kb latency 100ms")
        yield [
            Host(("ip", "netns", "exec", space), f"{tag}i{number}", "10.213.7.1") for number, space in enumerate(spaces)
        ]
    finally:
        for number, space in enumerate(spaces):
            subprocess.run(["ip", "link", "del", f"{tag}o{number}"], capture_output=True, check=False)
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", f"{tag}b"], capture_output=True, check=False)


def _run(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"--rate: such links cannot be set up on this machine ({command}: {done.stderr.strip()})")
