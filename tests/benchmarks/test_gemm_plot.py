import json

import benchmark_modules  # noqa: F401
import pytest

from benchmarks import gemm_plot
from benchmarks.gemm_bars import CUBLAS, HUMMING, MARLIN, OURS, OURS_SM8X


def row(shape, M, **times):
    base = {"shape": shape, "N": 64, "K": 32, "M": M, "floor_us": 1.0, f"{OURS_SM8X}_us": 3.0}
    return base | {f"{MARLIN}_us": 6.0, f"{CUBLAS}_us": 8.0, f"{OURS}_us": 2.0} | times


def report(*rows):
    return {"device": "Some GPU", "date": "2026-01-02", "copy_bytes_per_s": 4e12, "rows": list(rows)}


#: Humming refuses one row and was not measured in others; rows are not in order.
ROWS = [
    row("a", 8, **{f"{HUMMING}_us": None}),
    row("a", 1, **{f"{HUMMING}_us": 4.0}),
    row("b", 1, **{f"{MARLIN}_us": 24.0}),
]


def lines(axes):
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}


def test_times_has_a_panel_for_each_weight():
    panels = gemm_plot.times(report(*ROWS)).axes
    assert [axes.get_title() for axes in panels] == ["a\nN=64, K=32", "b\nN=64, K=32"]
    drawn = lines(panels[0])
    assert drawn["nvfp4_tvm"] == [(1, 2.0), (8, 2.0)] and drawn["Humming"] == [(1, 4.0)]
    assert drawn["memory floor"] == [(1, 1.0), (8, 1.0)]
    assert set(drawn) == {"memory floor", *gemm_plot.LABELS.values()}
    assert lines(panels[1])["Humming"] == []


def test_ten_weights_take_two_lines():
    figure = gemm_plot.times(report(*(row(f"shape {i}", 1) for i in range(10))))
    assert len(figure.axes) == 10 and all(axes.axison for axes in figure.axes)


def test_speedups_are_geometric_means():
    (axes,) = gemm_plot.speedups(report(*ROWS)).axes
    drawn = lines(axes)
    assert drawn["Marlin"] == [(1, pytest.approx(6.0)), (8, pytest.approx(3.0))]
    assert drawn["Humming"] == [(1, pytest.approx(2.0))]


def test_a_picture_is_drawn_again_for_other_figures(tmp_path):
    path = tmp_path / "peer_gemm_card.json"
    path.write_text(json.dumps(report(*ROWS)))
    expected = [tmp_path / "gemm_times_card.png", tmp_path / "gemm_speedups_card.png"]
    assert gemm_plot.stale(path, tmp_path) == gemm_plot.draw(path, tmp_path) == expected
    assert gemm_plot.stale(path, tmp_path) == gemm_plot.draw(path, tmp_path) == []
    path.write_text(json.dumps(report(*ROWS[1:])))
    assert gemm_plot.stale(path, tmp_path) == expected
