"""The options that commands share: all settings, made from their declarations, and a few of the command line's own."""

from .own import (
    ConfigFile as ConfigFile,
    Json as Json,
    Out as Out,
    Recipe as Recipe,
    Trust as Trust,
)
from .parsing import (
    names as names,
    number as number,
    round_of_run as round_of_run,
    whole as whole,
)
from .settings import (
    Given as Given,
    given_of as given_of,
    with_settings as with_settings,
)
