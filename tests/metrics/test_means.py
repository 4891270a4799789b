"""Means over pictures against the plain mean; cut anyhow, the same to the last bit."""

import torch

from ldm.metrics.means import PictureMean


def test_cuts_do_not_matter_and_a_batch_may_be_empty() -> None:
    numbers = torch.randn(100, generator=torch.Generator().manual_seed(0)) * 3
    found = []
    for cuts in ([100], [33, 67], [0, 1, 98, 0, 1]):  # a rank's last batch may hold no picture
        metric = PictureMean()
        for part in numbers.split(cuts):
            metric.update(part)
        found.append(metric.compute())
    torch.testing.assert_close(found[0], numbers.double().mean(), atol=1e-9, rtol=0)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
