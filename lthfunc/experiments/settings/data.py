"""Which data."""

from dataclasses import dataclass

from lthfunc.catalog.data_sets import DATASETS, FILE_KINDS
from lthfunc.experiments.settings.setting import FIRST, TRAINERS, WHAT, setting


@dataclass(frozen=True)
class Data:
    """Settings of the data set; its folder is a setting of the machine (`running.py`)."""

    dataset: str = setting(
        "digits",
        "Data set: one of `lthfunc datasets`, folder:PATH, npz:FILE, hf:NAME, text:FILE, planted, a .safetensors "
        "file, module:function or path/to/file.py:name.",
        FIRST, (*TRAINERS, "transfer"), own=True, offers=(*DATASETS, *FILE_KINDS.offers),
    )  # fmt: skip
    dataset_option: dict[str, str] = setting(
        {}, "Argument for the data set, such as size=32, val=0.2 or length=128; repeatable.",
        WHAT, (*TRAINERS, "transfer", "datasets show"), "NAME=VALUE", follows_data=True,
    )  # fmt: skip
    tokenizer: str | None = setting(
        None, "Tokens of a text: a folder that holds a tokenizer of transformers or tokenizers, or its tokenizer.json.",
        WHAT, (*TRAINERS, "transfer", "datasets show"), "DIR", path=True, follows_data=True,
        default="characters of text:FILE, bytes of hf:NAME",
    )  # fmt: skip
    skip_broken: bool = setting(
        False, "Skip images that cannot be read.", WHAT, (*TRAINERS, "datasets show"), negated=False
    )
