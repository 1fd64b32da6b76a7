"""A folder of real images as a task: splits, decoding, randomness of a slot alone, clear errors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from replora.config import ImageFolderTask
from replora.errors import ConfigError, DataError
from replora.tasks import folder_index, image_folder
from replora.tasks.base import IMAGENET_MEAN, IMAGENET_STD, SplitName, Task
from replora.tasks.folder_index import index_folder
from replora.tasks.image_folder import IMAGES
from replora.tasks.load import load_task

SIDE = 6


def draw(path: Path, seed: int = 0, mode: str = "RGB") -> Path:
    """A small image of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def load(root: Path, precision: str = "fp32", **fields: float) -> Task:
    config = ImageFolderTask(root=root, image_size=SIDE, **fields)
    return load_task(config, precision=precision, device="cpu")  # type: ignore[arg-type]


def members(root: Path, **fields: float) -> dict[SplitName, list[str]]:
    """Relative paths of each split."""
    config = ImageFolderTask(root=root, image_size=SIDE, **fields)
    return {
        name: [image.relative for image in each] for name, each in index_folder(config, IMAGES).splits.items()
    }


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REPLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Two classes with the three splits as folders."""
    root = tmp_path / "split"
    for number, part in enumerate(("train", "val", "test")):
        for label, name in enumerate(("cat", "dog")):
            for index in range(3):
                draw(root / part / name / f"{index}.png", seed=100 * number + 10 * label + index)
    return root


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Two classes of 30 images without splits."""
    root = tmp_path / "flat"
    for label, name in enumerate(("cat", "dog")):
        for index in range(30):
            draw(root / name / f"{index}.png", seed=100 * label + index)
    return root


def test_folders_are_the_splits(split: Path) -> None:
    assert members(split) == {
        part: [f"{part}/{name}/{index}.png" for name in ("cat", "dog") for index in range(3)]
        for part in ("train", "val", "test")
    }


def test_labels_are_the_sorted_classes(split: Path) -> None:
    task = load(split)
    assert task.head_width == 2
    assert task.split("train").take(torch.arange(6), None)["label"].tolist() == [0, 0, 0, 1, 1, 1]


def test_flat_folder_is_split_whole_and_disjointly(flat: Path) -> None:
    parts = members(flat)
    together = [name for each in parts.values() for name in each]
    assert len(together) == len(set(together)) == 60
    assert all(parts.values())


def test_image_stays_in_its_split_when_others_come(flat: Path) -> None:
    before = members(flat)
    for index in range(30, 60):
        draw(flat / "cat" / f"{index}.png", seed=index)
    after = members(flat)
    assert all(set(before[name]) <= set(after[name]) for name in before)


def test_split_by_hash_does_not_depend_on_where_the_folder_is(flat: Path, tmp_path: Path) -> None:
    before, data_hash = members(flat), load(flat).data_hash
    moved = flat.rename(tmp_path / "elsewhere")
    assert members(moved) == before
    assert load(moved).data_hash == data_hash


def test_missing_validation_folder_is_taken_from_train(split: Path) -> None:
    for path in sorted((split / "val").rglob("*.png")):
        path.unlink()
    for folder in ("val/cat", "val/dog", "val"):
        (split / folder).rmdir()
    for index in range(3, 30):
        draw(split / "train" / "cat" / f"{index}.png", seed=index)
        draw(split / "train" / "dog" / f"{index}.png", seed=index + 500)
    parts = members(split)
    assert len(parts["test"]) == 6
    assert len(parts["train"]) + len(parts["val"]) == 60
    assert all(name.startswith("train/") for name in parts["val"])


def test_pixels_are_normalized_as_promised(split: Path) -> None:
    found = load(split).split("val").take(torch.tensor([0]), None)["image"][0]
    pixels = torch.from_numpy(np.array(Image.open(split / "val" / "cat" / "0.png"))).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(found, (pixels - mean) / std)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("fp64", torch.float64), ("bf16", torch.bfloat16)]
)
def test_images_come_in_the_precision_asked_for(split: Path, precision: str, dtype: torch.dtype) -> None:
    assert load(split, precision).split("val").take(torch.tensor([0]), None)["image"].dtype == dtype


def test_mirroring_follows_the_generator_alone(split: Path) -> None:
    train, indices = load(split).split("train"), torch.arange(6)

    def taken(seed: int) -> torch.Tensor:
        return train.take(indices, torch.Generator().manual_seed(seed))["image"]

    first = taken(1)
    torch.manual_seed(99)
    assert torch.equal(taken(1), first)
    assert not torch.equal(taken(2), first)


def test_mirrored_images_are_the_plain_ones_left_to_right(split: Path) -> None:
    train, indices = load(split).split("train"), torch.arange(6)
    plain = train.take(indices, None)["image"]
    found = train.take(indices, torch.Generator().manual_seed(1))["image"]
    kinds = [
        "plain" if torch.equal(new, old) else "mirrored" if torch.equal(new, old.flip(-1)) else "other"
        for new, old in zip(found, plain, strict=True)
    ]
    assert set(kinds) == {"plain", "mirrored"}


def test_without_a_generator_nothing_is_random(split: Path) -> None:
    train = load(split).split("train")
    state = torch.get_rng_state()
    first, second = (train.take(torch.arange(6), None)["image"] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("room", [0, 2 * 3 * SIDE * SIDE, 10**9])
def test_room_for_decoded_images_does_not_change_them(
    split: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(image_folder, "_KEPT_BYTES", 10**9)
    plain = load(split).split("train").take(torch.arange(6), None)["image"]
    monkeypatch.setattr(image_folder, "_KEPT_BYTES", room)
    train = load(split).split("train")
    assert isinstance(train, image_folder.FolderSplit)
    for _ in range(2):
        assert torch.equal(train.take(torch.arange(6), None)["image"], plain)
    assert len(train._kept) == min(6, room // (3 * SIDE * SIDE))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_images_of_every_mode_become_three_channels(split: Path, mode: str) -> None:
    suffix = "tiff" if mode == "CMYK" else "png"
    draw(split / "val" / "cat" / f"a.{suffix}", mode=mode)
    assert load(split).split("val").take(torch.arange(4), None)["image"].shape == (4, 3, SIDE, SIDE)


def test_photograph_is_turned_as_its_camera_says(split: Path) -> None:
    path = split / "val" / "cat" / "0.png"
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    plain = load(split).split("val").take(torch.tensor([0]), None)["image"]
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    image.save(path, exif=exif)
    turned = load(split).split("val").take(torch.tensor([0]), None)["image"]
    assert torch.equal(turned, plain.flip(-1, -2))


def test_odd_names_are_names_and_nothing_else(split: Path) -> None:
    for name in ("a b.png", "-rf.png", "e\u0301.png", "line\nbreak.png", "..png.png", "$(id).png"):
        draw(split / "val" / "cat" / name)
    draw(split / "val" / "cat" / os.fsdecode(b"latin-\xe9.png"))
    (split / "val" / "cat" / ".hidden.png").write_text("not an image")
    (split / "val" / "cat" / "notes.txt").write_text("not an image")
    assert len(load(split).split("val").take(torch.arange(10), None)["label"]) == 10
    assert len(members(split)["val"]) == 3 + 7 - 1 + 3


def test_data_hash_follows_the_content(split: Path) -> None:
    before = load(split).data_hash
    draw(split / "test" / "dog" / "2.png", seed=777)
    assert load(split).data_hash != before


def test_data_hash_follows_the_names(split: Path) -> None:
    before = load(split).data_hash
    (split / "val" / "dog" / "2.png").rename(split / "val" / "cat" / "3.png")
    assert load(split).data_hash != before


def test_images_are_checked_once(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load(split).data_hash
    monkeypatch.setattr(folder_index, "_check_and_hash", None)
    assert load(split).data_hash == before


def test_damaged_record_of_the_check_is_made_again(split: Path, own_cache: Path) -> None:
    before = load(split).data_hash
    next(own_cache.glob("images-*.json")).write_text("{")
    assert load(split).data_hash == before


def test_every_unreadable_image_is_named(split: Path) -> None:
    whole = (split / "val" / "cat" / "0.png").read_bytes()
    (split / "val" / "cat" / "0.png").write_bytes(whole[: len(whole) // 2])
    (split / "test" / "dog" / "1.png").write_text("not an image")
    with pytest.raises(DataError, match=r"(?s)2 images cannot be read.*dog/1\.png.*cat/0\.png"):
        load(split)


def test_image_that_went_after_the_check_is_a_data_error(split: Path) -> None:
    train = load(split).split("train")
    (split / "train" / "cat" / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png cannot be read any more"):
        train.take(torch.tensor([1]), None)


def remove_class(root: Path) -> None:
    for path in (root / "val" / "dog").iterdir():
        path.unlink()
    (root / "val" / "dog").rmdir()


def empty_class(root: Path) -> None:
    (root / "val" / "bird").mkdir()


def unknown_split(root: Path) -> None:
    (root / "validation").mkdir()


def no_train(root: Path) -> None:
    (root / "train").rename(root / "training")


def link_out(root: Path) -> None:
    (root / "val" / "cat" / "9.png").symlink_to(draw(root.parent / "secret.png"))


def folder_link_out(root: Path) -> None:
    draw(root.parent / "others" / "0.png")
    (root / "val" / "bird").symlink_to(root.parent / "others")


def dangling_link(root: Path) -> None:
    (root / "val" / "cat" / "9.png").symlink_to(root / "nothing.png")


def circle(root: Path) -> None:
    (root / "val" / "cat" / "9.png").symlink_to(root / "val" / "cat" / "9.png")


def pipe(root: Path) -> None:
    os.mkfifo(root / "val" / "cat" / "9.png")


def one_class(root: Path) -> None:
    for part in ("train", "val", "test"):
        for path in (root / part / "dog").iterdir():
            path.unlink()
        (root / part / "dog").rmdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_class, "the val split of .* has no image of dog"),
        (empty_class, "bird holds no image"),
        (unknown_split, "has validation beside train"),
        (no_train, "has val and test, but no train"),
        (link_out, r"9\.png is a link to .*secret\.png, outside of"),
        (folder_link_out, "bird is a link to .*others, outside of"),
        (dangling_link, r"9\.png is a link that leads nowhere"),
        (circle, r"9\.png is a link that leads nowhere"),
        (pipe, r"9\.png is not a file that can be read"),
        (one_class, r"has one class \(cat\), but two at least are needed"),
    ],
)
def test_folder_that_is_not_as_documented_is_a_data_error(
    split: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(split)
    with pytest.raises(DataError, match=message):
        load(split)


def test_link_inside_of_the_folder_is_an_image(split: Path) -> None:
    (split / "val" / "cat" / "9.png").symlink_to(split / "train" / "cat" / "0.png")
    assert len(load(split).split("val")) == 7


def test_folder_may_itself_be_a_link(split: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(split)
    assert load(tmp_path / "link").data_hash == load(split).data_hash


@pytest.mark.parametrize("root", ["nothing", "empty"])
def test_missing_and_empty_folders_are_data_errors(tmp_path: Path, root: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"is not a folder|holds no images"):
        load(tmp_path / root)


def test_shares_that_leave_nothing_to_train_on_are_refused(flat: Path) -> None:
    with pytest.raises(DataError, match=r"must be below 1, but got 0\.6 \+ 0\.4"):
        load(flat, val_fraction=0.6, test_fraction=0.4)


def test_test_split_of_share_0_is_an_error_only_when_asked_for(flat: Path) -> None:
    task = load(flat, test_fraction=0.0)
    with pytest.raises(DataError, match="no test split"):
        task.split("test")


def test_images_that_do_not_fit_the_backbone_are_refused(split: Path) -> None:
    from replora.config import BackboneConfig
    from replora.models.load import load_backbone

    backbone = load_backbone(
        BackboneConfig(name="vit-ti16", weights="random"), precision="fp32", device="cpu"
    )
    batch = load(split).split("val").take(torch.tensor([0]), None)
    with pytest.raises(ConfigError, match=r"set task\.image_size"):
        backbone.features(backbone.model, batch)
