import pytest
import torch
from torchvision.transforms import v2

from app.config.schema.augment import parse_augment, parse_batch_augment
from app.config.schema.data import AUGMENTS
from app.core import rng
from app.data.augment import build_augmentation, crop_parameters, resized_crop
from app.data.mix import build_mixing, cut_box, cutmix, mixup
from app.errors import ConfigError

IMAGES = torch.randint(0, 256, (64, 3, 10, 14), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
KEYS = torch.arange(64)


def augmented(value: object, images: torch.Tensor = IMAGES, keys: torch.Tensor = KEYS, epoch: int = 0) -> torch.Tensor:
    return build_augmentation(parse_augment(value), seed=0)(images, keys, epoch)


@pytest.mark.parametrize("name", [*(name for name in AUGMENTS if name != "resized_crop"), "GaussianBlur"])
def test_each_is_a_function_of_seed_epoch_and_index(name: str) -> None:
    value = {name: {"kernel_size": 3} if name == "GaussianBlur" else {}}
    torch.manual_seed(1)
    whole = augmented(value)
    torch.manual_seed(2)
    assert whole.dtype == torch.uint8
    assert whole.shape == IMAGES.shape
    assert torch.equal(augmented(value, IMAGES[20:30], KEYS[20:30]), whole[20:30])
    assert not torch.equal(augmented(value, epoch=1), whole)
    assert not torch.equal(whole, IMAGES)


def test_flips_are_mirror_images() -> None:
    for name, axis in (("flip", 3), ("vflip", 2)):
        done = augmented({name: {"prob": 0.25}})
        mirrored = torch.tensor([torch.equal(a, b.flip(axis - 1)) for a, b in zip(done, IMAGES, strict=True)])
        kept = torch.tensor([torch.equal(a, b) for a, b in zip(done, IMAGES, strict=True)])
        assert (mirrored ^ kept).all()
        assert 6 <= mirrored.sum() <= 28
        assert torch.equal(augmented({name: {"prob": 1}}), IMAGES.flip(axis))
        assert torch.equal(augmented({name: {"prob": 0}}), IMAGES)


def test_crop_is_a_shift_of_the_padded_image() -> None:
    padding, fill = 2, 77
    done = augmented({"crop": {"padding": padding, "fill": fill}})
    padded = torch.nn.functional.pad(IMAGES, (padding,) * 4, value=fill)
    shifts = set()
    for result, image in zip(done, padded, strict=True):
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(result, image[:, y : y + 10, x : x + 14])]
        assert len(places) == 1
        shifts.add(places[0])
    assert {y for y, _ in shifts} == {x for _, x in shifts} == set(range(5))


def test_crop_and_flip_together_are_crop_then_flip() -> None:
    shift = {"crop": {"padding": 2}}
    cropped = augmented(shift)
    assert torch.equal(augmented({**shift, "flip": {"prob": 1}, "vflip": {"prob": 1}}), _shift_back(cropped))


def _shift_back(cropped: torch.Tensor) -> torch.Tensor:
    return cropped.flip(2, 3)


def test_erase_blanks_one_square() -> None:
    images = torch.full((64, 1, 12, 12), 9, dtype=torch.uint8)
    done = augmented({"erase": {"prob": 0.5, "size": 0.25}}, images)
    erased = (done == 0).sum((1, 2, 3))
    assert set(erased.tolist()) == {0, 9}
    for image in done[erased == 9]:
        rows, columns = (image[0] == 0).nonzero().unbind(1)
        assert rows.max() - rows.min() == columns.max() - columns.min() == 2


def test_rotation_is_torchvisions() -> None:
    images = IMAGES[:, :, :, :10]
    done = augmented({"rotate": {"degrees": 40}}, images)
    angles = (rng.uniforms(0, 0, KEYS, 1, "rotate")[:, 0] * 2 - 1) * 40
    assert angles.min() < -20
    assert angles.max() > 20
    for result, image, angle in zip(done, images, angles.tolist(), strict=True):
        theirs = v2.functional.rotate(image, -angle, interpolation=v2.InterpolationMode.BILINEAR)
        assert (result.int() - theirs.int()).abs().float().mean() < 1


def test_resized_crop_of_a_ramp_shows_its_box() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).expand(200, 1, 64, 64).contiguous() * 3
    keys = torch.arange(200)
    done = resized_crop(0, 16, [0.2, 0.5], [0.75, 1.3333])(ramp, keys, 0)
    assert done.shape == (200, 1, 16, 16)
    parameters = crop_parameters(0, 0, keys, [0.2, 0.5], [0.75, 1.3333])
    area, ratio = parameters[:, 0] ** 2, parameters[:, 1] ** 2
    assert ((area >= 0.2) & (area < 0.5)).all()
    assert ((ratio >= 0.75) & (ratio < 1.3334)).all()
    width = (parameters[:, 0] * parameters[:, 1]).clamp(max=1) * 64
    slope = (done[:, 0, 8, 12].float() - done[:, 0, 8, 4].float()) / (3 * 8)
    torch.testing.assert_close(slope, width / 16, atol=0.2, rtol=0)
    left = parameters[:, 2] * (64 - width)
    torch.testing.assert_close(done[:, 0, 8, 0].float() / 3, left + width / 32 - 0.5, atol=0.6, rtol=0)


def test_ours_come_in_their_order_and_erase_last() -> None:
    parsed = parse_augment(["erase", "GaussianBlur", "flip", "resized_crop"])
    assert [name for name, _ in parsed] == ["resized_crop", "flip", "GaussianBlur", "erase"]
    assert parse_augment({"flip": {}, "crop": None}) == parse_augment("flip") == [("flip", {"prob": 0.5})]
    assert parse_augment(None) == parse_augment([]) == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("flap", "data.augment: unknown augmentation 'flap'; did you mean flip or vflip?"),
        (["gausianblur"], "data.augment: unknown augmentation 'gausianblur'; did you mean GaussianBlur?"),
        (
            {"crop": {"pading": 1}},
            "data.augment.crop: unknown argument 'pading'; did you mean padding? (arguments: padding, fill)",
        ),
        ({"flip": {"prob": 1.5}}, "data.augment.flip.prob must be >= 0 and <= 1, got 1.5"),
        ({"flip": {"prob": float("nan")}}, "data.augment.flip.prob must be >= 0 and <= 1, got nan"),
        ({"crop": {"padding": "4"}}, "data.augment.crop.padding must be a whole number, got '4'"),
        (
            {"resized_crop": {"scale": [0.5, 0.2]}},
            "data.augment.resized_crop.scale must be a range [low, high] with low <= high, got [0.5, 0.2]",
        ),
        (
            {"flip": True},
            "data.augment.flip must be a mapping of arguments ({} for the defaults, null to remove it), got True",
        ),
        (["flip", {"flip": {}}], "data.augment: 'flip' is listed twice"),
        (3, "data.augment must be null, a list of names or a mapping name -> arguments, got 3"),
        ([3], "data.augment: every entry must be a name or a mapping name -> arguments, got 3"),
    ],
)
def test_wrong_values_are_refused_by_name(value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_augment(value)
    assert str(caught.value) == message


def test_probabilities_of_batch_augmentation_sum_to_at_most_one() -> None:
    with pytest.raises(ConfigError, match=r"must sum to at most 1, got 1.25 \(mixup 0.75, cutmix 0.5\)"):
        parse_batch_augment({"mixup": {"prob": 0.75}, "cutmix": {}})
    with pytest.raises(ConfigError, match="unknown batch augmentation 'cutmux'; did you mean cutmix"):
        parse_batch_augment(["cutmux"])


def test_what_torchvision_refuses_is_said() -> None:
    with pytest.raises(ConfigError, match=r"data\.augment\.GaussianBlur: torchvision refuses the arguments \{\}"):
        augmented(["GaussianBlur"])
    with pytest.raises(
        ConfigError, match=r"ElasticTransform: torchvision cannot apply it to an image of torch.uint8 \(3, 10"
    ):
        augmented(["ElasticTransform"])
    with pytest.raises(ConfigError, match=r"must give back uint8 images of one size, got torch.float32"):
        augmented({"ConvertImageDtype": {}})


FLOATS = IMAGES.float() / 255
LABELS = KEYS % 4


def test_mixup_is_torchvisions() -> None:
    theirs = v2.MixUp(alpha=1.0, num_classes=4)
    torch.manual_seed(3)
    images, targets = theirs(FLOATS, LABELS)
    torch.manual_seed(3)
    weight = theirs.make_params([FLOATS])["lam"]
    soft = torch.nn.functional.one_hot(LABELS, 4).float()
    ours = mixup(FLOATS, soft, weight)
    assert torch.equal(ours[0], images)
    assert torch.equal(ours[1], targets)


def test_cutmix_is_torchvisions() -> None:
    theirs = v2.CutMix(alpha=1.0, num_classes=4)
    for seed in range(20):
        torch.manual_seed(seed)
        images, targets = theirs(FLOATS, LABELS)
        torch.manual_seed(seed)
        weight = float(theirs._dist.sample(()))
        x, y = int(torch.randint(14, (1,))), int(torch.randint(10, (1,)))
        soft = torch.nn.functional.one_hot(LABELS, 4).float()
        ours = cutmix(FLOATS, soft, cut_box(weight, x, y, width=14, height=10))
        assert torch.equal(ours[0], images)
        torch.testing.assert_close(ours[1], targets)


def test_mixing_is_a_function_of_seed_epoch_and_batch() -> None:
    mix = build_mixing(parse_batch_augment({"mixup": {"prob": 0.3}, "cutmix": {"prob": 0.3}}), seed=0, num_classes=4)
    counts = {"none": 0, "mixup": 0, "cutmix": 0}
    for batch in range(200):
        images, targets = mix(FLOATS, LABELS, 0, batch)
        again = mix(FLOATS, LABELS, 0, batch)
        assert torch.equal(images, again[0])
        assert targets.shape == (64, 4)
        torch.testing.assert_close(targets.sum(1), torch.ones(64))
        same = (images == FLOATS).float().mean()
        counts["none" if same == 1 else "cutmix" if same > 0.02 else "mixup"] += 1
    assert 50 < counts["none"] < 110
    assert min(counts["mixup"], counts["cutmix"]) > 35
