"""What became of mutants: a table by file, the share that was noticed, and what was not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mutants import Mutant

try:
    import tomllib
except ImportError:
    import tomli as tomllib


def results_in(folder: Path) -> dict[str, dict[str, Any]]:
    """The last result of each mutant."""
    path = folder / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {item["name"]: item for item in map(json.loads, lines)}


def listed() -> list[dict[str, str]]:
    path = Path(__file__).resolve().parent.parent / "mutation_survivors.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")).get("survivor", []) if path.exists() else []


def summarise(chosen: dict[str, Mutant], results: dict[str, dict[str, Any]], whole: dict[str, list[Mutant]]) -> None:
    """Print it. whole: all mutants of the files that were chosen from."""
    reasons = {(each["file"], each["code"], each["change"]): each["reason"] for each in listed()}
    rows: dict[str, dict[str, int]] = {}
    left = []
    for name, mutant in chosen.items():
        result = results[name]["result"] if name in results else "broken"
        if result == "broken":
            continue
        if result == "survived":
            reason = reasons.get((mutant.file, mutant.code, mutant.change))
            result = "survived" if reason is None else "listed"
            if reason is None:
                left.append(f"{mutant.file}:{mutant.first} {mutant.where}: {mutant.change}\n    {mutant.code}")
        row = rows.setdefault(mutant.file, dict.fromkeys(("killed", "timeout", "survived", "listed"), 0))
        row[result] += 1
    print(f"\n{'file':44} {'mutants':>8} {'run':>6} {'killed':>7} {'timeout':>8} {'survived':>9} {'listed':>7}")
    for file, row in sorted(rows.items()):
        _row(file, len(whole[file]), row)
    total = {key: sum(row[key] for row in rows.values()) for key in ("killed", "timeout", "survived", "listed")}
    _row("all", sum(map(len, whole.values())), total)
    run, killed = sum(total.values()), total["killed"] + total["timeout"]
    if run:
        print(f"\nkilled: {killed} of {run}, {_share(killed, run)}")
        counted = run - total["listed"]
        print(f"without those listed with a reason: {killed} of {counted}, {_share(killed, counted)}")
    print("\nsurvived, and not listed:", *(left or ["none"]), sep="\n  ")
    there = {(each.file, each.code, each.change) for mutants in whole.values() for each in mutants}
    gone = [f"{each[0]}: {each[2]}\n    {each[1]}" for each in reasons if each[0] in whole and each not in there]
    if gone:
        print("\nlisted, and no longer there:", *gone, sep="\n  ")


def _row(name: str, size: int, row: dict[str, int]) -> None:
    counts = (row["killed"], row["timeout"], row["survived"], row["listed"])
    print(f"{name:44} {size:8,} {sum(counts):6,} {counts[0]:7,} {counts[1]:8,} {counts[2]:9,} {counts[3]:7,}")


def _share(part: int, whole: int) -> str:
    """With Wilson's 95 % interval."""
    p, z = part / whole, 1.959964
    middle, half = p + z**2 / (2 * whole), z * math.sqrt(p * (1 - p) / whole + z**2 / (4 * whole**2))
    low, high = ((middle + sign * half) / (1 + z**2 / whole) for sign in (-1, 1))
    return f"{100 * p:.1f} % ({100 * low:.1f} to {100 * high:.1f} with 95 % confidence)"
