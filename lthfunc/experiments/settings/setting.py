"""The declaration of a setting, beyond its type, range and default, and the table of settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from lthfunc.registry import Registry

T = TypeVar("T")

#: Steps of a training, at most: its learning rates are a table.
MOST_STEPS = 100_000_000
Steps = Annotated[int, Ge(1), Le(MOST_STEPS)]
Count = Annotated[int, Ge(1), Le(10_000)]
Share = Annotated[float, Gt(0), Lt(1)]
Part = Annotated[float, Ge(0), Lt(1)]

#: Headings of --help, in the order in which it shows them.
FIRST, WHAT, PRUNING, TRAINING, RUN = "Most used", "Network and data", "Pruning", "Training", "The run"
#: Commands that train networks from their initial weights.
TRAINERS = ("prune", "train", "methods", "connectivity")
#: Metavars of options, by the type of what they take.
_METAVARS = {int: "N", float: "X", str: "NAME"}


@dataclass(frozen=True, eq=False)  # so that it can be a key
class Setting:
    """The description of a setting, which `setting` puts into its field; `settings_in` adds what the field declares.

    help, panel, metavar: for --help; default: in words, if the field's own doesn't help a reader.
    commands: that take it, in addition to `resume`, which takes everything that changes no result.
    after: the option after which --help lists it; None for the order of the fields.
    names: the registry of its values, from which `settings_in` fills in the next three. choices: the allowed names;
    own: whether it may name a user's own function; offers: names for completion, not checked. listed: whether it is
    several names with commas between them. former_names: names that it had before, which still work; former_values:
    present values by switches that it took before. negated: whether it has a --no-… option.
    """

    help: str
    panel: str
    commands: tuple[str, ...]
    metavar: str | None = None
    default: str | None = None
    after: str | None = None
    names: Registry[Any] | None = None
    choices: tuple[str, ...] = ()
    own: bool = False
    offers: tuple[str, ...] = ()
    listed: bool = False
    former_names: tuple[str, ...] = ()
    former_values: Mapping[bool, Any] = field(default_factory=dict)
    negated: bool = True
    #: Whether results depend on it. If not, it may change while a run is in progress.
    changes_results: bool = True
    #: Whether it is reported as a difference between runs; never if it changes no result.
    told: bool = True
    #: Whether it is the path of a file or folder.
    path: bool = False
    #: Whether it only selects the seeds, so that results of a seed remain valid when it changes.
    of_seeds: bool = False
    #: Whether the run decides it at its start if left open (None, auto), and then keeps it.
    decided: bool = False
    #: Whether it belongs to one data set, so that tickets on another one get the default.
    follows_data: bool = False
    #: Settings that it replaces, whatever their source.
    instead_of: tuple[str, ...] = ()
    #: Settings that replace its value in a recipe; of_optimizer: another optimiser does so as well.
    gives_way_to: tuple[str, ...] = ()
    of_optimizer: bool = False

    #: Of the field, filled in by `settings_in`: name, type with its range, type of one value, list or dict (None for
    #: one value), default.
    name: str = ""
    kind: Any = None
    item: type = str
    holds: type | None = None
    value: Any = None

    @property
    def option(self) -> str:
        """The option, as typed."""
        return "--" + self.name.replace("_", "-")

    @property
    def shown_metavar(self) -> str | None:
        """The placeholder of its value; None for a switch, which has none."""
        return self.metavar or ("PATH" if self.path else _METAVARS.get(self.item))

    @property
    def shown_default(self) -> str | None:
        """Its default for a reader, or None."""
        if self.default is not None or self.value in (None, {}, ()):
            return self.default
        if isinstance(self.value, bool):
            return f"{'' if self.value else 'no-'}{self.option[2:]}" if self.negated else None
        return f"{self.value:g}" if isinstance(self.value, float) else str(self.value)

    def chosen(self, value: Any) -> tuple[Any, ...]:
        """The values or names in a value: all of a tuple or list, and those between commas."""
        if isinstance(value, (list, tuple)):
            return tuple(value)
        return tuple(value.split(",")) if self.listed and isinstance(value, str) else (value,)

    @property
    def is_difference(self) -> bool:
        """Whether it is reported as a difference between runs."""
        return self.told and self.changes_results

    @property
    def flags(self) -> str:
        """The option as Typer takes it, with its negation."""
        return f"{self.option}/--no-{self.option[2:]}" if self.item is bool and self.negated else self.option


def setting(value: T, *about: Any, **more: Any) -> T:
    """A field with a default that is a setting. about, more: of `Setting`."""
    metadata = {"setting": Setting(*about, **more)}
    if isinstance(value, dict):
        return cast(T, field(default_factory=lambda: {**value}, metadata=metadata))
    return field(default=value, metadata=metadata)


def settings_in(config: type) -> dict[str, Setting]:
    """The settings that a dataclass declares, by name and in its order."""
    hints = get_type_hints(config, include_extras=True)
    found = {}
    for each in fields(config):
        kind, declared = _plain(hints[each.name]), each.metadata["setting"]
        if (names := declared.names) is not None:
            declared = replace(declared, choices=names.choices, own=names.own, offers=names.offers)
        holds = {tuple: list, dict: dict}.get(get_origin(kind))
        parts = get_args(kind) or (kind,)  # the element type; or the first is the type, if it may be None
        found[each.name] = replace(
            declared,
            name=each.name,
            kind=hints[each.name],
            item=_plain(parts[1] if holds is dict else parts[0]),
            holds=holds,
            value=each.default if each.default is not MISSING else {},
        )
    return found


def in_help_order(settings: dict[str, Setting]) -> list[Setting]:
    """Settings as --help lists them."""
    names = list(settings)
    for name, setting in settings.items():
        if setting.after is not None:
            names.remove(name)
            names.insert(names.index(setting.after) + 1, name)
    return [settings[name] for name in names]


def settings_of(settings: dict[str, Setting], command: str) -> list[Setting]:
    """The settings that a command takes, in the order of its --help."""
    free = command == "resume"
    return [each for each in in_help_order(settings) if command in each.commands or (free and not each.changes_results)]


def _plain(kind: Any) -> Any:
    """A type without its range."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind
