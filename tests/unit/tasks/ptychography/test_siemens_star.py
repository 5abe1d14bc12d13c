"""The measured scan of a Siemens star, where it is at hand; the long run is a documented command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from heimdall.tasks.ptychography import physics
from heimdall.tasks.ptychography.epie import epie
from heimdall.tasks.ptychography.refine import refine, scan_misfit
from heimdall.tasks.ptychography.scan import Scan, read_scan

DATA = Path(__file__).parents[5] / "shared" / "data"

pytestmark = pytest.mark.skipif(
    not (DATA / "siemens_star_test.npz").is_file(),
    reason="the measured Siemens star is not part of the repository; see docs/explanation/ptychography.md",
)


@pytest.fixture(scope="module")
def star() -> Scan:
    """A quarter of the odd patterns, neighbours in the middle of the scan."""
    whole = read_scan(DATA / "siemens_star_test.npz")
    distance = (whole.x - whole.x.mean()) ** 2 + (whole.y - whole.y.mean()) ** 2
    return whole.select(distance.argsort()[:64])


def test_file_is_read_as_counts_without_a_remark(star: Scan) -> None:
    assert star.notes == ()
    assert star.whole_counts
    assert star.size == 128


def test_a_few_sweeps_of_refinement_explain_it_better_than_as_many_of_epie(star: Scan) -> None:
    probe = torch.from_numpy(physics.scale_probe(star.probe))
    image, last, curve = epie(star, probe, 6)
    ordinary = scan_misfit(star, image, last).mean()
    result = refine(star, probe, 12, batch_size=4)
    assert curve[-1][1] < curve[0][1]
    assert scan_misfit(star, result.image, result.probe).mean() < ordinary < 0.05
