"""The page on what hearing costs (bench.mat): what fits, by the line and by trying, and what was measured is kept."""

import json

import pytest
import torch

from bench import mat
from encoders.layers import pooled_attention


def rows(preset, way, *peaks):
    return [
        {"preset": preset, "way": way, "batch": b, "peak_mb": p, "step_ms": 10.0 * b, "forward_ms": 4.0 * b}
        for b, p in peaks
    ]


VALUES = {
    "threads": 1, "device": "CPU", "torch": "2", "memory_gb": 32.0, "fits": [],
    "sizes": {"mat_base": {"parameters": 51_240_021, "giga_macs": 46.7},
              "ast_base_10": {"parameters": 86_427_000, "giga_macs": 130.5}},
    "rows": [row for way in mat.WAYS for row in (*rows("mat_base", way, (1, 1200.0), (2, 1400.0), (4, 1800.0)),
                                                 *rows("ast_base_10", way, (1, 3000.0), (2, 4000.0), (4, 6000.0)))],
}  # fmt: skip


def test_memory_per_clip_is_the_slope_and_what_fits_lies_on_the_line():
    assert mat.per_clip(VALUES["rows"], "mat_base", "kernels") == pytest.approx((1000, 200))
    assert mat.batch_that_fits(VALUES, "mat_base", "kernels") == (155, "by the line")
    assert mat.batch_that_fits(VALUES, "ast_base_10", "kernels") == (30, "by the line")
    tried = {**VALUES, "fits": [{"preset": "mat_base", "way": "kernels", "batch": 120}]}
    assert mat.batch_that_fits(tried, "mat_base", "kernels") == (120, "tried")
    assert mat.batch_that_fits(tried, "mat_base", "written out") == (155, "by the line")


def test_the_page_says_what_was_published_and_the_shares():
    page = "\n".join(mat.page(VALUES))
    assert "| mat_base | 51.2 M | 46.7 | 52 M, 46.2 G; 16.8 GB at batch 64 |" in page
    assert "| mat_base | kernels | 200 | 155 | by the line |" in page
    assert "| kernels | 1.00 | 1.00 | 0.20 |" in page


@pytest.mark.slow
def test_a_step_is_measured_and_what_attends_is_as_before():
    before = pooled_attention.FOLDED
    torch.manual_seed(0)
    for way in mat.WAYS:
        row = mat.measure("mat_tiny", way, 1, "cpu", 1)
        assert row["step_ms"] > 0 and row["forward_ms"] > 0 and row["peak_mb"] > 1
        assert before == pooled_attention.FOLDED


def test_what_was_measured_is_not_measured_again(tmp_path):
    (tmp_path / "mat_tiny-kernels-1.json").write_text(json.dumps({"batch": 1}))
    assert mat.found(tmp_path, "mat_tiny-kernels-1", ["--nothing"]) == {"batch": 1}
