"""Image files: the folder layout, decoding, unreadable files, archives, decoded copies."""

import contextlib
import io
import os
import random
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app.data.decode import UnreadableError, centre_box, decode
from app.data.feed import Feed
from app.data.folder import EXTENSIONS, LAYOUT, folder
from app.data.source import ImageFiles, Splits
from app.errors import DataError

FeedOf = Callable[..., Feed]
LIMIT = 178_956_970


def whole(width: int, height: int) -> tuple[float, float, float, float]:
    return 0, 0, width, height


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """Smooth random colours, which survive JPEG."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """train/ with 6 and val/ with 3 images in each of the classes ant and bee."""
    for part, count in (("train", 6), ("val", 3)):
        for label, name in enumerate(("ant", "bee")):
            place = tmp_path / part / name
            place.mkdir(parents=True)
            for i in range(count):
                picture(seed=100 * label + i + (50 if part == "val" else 0)).save(place / f"{i}.jpg", quality=95)
    return tmp_path


def message(**keys: Any) -> str:
    with pytest.raises(DataError) as caught:
        folder(**keys)
    return str(caught.value)


def test_layout(root: Path) -> None:
    splits = folder(str(root))
    assert isinstance(splits.train, ImageFiles)
    assert list(splits.classes) == ["ant", "bee"]
    assert splits.train.targets.tolist() == [0] * 6 + [1] * 6
    assert (len(splits.train), len(splits.val), splits.test) == (12, 6, None)
    assert splits.train.paths[7] == str(root / "train/bee/1.jpg")


def test_test_folder_is_used_for_validation_where_there_is_no_val(root: Path) -> None:
    (root / "val").rename(root / "test")
    splits = folder(str(root))
    assert splits.val is splits.test


def paths(source: Any) -> set[str]:
    assert isinstance(source, ImageFiles)
    return set(source.paths)


def test_val_fraction_holds_out_a_part_of_each_class(root: Path) -> None:
    splits = folder(str(root / "train"), val_fraction=0.34)
    assert isinstance(splits.val, ImageFiles)
    assert set(splits.val.targets.tolist()) == set(splits.train.targets.tolist()) == {0, 1}  # type: ignore[union-attr]
    assert not paths(splits.val) & paths(splits.train)
    assert len(paths(splits.val) | paths(splits.train)) == 12
    assert paths(folder(str(root / "train"), val_fraction=0.34).val) == paths(splits.val)
    beside_val = folder(str(root), val_fraction=0.34)
    assert paths(beside_val.val) == paths(splits.val), "a file's side does not depend on where the class folders lie"
    assert beside_val.test is None


def test_val_fraction_keeps_test(root: Path) -> None:
    (root / "val").rename(root / "test")
    splits = folder(str(root), val_fraction=0.34)
    assert paths(splits.test) == {str(path) for path in (root / "test").rglob("*.jpg")}
    assert paths(splits.val) < {str(path) for path in (root / "train").rglob("*.jpg")}
    (root / "test/bee").rename(root / "test/bug")
    assert "only in train: bee; only in test" in message(root=str(root), val_fraction=0.34)


def test_missing_and_empty_folders(root: Path, tmp_path: Path) -> None:
    assert message(root=str(root / "nope")) == (
        f"data.root: {root / 'nope'} does not exist; expected a folder or a .tar of it with {LAYOUT}"
    )
    (tmp_path / "void").mkdir()
    assert message(root=str(tmp_path / "void")) == f"data.root: no images in {tmp_path / 'void'}; expected {LAYOUT}"
    assert message(root=str(root / "train")) == (f"data.root: {root / 'train'} must hold {LAYOUT}; found: ant, bee")


def test_empty_class(root: Path) -> None:
    for part in ("train", "val"):
        (root / part / "cat").mkdir()
    (root / "train/cat/notes.txt").write_text("no image")
    assert message(root=str(root)) == (
        f"data.root: the class folder {root / 'train/cat'} holds no image ({', '.join(EXTENSIONS)}); remove it, or set "
        "data.allow_empty=true to keep it as a class without samples"
    )
    splits = folder(str(root), allow_empty=True)
    assert list(splits.classes) == ["ant", "bee", "cat"]


def test_differing_classes(root: Path) -> None:
    (root / "val/bee").rename(root / "val/bug")
    assert message(root=str(root)) == (
        f"data: train has 2 classes and val ({root / 'val'}) has 2, and they differ: only in train: bee; "
        f"only in val ({root / 'val'}): bug"
    )


def test_list_files(root: Path) -> None:
    (root / "train.txt").write_text("train/ant/0.jpg ant\ntrain/bee/0.jpg bee\n\ntrain/ant/1.jpg ant\n")
    (root / "val.txt").write_text("val/bee/0.jpg\tbee\n")
    splits = folder(str(root), train_list="train.txt", val_list="val.txt")
    assert isinstance(splits.train, ImageFiles)
    assert isinstance(splits.val, ImageFiles)
    assert splits.train.targets.tolist() == [0, 1, 0]
    assert splits.val.targets.tolist() == [1]
    (root / "train.txt").write_text("train/ant/0.jpg 0\ntrain/bee/0.jpg 2\n")
    assert list(folder(str(root), train_list="train.txt", val_fraction=0.5).classes) == ["0", "2"], "names: not dense"


def test_wrong_list_files(root: Path) -> None:
    keys = {"root": str(root), "train_list": "train.txt", "val_list": "val.txt"}
    assert "data.train_list: cannot read" in message(**keys)
    (root / "train.txt").write_text("train/ant/0.jpg 0\ntrain/bee/0.jpg 1\n")
    (root / "val.txt").write_text("val/ant/0.jpg 0\nval/bee/0.jpg 2\n")
    assert message(**keys) == (
        f"data.val_list: {root / 'val.txt'}:2: label 2 is none of the 2 classes of data.train_list: 0, 1"
    )
    (root / "val.txt").write_text("val/ant/0.jpg 0\nval/bee/nope.jpg 1\n")
    assert message(**keys) == f"data.val_list: {root / 'val.txt'}:2: no image {root / 'val/bee/nope.jpg'}"
    (root / "val.txt").write_text("val/ant/0.jpg\n")
    assert message(**keys) == f"data.val_list: {root / 'val.txt'}:1: expected `path label`, got 'val/ant/0.jpg'"
    (root / "train.txt").write_text("train/ant/0.jpg -1\ntrain/bee/0.jpg 1\n")
    assert "train.txt:1: label -1 is negative; a label is a name, or a number from 0 on" in message(**keys)
    assert "needs either data.val_list or data.val_fraction" in message(root=str(root), train_list="train.txt")


@pytest.mark.parametrize("name", ["set.tar", "wrapped.tar"])
def test_archive_is_the_same_as_its_folder(
    root: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, feed_of: FeedOf
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    with tarfile.open(path, "w") as tar:
        for part in ("train", "val"):
            tar.add(root / part, f"flowers/{part}" if name == "wrapped.tar" else f"./{part}")
    path.chmod(0o444)
    packed, plain = folder(str(path)), folder(str(root))
    assert isinstance(packed.train, ImageFiles)
    assert isinstance(plain.train, ImageFiles)
    assert packed.train.paths[0] == f"{path}:train/ant/0.jpg"
    assert packed.train.targets.tolist() == plain.train.targets.tolist()
    assert [packed.train.read(i) for i in range(12)] == [plain.train.read(i) for i in range(12)]
    assert folder(str(path)).train.read(3) == plain.train.read(3)  # type: ignore[union-attr] # a second time
    assert feed_of(packed, num_workers=1).sample_images("val", [0]).shape == (1, 3, 30, 40)


def test_damaged_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set.tar").write_bytes(b"no archive" * 100)
    assert message(root="set.tar").startswith(f"data.root: {tmp_path / 'set.tar'} is not a whole tar archive: ")
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("kind", ["xz", "gz", "bz2"])
def test_a_compressed_archive_is_answered_with_the_command_that_unpacks_it(
    root: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    archive = tmp_path / f"my set.tar.{kind}"
    with tarfile.open(archive, f"w:{kind}") as tar:  # type: ignore[call-overload]
        for part in ("train", "val"):
            tar.add(root / part, part)
    text = message(root=archive.name)
    assert text.startswith(f"data.root: {archive} is compressed, ")
    command, _, place = text.partition("unpack it: ")[2].partition(", then data.root=")
    assert command == f"mkdir 'my set' && tar -xf '{archive}' -C 'my set'"
    subprocess.run(command, shell=True, check=True)
    assert len(folder(place).train) == 12


def test_every_kind_of_image_becomes_rgb() -> None:
    grey = Image.new("L", (4, 4), 100)
    assert decode(encoded(grey), None, whole, LIMIT)[:, 0, 0].tolist() == [100, 100, 100]
    assert decode(encoded(grey, "JPEG"), None, whole, LIMIT)[:, 0, 0].tolist() == [100, 100, 100]
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half.putpixel((1, 0), (255, 0, 0, 255))
    assert decode(encoded(half), None, whole, LIMIT)[:, 0, :2].T.tolist() == [[255, 255, 255], [255, 0, 0]]
    palette = Image.new("RGB", (4, 4), (10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert decode(encoded(palette), None, whole, LIMIT)[:, 0, 0].tolist() == [10, 20, 30]
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert (decode(encoded(cmyk, "JPEG"), None, whole, LIMIT)[:, 0, 0] - torch.tensor([254, 0, 0])).abs().max() < 5
    one_bit = Image.new("1", (4, 4), 1)
    assert decode(encoded(one_bit), None, whole, LIMIT)[:, 0, 0].tolist() == [255, 255, 255]


def test_sixteen_bits_are_scaled_not_cut() -> None:
    wide = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    image = Image.fromarray(wide)
    assert image.mode == "I;16"
    assert decode(encoded(image), None, whole, LIMIT)[0, 0].tolist() == [0, 1, 128, 255]


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (8, 4))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    turned = decode(encoded(image, "PNG", exif=exif), None, whole, LIMIT)
    assert turned.shape == (3, 8, 4)
    assert turned[:, 0, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("resize", "shorter_side"), [(None, 73), (100, 100)])
def test_evaluation_takes_the_centre_as_torchvision_does(resize: int | None, shorter_side: int) -> None:
    from torchvision.transforms import v2

    image = picture(301, 203)
    theirs = v2.Compose([v2.ToImage(), v2.Resize(shorter_side, antialias=True), v2.CenterCrop(64)])(image)
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 95})):
        ours = decode(encoded(image, kind, **options), 64, lambda w, h: centre_box(w, h, 64, resize), LIMIT)
        assert ours.shape == (3, 64, 64)
        assert (ours.int() - theirs.int()).abs().float().mean() < 3
    exact = picture(64, 64)
    ours = decode(encoded(exact), 64, lambda w, h: centre_box(w, h, 64, None), LIMIT)
    assert torch.equal(ours, torch.from_numpy(np.array(exact)).permute(2, 0, 1))


def test_a_jpeg_has_the_pixels_that_pillow_gives() -> None:
    """Whole, reduced by the decoder, grey, with full colour, with a second picture behind it, and cut short."""
    image = picture(203, 301)
    kinds = [
        encoded(image, "JPEG", quality=75),
        encoded(image, "JPEG", quality=75, progressive=True),
        encoded(image, "JPEG", quality=75, subsampling=0),
        encoded(image.convert("L"), "JPEG"),
        encoded(image, "MPO", save_all=True, append_images=[image]),
    ]
    for data in kinds:
        for reduction in (1, 2, 4, 8):
            side = 200 // reduction
            theirs = Image.open(io.BytesIO(data))
            theirs.draft(theirs.mode, (203 // reduction, 301 // reduction))
            pixels = torch.from_numpy(np.array(theirs.convert("RGB"))).permute(2, 0, 1)[None]
            assert pixels.shape[2] == -(-301 // reduction)
            expected = torch.nn.functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)[0]
            assert torch.equal(decode(data, side, whole, LIMIT), expected)
    with pytest.raises(UnreadableError, match="truncated"):
        decode(kinds[0][:-200], None, whole, LIMIT)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html><body>404</body></html>", "it starts with '<html': a web page, not an image"),
        (b"\n<!DOCTYPE html>", "it starts with '<!DOC': a web page, not an image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a git-lfs pointer, not the image: run `git lfs pull`"),
        (b"GIF89a", "not a JPEG, PNG, BMP, WEBP image; it starts with b'GIF89a'"),
    ],
)
def test_what_is_no_image_is_described(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        decode(data, 8, whole, LIMIT)
    assert str(caught.value) == reason


def test_damaged_images_raise_nothing_else() -> None:
    generator = random.Random(0)
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        good = encoded(picture(), kind)
        for _ in range(60):
            bad = bytearray(good[: generator.randrange(1, len(good))] if generator.random() < 0.5 else good)
            bad[generator.randrange(len(bad))] ^= 1 << generator.randrange(8)
            with contextlib.suppress(UnreadableError):
                decode(bytes(bad), 16, whole, 10_000)


def damage(root: Path) -> Path:
    path = root / "train/bee/2.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    return path


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_image_stops_with_its_path(root: Path, feed_of: FeedOf, num_workers: int) -> None:
    path = damage(root)
    feed = feed_of(folder(str(root)), num_workers=num_workers, image_size=16, batch_size=4)
    with pytest.raises(DataError) as caught:
        list(feed.train(0, 0))
    text = str(caught.value)
    assert text.startswith(
        f"data: cannot read {path} ({path.stat().st_size:,} bytes, sample 8): image file is truncated"
    )
    assert text.endswith("; set data.on_error=skip to go on without it")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_image_is_replaced_by_its_neighbour(
    root: Path, feed_of: FeedOf, num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = damage(root)
    keys = {"image_size": 16, "batch_size": 12, "shuffle": False, "num_workers": num_workers}
    feed = feed_of(folder(str(root)), on_error="skip", **keys)
    for epoch in (0, 1):
        batch = next(iter(feed.train(epoch, 0))).micros[0]
        assert torch.equal(batch.images[8], batch.images[9])
        assert not torch.equal(batch.images[7], batch.images[8])
    said = [record.getMessage() for record in caplog.records if "cannot read" in record.getMessage()]
    assert len(said) == 1
    assert str(path) in said[0]
    assert said[0].endswith("the next sample is used (1 of 100)")


def test_too_many_unreadable_images_stop(root: Path, feed_of: FeedOf) -> None:
    for i in range(3):
        (root / f"train/bee/{i}.jpg").write_bytes(b"")
    feed = feed_of(folder(str(root)), on_error="skip", max_errors=3, image_size=16)
    with pytest.raises(
        DataError, match=r"3 samples cannot be read \(data.max_errors=3\); last: data: cannot read .*bee"
    ):
        list(feed.train(0, 0))


def test_a_bomb_is_refused_by_its_header(root: Path, feed_of: FeedOf) -> None:
    header = encoded(Image.new("L", (1, 1)), "BMP")[:54]
    side = (20_000).to_bytes(4, "little")
    (root / "train/ant/0.bmp").write_bytes(header[:18] + side + side + header[26:])
    splits = folder(str(root))
    with pytest.raises(DataError, match=r"ant/0.bmp .*: 20000x20000 is 400,000,000 pixels, more than data.max_pixels="):
        list(feed_of(splits, image_size=16, shuffle=False).train(0, 0))


def test_differing_sizes_without_image_size(root: Path, feed_of: FeedOf) -> None:
    picture(20, 30).save(root / "train/bee/5.jpg")
    feed = feed_of(folder(str(root)), batch_size=12, shuffle=False, in_memory=False)
    with pytest.raises(DataError) as caught:
        list(feed.train(0, 0))
    assert str(caught.value) == (
        f"data: images differ in size: {root / 'train/ant/0.jpg'} (sample 0) is 40x30 with 3 channels, torch.uint8, "
        f"{root / 'train/bee/5.jpg'} (sample 11) is 20x30 with 3 channels, torch.uint8; set data.image_size"
    )


def batches(feed: Feed, split: str = "val") -> list[torch.Tensor]:
    return [batch.images for batch in feed.evaluate(split) if batch is not None]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_held_in_memory_is_the_same(root: Path, feed_of: FeedOf, num_workers: int) -> None:
    splits = folder(str(root))
    read = feed_of(splits, image_size=16, in_memory=False, augment=["flip"])
    held = feed_of(splits, image_size=16, in_memory=True, augment=["flip"], num_workers=num_workers)
    assert all(torch.equal(a, b) for a, b in zip(batches(read), batches(held), strict=True))
    for left, right in zip(read.train(0, 0), held.train(0, 0), strict=True):
        assert torch.equal(left.micros[0].images, right.micros[0].images)
        assert torch.equal(left.micros[0].targets, right.micros[0].targets)
    for part in ("train", "val"):
        assert not list(Path(root, part).rglob("*.npy"))


def test_cache_is_written_once_and_follows_the_files(
    root: Path, tmp_path: Path, feed_of: FeedOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = batches(feed_of(folder(str(root)), image_size=16, in_memory=False))
    cached = [batches(feed_of(folder(str(root), cache=True), image_size=16)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(plain, cached[0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain, cached[1], strict=True))
    files = sorted((tmp_path / "outputs/.cache").iterdir())
    assert len(files) == 1, "the training images were not asked for"
    times = [file.stat().st_mtime_ns for file in files]
    os.utime(root / "val/ant/0.jpg", ns=(1, 1))
    batches(feed_of(folder(str(root), cache=True), image_size=16))
    assert len(list((tmp_path / "outputs/.cache").iterdir())) == 2
    assert [file.stat().st_mtime_ns for file in files] == times


def test_random_resized_crop_needs_image_size(root: Path, feed_of: FeedOf) -> None:
    from app.errors import ConfigError

    with pytest.raises(ConfigError, match=r"data.augment.resized_crop needs data.image_size"):
        feed_of(folder(str(root)), augment=["resized_crop"])


def test_flowers(shared_data: Path, feed_of: FeedOf) -> None:
    splits: Splits = folder(str(shared_data / "flowers5/flowers5.tar"))
    assert (len(splits.train), len(splits.val)) == (2569, 550)
    assert list(splits.classes) == ["daisy", "dandelion", "roses", "sunflowers", "tulips"]
    keys = {"image_size": 32, "augment": ["resized_crop", "flip"], "limit_train": 40, "limit_val": 30, "batch_size": 20}
    runs = [[step.micros[0] for step in feed_of(splits, num_workers=n, **keys).train(0, 0)] for n in (0, 2)]
    for left, right in zip(*runs, strict=True):
        assert torch.equal(left.images, right.images)
    assert torch.cat([batch.targets for batch in runs[0]]).unique().tolist() == [0, 1, 2, 3, 4]
