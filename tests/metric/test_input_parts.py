"""Parts of an input over the snapshots: continued from moments of an earlier version, and never begun later."""

import torch

from vog_hf.metric.input_parts import GRADIENT, MASK, SHARE, PartAccumulator

DEVIATION = torch.ones(3, 4)


def observed(snapshot):
    """What is observed of an image beside a text at a snapshot."""
    gradient = torch.randn(3, 5, generator=torch.Generator().manual_seed(snapshot))
    mask = torch.ones(3, 5, dtype=torch.bool)
    return {f"{GRADIENT}image": gradient, f"{MASK}image": mask, f"{SHARE}image": torch.full((3,), 0.1 * snapshot)}


def test_moments_of_an_earlier_version_are_continued():
    """Its names of the image's share, mask and moments are understood."""
    whole, first, second = PartAccumulator(), PartAccumulator(), PartAccumulator()
    for snapshot in range(4):
        whole.update(observed(snapshot))
    for snapshot in range(2):
        first.update(observed(snapshot))
    old = {"image/share": f"{SHARE}image", "image/mask": f"{MASK}image"}
    names = {name: name.replace("beside/moments/image", "image/moments") for name in first.state()}
    names |= {today: before for before, today in old.items()}
    second.restore({names[name]: values for name, values in first.state().items()})
    for snapshot in range(2, 4):
        second.update(observed(snapshot))
    found, expected = second.columns(DEVIATION, 4), whole.columns(DEVIATION, 4)
    assert found.keys() == expected.keys() == {"vog_image", "image_share"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_was_not_observed_from_the_first_snapshot_is_not_begun_later():
    """Moments that lack an image continue without it: part of the snapshots would give other numbers."""
    parts = PartAccumulator()
    parts.restore({})
    parts.update(observed(1))
    assert parts.columns(DEVIATION, 4) == {}
