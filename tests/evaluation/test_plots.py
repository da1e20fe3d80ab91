"""Pictures of results: that they are drawn, with what there is, and fit for any page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from matplotlib.colors import to_rgb

from engine.evaluation.plots import COLOURS, write_plots
from engine.evaluation.results import Evaluation
from support.evaluations import evaluation

MAX_BYTES = 80_000


def pixels(path: Path) -> np.ndarray:
    """Height × width × RGBA in 0..1."""
    read = image.imread(path)
    assert read.ndim == 3 and read.shape[2] == 4
    return read


def share_of(picture: np.ndarray, colour: str) -> float:
    """Share of the pixels that have a colour, solid."""
    near = np.abs(picture[:, :, :3] - to_rgb(colour)).max(axis=2) < 0.02
    return float((near & (picture[:, :, 3] > 0.98)).mean())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_plots(evaluation(), tmp_path_factory.mktemp("plots"))


def test_all_pictures_are_drawn_small_and_transparent(drawn: dict[str, Path]) -> None:
    assert {name: path.name for name, path in drawn.items()} == {
        "quality": "quality.png",
        "acceptance": "acceptance.png",
        "time": "time.png",
    }
    for path in drawn.values():
        assert 5_000 < path.stat().st_size < MAX_BYTES
        picture = pixels(path)
        height, width, _ = picture.shape
        assert 800 <= width <= 1200 and 300 <= height <= 800
        assert (picture[[0, 0, -1, -1], [0, -1, 0, -1], 3] == 0).all(), "corners are clear"
        assert (picture[:, :, 3] > 0.5).mean() > 0.005, "something is drawn"


def test_each_batch_size_has_its_line(drawn: dict[str, Path]) -> None:
    picture = pixels(drawn["quality"])
    assert share_of(picture, COLOURS[0]) > 1e-3 and share_of(picture, COLOURS[1]) > 1e-3
    assert share_of(picture, COLOURS[2]) == 0, "there are only two"


def test_each_part_of_the_time_has_its_share_of_the_bars(drawn: dict[str, Path]) -> None:
    picture = pixels(drawn["time"])
    shares = [share_of(picture, colour) for colour in COLOURS[:5]]
    assert min(shares) > 1e-3
    # Layers take most of all bars, by how the figures are made up.
    assert max(shares) == shares[2] > 0.05


def test_the_map_of_positions_is_filled(drawn: dict[str, Path]) -> None:
    picture = pixels(drawn["acceptance"])
    height, width, _ = picture.shape
    right = picture[height // 4 : 3 * height // 4, int(0.6 * width) : int(0.85 * width)]
    assert (right[:, :, 3] > 0.98).mean() > 0.95


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (evaluation(batch_sizes=()), ["acceptance"]),
        (evaluation(1, (1,)), ["quality", "time"]),
        (evaluation(infinite=(6, 12, 18, 24)), ["quality", "acceptance", "time"]),
        (evaluation(48, tuple(range(4, 49, 4)), (1, 2, 4, 8, 16, 32, 64)), None),
    ],
    ids=["no speeds", "one layer", "nothing finite", "many"],
)
def test_what_is_missing_is_not_drawn(
    tmp_path: Path, result: Evaluation, names: list[str] | None
) -> None:
    drawn = write_plots(result, tmp_path)
    assert list(drawn) == (names or ["quality", "acceptance", "time"])
    assert all(path.stat().st_size > 5_000 for path in drawn.values())
