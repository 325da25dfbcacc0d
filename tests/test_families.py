"""Networks of torchvision that the sparse engine trains."""

from __future__ import annotations

from benchmarks.families import run


def test_networks_run_or_are_refused_by_an_operation() -> None:
    found = run(networks=["squeezenet1_1", "swin_v2_t"])
    assert found["squeezenet1_1"] is None
    assert found["swin_v2_t"] is not None
    assert "no rule for index of anything but a matrix of parameters" in found["swin_v2_t"]
