"""Data sets as tensors, each with its own normalisation and a validation split held out of the training examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lthfunc.lazy import lazy_exports

if TYPE_CHECKING:
    from lthfunc.data.data_warnings import DataWarning as DataWarning, find_warnings as find_warnings
    from lthfunc.data.loaders import from_loader as from_loader
    from lthfunc.data.loading import load as load
    from lthfunc.data.mapped import open_mapped as open_mapped, save_mapped as save_mapped
    from lthfunc.data.planted import planted_teacher as planted_teacher
    from lthfunc.data.tensors import from_tensors as from_tensors
    from lthfunc.data.torch_sets import from_dataset as from_dataset

__getattr__, __dir__ = lazy_exports(__name__)
