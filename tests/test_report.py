"""The report shows what the runs hold."""

from __future__ import annotations

import base64
import json
import re
import shutil
import zlib
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects
import pytest
import torch
from conftest import run

import lthfunc as lf
from lthfunc.reports.charts import Bars, Chart, Heat, Series
from lthfunc.reports.page.mask_history import overlap_of, pixel_shares, read_patterns
from lthfunc.reports.page.plotly_figures import figure_of
from lthfunc.runs.folder import read_run
from lthfunc.runs.json_lines import line_of, scan_lines
from lthfunc.runs.names_of_runs import distinct_names
from lthfunc.trees.files import load_tree

SMALL = ["--rounds", "3", "--steps", "40", "--eval-every", "10", "--batch-size", "50"]


@pytest.fixture(scope="module", name="runs")
def some_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with replicates and a control, another with neither, and a dense training."""
    folder = tmp_path_factory.mktemp("report")
    assert run("prune", *SMALL, "--replicates", 3, "--control", "reinit", "--jobs", 1, "--out", folder / "full") == 0
    assert run("prune", *SMALL, "--lr", 0.01, "--out", folder / "plain") == 0
    assert run("train", "--steps", 20, "--out", folder / "dense") == 0
    return folder


@pytest.fixture(scope="module", name="page")
def a_page(runs: Path) -> Path:
    assert run("report", runs / "full") == 0
    return runs / "full" / "report.html"


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def unpacked(text: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)


def test_the_page_holds_everything_and_asks_no_network(page: Path) -> None:
    text = page.read_text("utf-8")
    assert "default-src 'none'" in text
    without_plotly = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="[^#"]', without_plotly)
    assert "@import" not in text.partition("</style>")[0]
    for part in ("Accuracy and loss", "Training curves", "Masks and weights", "Settings", "lthfunc prune --config"):
        assert part in text, part
    keys = set(re.findall(r'data-chart="([^"]+)"', text))
    charts = data_of(page)["charts"]
    assert keys == charts.keys()
    assert {"accuracy_vs_density", "loss_vs_density", "early_stop_vs_density", "0/mask_overlap"} <= keys


def test_every_figure_is_one_that_plotly_takes(page: Path) -> None:
    for key, found in data_of(page)["charts"].items():
        # The lowest version knows colours with their transparency (#0072B226) in the page's script alone.
        chart = json.loads(re.sub(r'"(#[0-9A-F]{6})26"', r'"\1"', json.dumps(found)))
        made = plotly.graph_objects.Figure(chart)  # which refuses unknown properties and values
        assert made.data, key


def test_lines_and_bands_are_the_means_and_deviations_of_the_records(runs: Path, page: Path) -> None:
    _, _, records = read_run(runs / "full")
    chart = data_of(page)["charts"]["accuracy_vs_density"]
    lines = {trace["name"]: trace for trace in chart["data"] if "name" in trace}
    assert {"ticket", "random reinitialisation", "dense"} == lines.keys()
    for name, variant in (("ticket", "ticket"), ("random reinitialisation", "reinit")):
        mine = [item for item in records if item["variant"] == variant]
        rounds = sorted({item["round"] for item in mine})
        values = np.array([[100 * item["test_accuracy"] for item in mine if item["round"] == k] for k in rounds])
        np.testing.assert_allclose(lines[name]["y"], values.mean(1))
        np.testing.assert_allclose(lines[name]["customdata"], values.std(1, ddof=1))
    assert chart["layout"]["xaxis"]["autorange"] == "reversed"
    dense = [100 * item["test_accuracy"] for item in records if item["round"] == 0]
    np.testing.assert_allclose(lines["dense"]["y"], np.mean(dense))


def test_the_explorer_holds_every_mask_to_the_bit(runs: Path, page: Path) -> None:
    about = data_of(page)["explorers"]["0"]
    for at, number in enumerate(about["rounds"]):
        masks = load_tree(runs / "full" / "seed0" / f"round{number:02d}" / "masks.safetensors")[0]["masks"]
        params = load_tree(runs / "full" / "seed0" / f"round{number:02d}" / "params.safetensors")[0]["params"]
        for layer, (name, mask) in zip(about["layers"], masks.items(), strict=True):
            shown = unpacked(layer["pruned"]).reshape(layer["height"], layer["width"]) > at
            np.testing.assert_array_equal(shown, mask.numpy())
            assert layer["kept"][at] == int(mask.sum())
            histogram = layer["histogram"]
            survivors = params[name][mask].numpy()
            edges = np.linspace(-histogram["reach"], histogram["reach"], len(histogram["counts"][at]) + 1)
            expected = np.histogram(survivors, edges)[0]
            assert sum(histogram["counts"][at]) == len(survivors)
            assert np.abs(np.array(histogram["counts"][at]) - expected).sum() <= 4  # ties at edges round either way
    shares = unpacked(about["pixels"]["shares"]).reshape(len(about["rounds"]), 8, 8)
    mask = load_tree(runs / "full" / "seed0" / "round03" / "masks.safetensors")[0]["masks"]["fc1.weight"].numpy()
    share = mask.mean(0).reshape(8, 8)
    np.testing.assert_allclose(shares[-1] / 255, share / share.max(), atol=0.003)
    assert about["pixels"]["most"][-1] == pytest.approx(share.max())


def test_overlaps_are_the_librarys_own(runs: Path) -> None:
    _, _, records = read_run(runs / "full")
    found = [read_patterns(runs / "full", records, seed, weights=False, on_read=lambda: None)[0] for seed in range(3)]
    patterns = [each for each in found if each is not None]
    overlap = overlap_of(patterns)
    assert overlap is not None
    for at in range(4):
        masks = [each.masks(at) for each in patterns]
        mean = np.mean([lf.mask_overlap(a, b) for a, b in combinations(masks, 2)])
        assert overlap.same[at] == pytest.approx(mean)
    across = np.mean(
        [
            (lf.mask_overlap(a.masks(1), b.masks(3)) + lf.mask_overlap(b.masks(1), a.masks(3))) / 2
            for a, b in combinations(patterns, 2)
        ]
    )
    assert overlap.between[1][3] == pytest.approx(across)
    # Random masks of the same layer densities overlap as much as is told of chance.
    generator = torch.Generator().manual_seed(0)
    densities = {name: float(mask.float().mean()) for name, mask in patterns[0].masks(3).items()}
    left, right = (
        {name: torch.rand(leaf.shape, generator=generator) < densities[name] for name, leaf in pruned.items()}
        for pruned in (patterns[0].pruned,) * 2
    )
    assert lf.mask_overlap(left, right) == pytest.approx(overlap.chance[3], abs=0.02)
    assert overlap_of(patterns[:1]) is None


def test_pixels_count_over_outputs_and_channels() -> None:
    pruned = torch.randint(0, 4, (7, 3 * 4 * 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shares = pixel_shares(pruned, (3, 4, 5), 3)
    for place in range(3):
        expected = (pruned.numpy() > place).reshape(7, 3, 4, 5).mean((0, 1))
        np.testing.assert_allclose(shares[place], expected, rtol=1e-6)


def test_every_figure_is_also_a_file_twice(runs: Path, page: Path, request: pytest.FixtureRequest) -> None:
    keys = {key.rpartition("/")[2] for key in data_of(page)["charts"]} | {"masks", "weights", "pixels"}
    folder = runs / "full" / "report-figures"
    assert {path.name for path in folder.iterdir()} == {f"{key}.{kind}" for key in keys for kind in ("png", "svg")}
    for path in folder.iterdir():
        head = path.read_bytes()[:100]
        assert head.startswith(b"\x89PNG") if path.suffix == ".png" else b"<?xml" in head
    request.getfixturevalue("drawn")  # those of fewer curves, from here on
    drawn = []
    for _ in range(2):
        assert run("report", runs / "plain") == 0
        drawn.append((runs / "plain" / "report-figures" / "accuracy_vs_density.svg").read_bytes())
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) > 5000


def test_several_runs_share_axes_and_settings_that_differ_stand_out(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.html"
    assert run("report", runs / "full", runs / "plain", runs / "dense", "--out", out, "--no-figures") == 0
    text, charts = out.read_text("utf-8"), data_of(out)["charts"]
    names = {trace["name"] for trace in charts["accuracy_vs_density"]["data"] if "name" in trace}
    assert names == {"full", "full: random reinitialisation", "plain"}  # a dense training has no density axis
    assert '<option value="1">plain</option>' in text
    loud = re.findall(r'<tr class="loud"><td>(\w+)</td>', text)
    assert {"lr", "replicates", "control"} <= set(loud)
    assert "arch" not in loud
    changed, _, folded = text.partition("<details>")
    for name, usual in (("arch", False), ("steps", False), ("eval_every", False), ("score", True), ("momentum", True)):
        assert (f"<td>{name}</td>" in changed, f"<td>{name}</td>" in folded) == (not usual, usual), name
    assert not (tmp_path / "both-figures").exists()


def test_a_dense_training_and_a_plain_run_give_shorter_reports(runs: Path, tmp_path: Path) -> None:
    assert run("report", runs / "dense", "--out", tmp_path / "dense.html", "--no-figures") == 0
    data = data_of(tmp_path / "dense.html")
    assert data["charts"].keys() == {"0/training_loss", "0/training_accuracy"}
    assert data["explorers"] == {}
    assert run("report", runs / "plain", "--out", tmp_path / "plain.html", "--no-figures") == 0
    assert "0/mask_overlap" not in data_of(tmp_path / "plain.html")["charts"]


def test_what_is_missing_is_said(runs: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "half"
    shutil.copytree(runs / "full", folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:6]) + lines[6].replace("seed", "sead") + "".join(lines[7:9]))
    masks = folder / "seed0" / "round01" / "masks.safetensors"
    masks.write_bytes(masks.read_bytes()[:-1] + b"\x07")
    assert run("report", folder, "--no-figures") == 0
    text = (folder / "report.html").read_text("utf-8")
    said = capsys.readouterr().err
    for told in ("of 21 trainings are finished", "line 7 is damaged", "masks and weights of seed 0, round 1"):
        assert told in text, told
        assert told in said, told
    assert data_of(folder / "report.html")["explorers"]["0"]["rounds"] == [0, 2]

    for text, code, told, on_page in (
        ("nonsense\n", 3, "this run cannot be shown", "this run cannot be shown"),
        (lines[0], 2, "nothing to report, since no training has finished yet", "No training has finished yet."),
    ):
        (folder / "metrics.jsonl").write_text(text)
        assert run("report", folder, "--out", tmp_path / "alone.html") == code
        assert told in capsys.readouterr().err
        assert not (tmp_path / "alone.html").exists()
        assert run("report", folder, runs / "plain", "--out", tmp_path / "two.html", "--no-figures") == 0
        assert on_page in (tmp_path / "two.html").read_text("utf-8")


def test_masks_that_do_not_nest_are_left_out_and_told(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(runs / "plain", folder)
    first, second = (folder / "seed0" / f"round0{number}" for number in (1, 2))
    for name in ("masks.safetensors", "manifest.json", "params.safetensors"):  # round 2 now says what round 1 was
        shutil.copy(folder / "seed0" / "round00" / name, second / name)
    _, _, records = read_run(folder)
    patterns, missing = read_patterns(folder, records, 0, weights=True, on_read=lambda: None)
    assert patterns is not None
    assert patterns.rounds == [0, 1, 3]
    assert "keeps weights that an earlier round had pruned" in missing[0]
    assert first.exists()


BAD = "<img src=x onerror=alert(1)>"


def test_names_out_of_files_are_text(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / BAD.replace("/", "")
    shutil.copytree(runs / "plain", folder)
    out = tmp_path / "page.html"
    assert run("report", folder, runs / "full", "--out", out, "--no-figures", "--title", BAD) == 0
    text = re.sub(r"<script>.*?</script>", "", out.read_text("utf-8"), flags=re.DOTALL)
    assert "<img" not in text
    assert "&lt;img src=x" in text
    for trace in data_of(out)["charts"]["accuracy_vs_density"]["data"]:
        assert "<" not in trace.get("name", "")
    hostile = Chart("k", BAD, BAD, BAD, [Series(BAD, [1, 2], [1.0, 2.0])], across=[(1.0, BAD)])
    heat = Heat("h", BAD, BAD, BAD, [BAD], [BAD], [[1.0]], BAD)
    bars = Bars("b", BAD, BAD, [BAD], [(BAD, [1.0], None)])
    assert "<img" not in json.dumps([figure_of(each) for each in (hostile, heat, bars)])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["absent"], "absent: is not a run folder"),
        (["full", "full"], "each run once"),
        (["full", "--out", "page.txt"], "--out: invalid value 'page.txt' (expected a name that ends in .html"),
        (["full", "--out", "no/where.html"], "--out: invalid value 'no/where.html' (expected a file in an existing"),
    ],
)
def test_mistakes_are_one_line(
    runs: Path, arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(runs)
    assert run("report", *arguments) == 2
    assert told in capsys.readouterr().err


def test_a_loss_that_overflowed_leaves_a_gap(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "inf"
    shutil.copytree(runs / "plain", folder)
    lines = scan_lines(folder / "metrics.jsonl")
    values = [dict(line.value or {}) for line in lines]
    values[2]["test_loss"] = float("inf")
    (folder / "metrics.jsonl").write_text("".join(line_of(value) + "\n" for value in values))
    assert run("report", folder, "--no-figures") == 0
    (line,) = (each for each in data_of(folder / "report.html")["charts"]["loss_vs_density"]["data"]
               if each.get("name") == "ticket")  # fmt: skip
    assert [value is None for value in line["y"]] == [False, True, False, False]


def test_names_are_as_short_as_they_can_be() -> None:
    assert distinct_names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
    assert distinct_names([Path("/a/x"), Path("/b/x"), Path("/b/y")]) == ["a/x", "b/x", "y"]
