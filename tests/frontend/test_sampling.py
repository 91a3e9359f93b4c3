"""Frame choice, augmentation, flow and the data set of tensors."""

import cv2
import numpy as np
import pytest
import torch
from hsta.data.clips import Clip
from hsta.data.frame_files import FrameFiles
from hsta.data.inputs import ClipDataset, make_inputs, model_inputs
from hsta.data.sampling import choose_frames
from hsta.data.transforms import DEVIATION, MEAN, flow_image
from hsta.errors import UserError


def texture(size=96, seed=0):
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 255, (24, 24, 3), np.uint8), (size, size), interpolation=cv2.INTER_CUBIC)


def moved(picture, dx, dy=0.0):
    matrix = np.float32([[1, 0, dx], [0, 1, dy]])
    return cv2.warpAffine(picture, matrix, picture.shape[1::-1], borderMode=cv2.BORDER_REFLECT)


@pytest.fixture
def clip(tmp_path):
    paths = []
    for number in range(12):
        paths.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(paths[-1]), np.full((40, 40, 3), 10 * number, np.uint8))
    return Clip("casme3", "spNO.1", "a_0", tuple(paths), 5, "anger", 4)


def test_evaluation_takes_the_middles_of_equal_segments():
    assert choose_frames(12, 6).tolist() == [1, 3, 5, 7, 9, 11]
    assert choose_frames(30, 6).tolist() == [2, 7, 12, 17, 22, 27]
    assert choose_frames(6, 6).tolist() == list(range(6))


def test_short_clips_are_repeated_at_their_ends():
    assert choose_frames(3, 6).tolist() == [0, 0, 1, 2, 2, 2]
    assert choose_frames(1, 4).tolist() == [0, 0, 0, 0]
    rng = np.random.default_rng(0)
    for _ in range(20):
        chosen = choose_frames(4, 6, rng)
        assert set(chosen) == {0, 1, 2, 3}
        assert (np.diff(chosen) >= 0).all()


def test_training_draws_one_frame_a_segment():
    rng = np.random.default_rng(0)
    draws = np.array([choose_frames(18, 6, rng) for _ in range(200)])
    assert (draws // 3 == np.arange(6)).all()
    assert all(set(draws[:, i]) == {3 * i, 3 * i + 1, 3 * i + 2} for i in range(6))


@pytest.mark.parametrize(("length", "count"), [(0, 6), (5, 0)])
def test_frame_choice_refuses_nothing(length, count):
    with pytest.raises(ValueError, match="must be positive"):
        choose_frames(length, count)


def test_inputs_are_normalized_frames_in_order():
    frames = [np.full((50, 50, 3), 20 * i, np.uint8) for i in range(12)]
    video, special = make_inputs(frames, 5, image_size=32, num_frames=6)
    assert (video.shape, video.dtype) == ((3, 6, 32, 32), torch.float32)
    assert (special.shape, special.dtype) == ((3, 2, 32, 32), torch.float32)
    grey = (video[:, :, 0, 0].T * torch.tensor(DEVIATION) + torch.tensor(MEAN)) * 255
    torch.testing.assert_close(grey, 20 * torch.tensor([[1.0], [3], [5], [7], [9], [11]]).expand(6, 3))
    grey = (special[:, :, 0, 0].T * torch.tensor(DEVIATION) + torch.tensor(MEAN)) * 255
    torch.testing.assert_close(grey, torch.tensor([[0.0], [100]]).expand(2, 3), atol=1e-3, rtol=0)


def test_oblong_frames_are_not_squashed():
    frame = np.zeros((40, 80, 3), np.uint8)
    frame[:, 20:60] = 255
    video, _ = make_inputs([frame], 0, image_size=40, num_frames=2)
    assert video.min() > 2  # white all over


def test_without_an_apex_the_largest_motion_is_taken():
    still = texture()
    frames = [still.copy() for _ in range(9)]
    part = np.s_[30:66, 30:66]
    for t, shift in enumerate([0, 0, 1, 2, 3, 5, 2, 1, 0]):
        frames[t][part] = moved(still, 0, shift)[part]
    taken = make_inputs(frames, None, image_size=48, num_frames=6)[1]
    torch.testing.assert_close(taken, make_inputs(frames, 5, image_size=48, num_frames=6)[1])
    assert not torch.equal(taken, make_inputs(frames, 4, image_size=48, num_frames=6)[1])


@pytest.mark.parametrize("apex", [None, 5])
def test_no_frame_is_looked_up_twice(apex):
    class Looked(list):
        def __getitem__(self, index):
            looked.append(index)
            return super().__getitem__(index)

        def __iter__(self):
            return (self[index] for index in range(len(self)))

    looked = []
    make_inputs(Looked(texture(seed=seed) for seed in range(9)), apex, image_size=32, num_frames=6)
    assert len(looked) == len(set(looked))


def test_flow_image_measures_motion_and_strain():
    still = texture(112)
    after = still.copy()
    after[:, 70:] = moved(still, 2.0)[:, 70:]
    u, v, strain = flow_image(still / 255, after / 255).transpose(2, 0, 1)
    assert np.median(u[20:90, 80:105]) == pytest.approx(4.0, abs=0.4)  # 2 px of 112 are 4 of 224
    assert abs(np.median(u[20:90, 10:55])) < 0.2
    assert abs(np.median(v)) < 0.2
    assert strain[20:90, 66:74].mean() > 4 * strain[20:90, 10:50].mean()


def test_flow_image_leaves_out_the_motion_of_the_whole_head():
    still = texture(112)
    assert np.abs(flow_image(still / 255, moved(still, 1.5, -1.0) / 255)[20:90, 20:90, :2]).mean() < 0.25


def test_flow_inputs():
    still = texture()
    frames = [still, moved(still, 1), still]
    _, special = make_inputs(frames, 1, image_size=96, num_frames=2, special="flow")
    assert special.shape == (3, 2, 96, 96)
    torch.testing.assert_close(special[:, 0].numpy(), flow_image(still / 255, frames[1] / 255).transpose(2, 0, 1))
    torch.testing.assert_close(special[:, 1].numpy(), flow_image(frames[1] / 255, still / 255).transpose(2, 0, 1))


def test_apex_and_offset_inputs():
    frames = [np.full((40, 40, 3), 20 * i, np.uint8) for i in range(6)]
    _, special = make_inputs(frames, 3, image_size=32, num_frames=2, special="apex-offset")
    grey = (special[0, :, 0, 0] * DEVIATION[0] + MEAN[0]) * 255
    torch.testing.assert_close(grey, torch.tensor([60.0, 100.0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("special", ["flow", "flow-dis", "flow-tvl1"])
def test_every_flow_measures_motion(special):
    if special == "flow-tvl1" and not hasattr(cv2, "optflow"):
        with pytest.raises(UserError, match="this OpenCV has no TV-L1 optical flow"):
            make_inputs([texture()], 0, image_size=32, num_frames=2, special=special)
        return
    still = texture(112)
    after = still.copy()
    after[:, 70:] = moved(still, 3.0)[:, 70:]
    _, pair = make_inputs([still, after, still], 1, image_size=112, num_frames=2, special=special)
    assert np.median(pair[0, 0, 20:90, 80:105]) == pytest.approx(6.0, abs=0.6)  # 3 px of 112 are 6 of 224
    assert np.median(pair[0, 1, 20:90, 80:105]) == pytest.approx(-6.0, abs=0.6)


def test_augmentation_is_one_for_the_clip():
    frames = [texture()] * 8
    video, special = make_inputs(frames, 3, image_size=64, num_frames=6, rng=np.random.default_rng(3))
    assert torch.equal(video, video[:, :1].expand_as(video))
    assert torch.equal(special, video[:, :1].expand_as(special))
    assert not torch.equal(video, make_inputs(frames, 3, image_size=64, num_frames=6)[0])


@pytest.mark.parametrize(
    ("frames", "apex", "special", "told"),
    [
        (0, None, "frames", "at least one frame"),
        (3, 3, "frames", "apex must index the 3 frames, got 3"),
        (3, 1, "depth", "special must be"),
    ],
)
def test_inputs_refused(frames, apex, special, told):
    with pytest.raises(ValueError, match=told):
        make_inputs([texture()] * frames, apex, image_size=32, num_frames=6, special=special)


def test_float_frames_are_refused():
    with pytest.raises(ValueError, match="frames must be uint8"):
        make_inputs([texture().astype(np.float32)], 0, image_size=32, num_frames=2)


def inputs(item):
    """The model's, of one item."""
    return [tensor[0] for tensor in model_inputs({name: tensor[None] for name, tensor in item.items()})]


def test_a_batch_is_its_clips(clip):
    """Each with the light drawn for it."""
    for special in ("frames", "flow"):
        dataset = ClipDataset([clip] * 3, image_size=32, num_frames=6, special=special, training=True)
        batch = model_inputs(torch.utils.data.default_collate([dataset[i] for i in range(3)]))
        for i in range(3):
            expected = make_inputs(
                FrameFiles(clip.frames), clip.apex, image_size=32, num_frames=6, special=special,
                rng=np.random.default_rng([0, 0, i]),
            )  # fmt: skip
            for made, alone in zip(batch, expected, strict=True):
                assert torch.equal(made[i], alone)


def test_dataset_items(clip):
    dataset = ClipDataset([clip, clip], image_size=32, num_frames=6, training=False)
    item = dataset[1]
    assert {name: tensor.dtype for name, tensor in item.items()} == {
        "video": torch.uint8,
        "special": torch.uint8,
        "light": torch.float32,
        "index": torch.int64,
    }
    assert item["index"].item() == 1
    frames = [np.full((40, 40, 3), 10 * i, np.uint8) for i in range(12)]
    video, special = make_inputs(frames, 5, image_size=32, num_frames=6)
    for made, expected in zip(inputs(item), (video, special), strict=True):
        assert torch.equal(made, expected)
    dataset.set_epoch(1)
    assert torch.equal(inputs(dataset[1])[0], video)  # evaluation knows no chance


def test_training_draws_depend_on_seed_epoch_and_index_alone(clip):
    def item(index=0, epoch=0, seed=0):
        dataset = ClipDataset([clip, clip], image_size=32, num_frames=6, training=True, seed=seed)
        dataset.set_epoch(epoch)
        return dataset[index]["video"]

    assert torch.equal(item(), item())
    assert not torch.equal(item(), item(epoch=1))
    assert not torch.equal(item(), item(index=1))
    assert not torch.equal(item(), item(seed=1))


def test_loading_processes_give_the_same_items_and_hear_of_the_epoch(clip):
    dataset = ClipDataset([clip] * 4, image_size=32, num_frames=6, training=True)
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        expected = torch.stack([dataset[i]["video"] for i in range(4)])
        assert torch.equal(torch.cat([batch["video"] for batch in loader]), expected)


def test_the_end_of_the_dataset_is_an_index_error(clip):
    with pytest.raises(IndexError):
        ClipDataset([clip], image_size=32, num_frames=6, training=False)[1]


def test_a_broken_image_is_named_once_and_the_one_beside_it_serves(clip, capfd):
    dataset = ClipDataset([clip], image_size=32, num_frames=6, training=False)
    whole = dataset[0]["special"]
    clip.frames[5].write_bytes(b"")
    one = dataset[0]["special"]
    assert torch.equal(one, dataset[0]["special"])
    assert (whole[1] - one[1] == 10).all()
    (said,) = capfd.readouterr().err.splitlines()
    assert "broken one" in said and "5.png: the frame 4.png beside it serves" in said


def test_a_clip_of_broken_images_only_is_a_user_error(clip):
    for path in clip.frames:
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"no frame of the clip can be read: .*0\.png"):
        ClipDataset([clip], image_size=32, num_frames=6, training=False)[0]


def test_frames_are_turned_and_scaled_as_the_first_is(tmp_path):
    """One frame that tells another turn, or is darker than 12 bits, would else seem to move."""
    picture = np.zeros((40, 40), np.uint16)
    picture[:20] = 3000
    paths = []
    for number in range(4):
        paths.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(paths[-1]), picture + (2000 if number == 2 else 0))
    item = ClipDataset([Clip("folder", "a", "b", tuple(paths), 2, "x", 0)], image_size=40, num_frames=2, training=False)
    assert item[0]["special"][:, 30, 0, 0].tolist() == [0, 2000 >> 4]
