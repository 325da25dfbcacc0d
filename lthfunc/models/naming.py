"""Names of weights without what wrappers of modules put into them: DataParallel, torch.compile, Lightning, FSDP."""

from __future__ import annotations

from collections.abc import Iterable

#: Components that no module has of its own; they stand anywhere in a name.
_NEVER_OWN = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
#: What a wrapper calls the module that it wraps; a module's own part may be called so too.
_WRAPPED = ("module", "model", "net")


def unwrapped(names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """(name -> the name without wrappers, what was taken away).

    A component that only wrappers put there goes from wherever it stands; ``module.``, ``model.`` and ``net.`` from the
    front, in any order and number, where every name begins so. Nothing goes that would leave two names the same, or one
    empty.
    """
    new = {name: name for name in names}
    taken: list[str] = []
    for never in _NEVER_OWN:
        found = {name: ".".join(each for each in now.split(".") if each != never) for name, now in new.items()}
        if found != new and _good(found):
            new = found
            taken.append(f"{never}.")
    front = ""
    while (part := next((each for each in _WRAPPED if new and _all_begin(new, f"{each}.")), None)) is not None:
        found = {name: now.removeprefix(f"{part}.") for name, now in new.items()}
        if not _good(found):
            break
        new, front = found, f"{front}{part}."
    return new, (*taken, front) if front else tuple(taken)


def matching(names: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """wanted name -> the one of `names` that it is: by itself, behind a wrapper's prefix, or where both are unwrapped.

    So a file's names may be wrapped, or a network's, or both in different ways. What has no name is left out.
    """
    names, wanted = list(names), list(wanted)
    here = set(names)
    prefixes = {name.removesuffix(wanted[0]) for name in here if wanted and name.endswith(wanted[0])}
    for prefix in sorted(prefixes, key=len):  # none comes first
        parts = prefix.split(".")
        if parts.pop() == "" and {*parts} <= {*_NEVER_OWN, *_WRAPPED} and here >= {prefix + name for name in wanted}:
            return {name: prefix + name for name in wanted}
    theirs = {new: name for name, new in unwrapped(names)[0].items()}
    ours = unwrapped(wanted)[0]
    return {name: theirs[new] for name, new in ours.items() if new in theirs}


def _good(found: dict[str, str]) -> bool:
    return len(set(found.values())) == len(found) and all(found.values())


def _all_begin(found: dict[str, str], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in found.values())
