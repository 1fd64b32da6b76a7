"""A folder of clips as a task: what is read, what a model sees of it, how views are put together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from torch import Tensor

from replora import cli
from replora.config import VideoFolderTask
from replora.errors import DataError
from replora.tasks.base import IMAGENET_MEAN, IMAGENET_STD, Batch
from replora.tasks.clips import CLIPS, count_frames, read_frame
from replora.tasks.folder_index import Example, index_folder
from replora.tasks.load import load_task
from replora.tasks.video_folder import ClipSplit, VideoClassification
from tests.replora.made_clips import HEIGHT, WIDTH, made_frames, save_clips, save_frames

SIZE = 35  # 40 = 8 / 7 of it: frames are taken as they are


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLORA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return save_clips(tmp_path / "clips")


def load(root: Path, **fields: Any) -> VideoClassification:
    config = VideoFolderTask.model_validate(
        {"root": root, "image_size": SIZE, "frames": 3, "stride": 2, **fields}
    )
    task = load_task(config, precision="fp64", device="cpu")
    assert isinstance(task, VideoClassification)
    return task


def split(root: Path, name: str = "train", **fields: Any) -> ClipSplit:
    found = load(root, **fields).split(name)  # type: ignore[arg-type]
    assert isinstance(found, ClipSplit)
    return found


def pixels(video: Tensor) -> Tensor:
    """Normalized `[3, T, H, W]` back to bytes `[T, H, W, 3]`."""
    mean, std = (
        torch.tensor(each, dtype=torch.float64).view(3, 1, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return ((video * std + mean) * 255).round().to(torch.uint8).permute(1, 2, 3, 0)


def stored(folder: Path, form: str, frames: np.ndarray) -> Example:
    """One clip in each form."""
    if form == "folder":
        path = save_frames(folder / "clip", frames)
    elif form == "npy":
        np.save(path := folder / "clip.npy", frames)
    else:
        save_file({"video": frames}, path := folder / "clip.safetensors")
    return Example(path, path.name, 0, CLIPS.files(path, folder))


# --- clips -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "npy", "safetensors"])
def test_frames_are_the_same_in_every_form(tmp_path: Path, form: str) -> None:
    frames = made_frames(3, frames=12)
    clip = stored(tmp_path, form, frames)
    assert count_frames(clip) == 12
    for number in (0, 8, 11):  # by their numbers, frame9 comes before frame10
        assert torch.equal(
            read_frame(clip, number, HEIGHT), torch.from_numpy(frames[number]).permute(2, 0, 1)
        )


def test_the_shorter_side_is_resized_and_the_form_kept(tmp_path: Path) -> None:
    frame = read_frame(stored(tmp_path, "npy", made_frames(0)), 0, 20)
    assert frame.shape == (3, 20, 25)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"not an array", "a.npy: "),
        ("b.npy", made_frames(0)[0], r"must be bytes \[T, H, W, 3\], but is uint8"),
        ("c.npy", made_frames(0).astype(np.float32), r"must be bytes \[T, H, W, 3\], but is float32"),
        ("d.npy", np.array([{}]), "d.npy: "),
        ("e.safetensors", b"{}", "e.safetensors: "),
    ],
)
def test_files_that_are_no_clips_are_named(
    root: Path, name: str, content: bytes | np.ndarray, message: str
) -> None:
    path = root / "train" / "dark" / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(DataError, match=rf"(?s)1 clips cannot be read.*{message}"):
        load(root)


def test_a_folder_without_frames_is_named(root: Path) -> None:
    (root / "val" / "dark" / "empty").mkdir()
    with pytest.raises(DataError, match=r"the clip \S+empty holds no frame"):
        load(root)


def test_a_damaged_frame_is_never_a_prediction(root: Path) -> None:
    task = load(root)
    (root / "val" / "dark" / "clip0" / "frame4.png").write_bytes(b"cut short")
    with pytest.raises(DataError, match="cannot be read any more"):
        task.split("val").take(torch.tensor([1]), None)
    with pytest.raises(DataError, match="1 clips cannot be read"):
        load(root)


def test_any_frame_changes_the_hash(root: Path) -> None:
    before = load(root).data_hash
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "test" / "grey" / "clip1" / "frame2.png")
    assert load(root).data_hash != before


def test_classes_and_splits_are_those_of_the_folders(root: Path) -> None:
    task = load(root)
    assert task.classes == ("bright", "dark", "grey")
    assert [len(task.split(name)) for name in ("train", "val", "test")] == [12, 3, 3]
    index = index_folder(VideoFolderTask(root=root), CLIPS)
    assert index.splits["val"][0].relative == "val/bright/clip2"
    assert len(index.splits["val"][0].files) == 6


# --- what a model sees -----------------------------------------------------------------------------


def test_without_a_generator_the_middle_of_time_and_space_is_seen(tmp_path: Path, root: Path) -> None:
    frames = made_frames(7, frames=9)
    np.save(root / "train" / "bright" / "a.npy", frames)
    batch = split(root).take(torch.tensor([0]), None)
    assert batch["video"].shape == (1, 3, 3, SIZE, SIZE)
    # 9 frames leave room for 5 starts; 3 frames, 2 apart, from the third one on
    expected = frames[[2, 4, 6], 2 : 2 + SIZE, 8 : 8 + SIZE]
    assert pixels(batch["video"][0]).numpy().tolist() == expected.tolist()


def test_a_clip_that_is_too_short_repeats_its_last_frame(root: Path) -> None:
    frames = made_frames(7, frames=2)
    np.save(root / "train" / "bright" / "a.npy", frames)
    found = pixels(split(root).take(torch.tensor([0]), None)["video"][0])
    assert torch.equal(found[1], found[2])
    assert not torch.equal(found[0], found[1])


def test_views_cover_time_and_the_longer_side(root: Path) -> None:
    frames = made_frames(7, frames=9)
    np.save(root / "train" / "bright" / "a.npy", frames)
    clips = split(root, segments=2, crops=3)
    assert clips.views == 6
    found = [pixels(clips.view(torch.tensor([0]), number)["video"][0]) for number in range(6)]
    for number, view in enumerate(found):
        start, left = (1, 3)[number // 3], (0, 8, 15)[number % 3]
        expected = frames[[start, start + 2, start + 4], 2 : 2 + SIZE, left : left + SIZE]
        assert view.numpy().tolist() == expected.tolist()


def test_augmentation_draws_five_numbers_of_the_slots_own_stream(root: Path) -> None:
    clips, indices = split(root), torch.tensor([3, 0])
    generator = torch.Generator().manual_seed(5)
    first = clips.take(indices, generator)["video"]
    again = torch.Generator().manual_seed(5)
    torch.rand(2, 5, generator=again)
    assert torch.equal(generator.get_state(), again.get_state())
    assert torch.equal(clips.take(indices, torch.Generator().manual_seed(5))["video"], first)
    assert not torch.equal(clips.take(indices, generator)["video"], first)


def test_clips_are_mirrored_only_where_the_task_says(root: Path) -> None:
    seeds = range(20)
    seen = {}
    for mirror in (True, False):
        clips = split(root, mirror=mirror)
        seen[mirror] = [
            clips.take(torch.tensor([0]), torch.Generator().manual_seed(seed))["video"] for seed in seeds
        ]
    same = [torch.equal(a, b) for a, b in zip(seen[True], seen[False], strict=True)]
    flipped = [torch.equal(a, b.flip(-1)) for a, b in zip(seen[True], seen[False], strict=True)]
    assert all(a != b for a, b in zip(same, flipped, strict=True))
    assert 4 < sum(flipped) < 16


# --- metrics ---------------------------------------------------------------------------------------


def test_scores_are_the_mean_over_the_views(root: Path) -> None:
    """Two views vote for different classes; the surer one wins, in every slot by its own numbers."""
    task = load(root, segments=2)
    logits = [
        torch.tensor([[0.0, 3.0, 0.0], [0.0, 1.0, 0.0]]),
        torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 2.0]]),
    ]
    calls: list[int] = []

    def forward(batch: Batch) -> Tensor:
        assert batch["video"].shape[:2] == (2, 3)
        calls.append(len(calls))
        return logits[calls[-1] % 2].unsqueeze(1).expand(2, 3, 3)

    found = task.evaluate(forward, 2, "val")
    probability = torch.stack([each.double().softmax(-1) for each in logits]).mean(0)
    for slot in range(2):
        assert found[slot]["accuracy"] == pytest.approx(1 / 3)  # each class has one clip
        assert found[slot]["loss"] == pytest.approx(float(-probability[slot].log().mean()))
    assert probability.argmax(-1).tolist() == [1, 2]


# --- from a folder to metrics ----------------------------------------------------------------------


def test_a_video_swin_tells_clips_apart_through_the_command_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*words: str) -> dict[str, Any]:
        capsys.readouterr()
        assert cli.main([*words, "--json"]) == 0
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    run = tmp_path / "run.yaml"
    run.write_text(
        "backbone: {name: video-swin-nano, weights: random}\n"
        f"task: {{name: video-folder, root: {root}, image_size: 32, frames: 4, stride: 1, segments: 2}}\n"
        "method: {name: replora, rank: 4, hidden: 8}\n"
        "optim: {lr: 1e-2}\ntrain: {steps: 30, batch: 6, eval_every: 15}\n"
    )
    trained = command("train", str(run), "--dir", str(tmp_path / "out"))
    assert trained["metrics"]["accuracy"] == 1.0
    assert command("eval", str(tmp_path / "out"), "--split", "test")["metrics"]["accuracy"] == 1.0
    command("export", str(tmp_path / "out"), "--as", "merged", "--out", str(tmp_path / "merged"))
    assert (tmp_path / "merged" / "model.safetensors").exists()
