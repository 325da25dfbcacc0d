"""Which data."""

from dataclasses import dataclass, field
from typing import Annotated

from lthfunc.catalog.data_sets import DATASETS, FILE_KINDS
from lthfunc.experiments.settings.setting import TRAINERS, WHAT, Setting


@dataclass(frozen=True)
class Data:
    """Settings of the data set; its folder is a setting of the machine (`running.py`)."""

    dataset: Annotated[
        str,
        Setting(
            "Data set: one of `lthfunc datasets`, folder:PATH, npz:FILE, hf:NAME, text:FILE, planted, a .safetensors "
            "file, package.module:function or path/to/file.py:name.",
            WHAT, (*TRAINERS, "transfer"), own=True,
            offers=(*DATASETS, *FILE_KINDS.offers),
        ),
    ] = "digits"  # fmt: skip
    dataset_option: Annotated[
        dict[str, str],
        Setting(
            "Argument for the data set, such as size=32, val=0.2 or length=128; repeatable.",
            WHAT, (*TRAINERS, "transfer", "datasets show"), "NAME=VALUE", follows_data=True,
        ),
    ] = field(default_factory=dict)  # fmt: skip
    skip_broken: Annotated[
        bool, Setting("Skip images that cannot be read.", WHAT, (*TRAINERS, "datasets show"), negated=False)
    ] = False
