"""What is drawn for a batch: alike for all frames of a clip, and flow turns with the picture."""

import math

import numpy as np
import pytest
import torch
from hsta.data.transforms import DEVIATION, MEAN
from hsta.training.augmentation import CHANGES, MOST, augment, draw_changes, mix

NONE = dict.fromkeys(MOST, torch.zeros(1))


def changed(**amounts):
    return NONE | {name: torch.tensor([amount]) for name, amount in amounts.items()}


def normal(picture):
    mean, deviation = (torch.tensor(x).view(3, 1, 1, 1) for x in (MEAN, DEVIATION))
    return (picture - mean) / deviation


def spot(x, y, size=64):
    """A bright spot at x, y (pixels) of a grey frame, (1, 3, 1, size, size) in [0, 1]."""
    rows, columns = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    blob = 0.2 + 0.6 * torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
    return blob.expand(1, 3, 1, size, size)


def place(frame):
    """Where the spot of a normalized frame (3, H, W) is."""
    blob = frame[0] * DEVIATION[0] + MEAN[0] - 0.2
    blob = blob.clamp_min(0.05) - 0.05
    at = torch.arange(blob.shape[0]) + 0.5
    return float((blob.sum(0) * at).sum() / blob.sum()), float((blob.sum(1) * at).sum() / blob.sum())


def test_a_clip_gets_two_changes_of_the_same_strength():
    torch.manual_seed(0)
    changes = draw_changes(500, 0.5)
    amounts = torch.stack(list(changes.values()), dim=1)
    assert ((amounts != 0).sum(dim=1) == CHANGES).all()
    for name, column in changes.items():
        assert column.abs().unique().tolist() == [0.0, pytest.approx(0.5 * MOST[name])]
        assert column.min() < 0 < column.max()
    torch.manual_seed(0)
    assert all(torch.equal(column, changes[name]) for name, column in draw_changes(500, 0.5).items())


def test_no_change_is_none():
    video = normal(torch.rand(1, 3, 4, 16, 16))
    for tensor, before in zip(augment(video, video[:, :, :2], NONE, flow=False), (video, video[:, :, :2]), strict=True):
        torch.testing.assert_close(tensor, before, atol=2e-5, rtol=0)


def test_all_frames_of_a_clip_are_changed_alike_and_clips_apart():
    torch.manual_seed(1)
    frame = torch.rand(3, 1, 24, 24)
    video = normal(frame).expand(4, 3, 6, 24, 24)
    out, special = augment(video, video[:, :, :2], draw_changes(4, 1.0), flow=False)
    assert torch.equal(out, out[:, :, :1].expand_as(out))
    assert torch.equal(special, out[:, :, :2])
    assert all(not torch.equal(out[i], out[j]) for i in range(4) for j in range(i))


@pytest.mark.parametrize(
    ("amounts", "expected"),
    [
        ({"right": 0.125}, (48, 32)),
        ({"down": -0.125}, (40, 24)),
        ({"turn": math.pi / 6}, (32 + 8 * math.cos(math.pi / 6), 32 + 8 * math.sin(math.pi / 6))),
        ({"size": math.log(1.25)}, (42, 32)),
    ],
)
def test_frames_move(amounts, expected):
    out, _ = augment(normal(spot(40, 32)), normal(spot(40, 32)), changed(**amounts), flow=False)
    np.testing.assert_allclose(place(out[0, :, 0]), expected, atol=0.15)


def test_flow_turns_and_grows_with_the_picture():
    """What moves by (4, 2) between two frames moves by the flow that is changed with them."""
    changes = changed(turn=0.4, size=math.log(1.2), right=0.05)
    before, after = normal(spot(30, 34)), normal(spot(34, 36))
    flow = torch.tensor([4.0, 2.0, 0.7]).view(1, 3, 1, 1, 1).expand(1, 3, 2, 64, 64)
    video, special = augment(torch.cat([before, after], dim=2), flow, changes, flow=True)
    start, end = place(video[0, :, 0]), place(video[0, :, 1])
    np.testing.assert_allclose(special[0, :2, 0, 32, 32], np.subtract(end, start), atol=0.15)
    assert special[0, 2, 0, 32, 32] == pytest.approx(0.7)  # strain is a ratio


def test_colours():
    picture = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1, 1).expand(1, 3, 2, 8, 8)
    for amounts, expected in (
        ({"brightness": 0.1}, [0.5, 0.6, 0.7]),
        ({"contrast": 0.5}, [0.35, 0.5, 0.65]),
        ({"saturation": -1.0}, [0.5, 0.5, 0.5]),
        ({"brightness": 0.45}, [0.85, 0.95, 1.0]),
    ):
        out, special = augment(normal(picture), torch.ones(1, 3, 2, 8, 8), changed(**amounts), flow=True)
        torch.testing.assert_close(out, normal(torch.tensor(expected).view(1, 3, 1, 1, 1).expand_as(out)))
        assert torch.equal(special, torch.ones(1, 3, 2, 8, 8))  # flow has no colours


def test_clips_are_mixed_with_their_targets():
    torch.manual_seed(0)
    video = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 3, 2, 2, 2)
    targets = torch.eye(4)
    mixed, special, soft = mix(video, -video, targets, 10.0)
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(4))
    assert not torch.equal(soft, targets)
    torch.testing.assert_close(mixed[:, 0, 0, 0, 0], soft @ torch.arange(4.0))
    assert torch.equal(special, -mixed)
