"""The configuration of data sets and of how they are fed to the model."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from app.config.schema.knob import knob


@dataclass(eq=False, repr=False)
class DataConf:
    """What every data set has."""

    _target_: str = MISSING
    batch_size: int = knob(
        64, "Training images per forward pass, over all ranks together; a step takes train.accumulate of them.", ge=1
    )
    eval_batch_size: int = knob(250, "Images per forward pass of an evaluation, on one rank.", ge=1)
    shuffle: bool = knob(True, "Visit the training images in a new order every epoch.")
    drop_last: bool = knob(False, "Leave out the last, smaller batch of an epoch.")
    num_workers: int = knob(
        0, "Processes that load and augment, for data not held in memory; the result does not depend on it.", ge=0
    )
    pin_memory: bool = knob(True, "Copy batches through pinned memory when training on a GPU.")
    timeout: float = knob(120.0, "Seconds to wait for a loader worker before giving up. 0: for ever.", ge=0)
    in_memory: bool | str = knob(
        "auto",
        "Hold the images as uint8 and augment whole batches; auto: data sets of small, equally sized images, unless files are cropped with resized_crop.",
        choices=(True, False, "auto"),
    )
    device_resident: bool | str = knob(
        "auto",
        "Hold in-memory images on the training device; auto: when they take less than a fifth of its memory.",
        choices=(True, False, "auto"),
    )
    augment: Any = knob(
        None,
        "Training augmentation: a list of names, or a mapping name -> arguments (null removes one); see --help augment.",
    )
    batch_augment: Any = knob(
        None, "Augmentation of whole batches: a mapping mixup|cutmix -> {alpha, prob}; null: none."
    )
    repeats: int = knob(
        1, "Repeated augmentation: how many differently augmented copies of an image an epoch holds.", ge=1
    )
    mean: list[float] | None = knob(
        None, "Per-channel mean of pixels scaled to [0, 1]. null: the data set's own, or 0.5."
    )
    std: list[float] | None = knob(None, "Per-channel standard deviation, likewise.")
    image_size: int | None = knob(
        None, "Side in pixels that images are resized or cropped to. null: as they are.", ge=1
    )
    on_error: str = knob(
        "raise",
        "An unreadable image: stop with its path, or use the next one instead, with its label, and count it.",
        choices=("raise", "skip"),
    )
    max_errors: int = knob(100, "With on_error=skip: stop after so many.", ge=1)
    limit_train: int | None = knob(
        None, "Use only so many training images, evenly spread over the data set, for quick trials. null: all.", ge=1
    )
    limit_val: int | None = knob(None, "Likewise for validation.", ge=1)


@dataclass(eq=False, repr=False)
class DigitsConf(DataConf):
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels; they come with the package."""

    _target_: str = "app.data.digits.digits"
    val_fraction: float = knob(
        0.2,
        "Part of the images that is held out for validation, the same share of each class, always the same ones.",
        gt=0,
        lt=1,
    )


@dataclass(eq=False, repr=False)
class TorchvisionDataConf(DataConf):
    """A data set that torchvision reads."""

    _target_: str = "app.data.torchvision_sets.torchvision_set"
    name: str = knob(
        "MNIST", "torchvision's class.", choices=("MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100")
    )
    root: str = knob(
        "data", "Folder that holds the data set's folder (MNIST/raw/…); files may be packed as they were downloaded."
    )
    download: bool = knob(False, "Fetch what is missing into root.")


@dataclass(eq=False, repr=False)
class FolderConf(DataConf):
    """JPEG or PNG files, one folder per class."""

    _target_: str = "app.data.folder.folder"
    root: str = knob(
        MISSING,
        "Folder with train/ and val/ (or train/ and test/), or, with val_fraction, with the class folders themselves; a .tar of it works too.",
    )
    val_fraction: float | None = knob(
        None,
        "Hold out about this part of each class for validation instead of using val/, by a hash of each file's name: it keeps its side for good.",
        gt=0,
        lt=1,
    )
    train_list: str | None = knob(
        None,
        "A text file of `path label` or `path class-name` lines, relative to root, instead of folders; labels that count up from 0 or 1 are numbers, others are names.",
    )
    val_list: str | None = knob(None, "Likewise for validation.")
    allow_empty: bool = knob(False, "Accept class folders without images.")
    max_pixels: int = knob(178_956_970, "Refuse images of more pixels than this.", ge=1)
    resize: int | None = knob(
        None,
        "Evaluation: shorter side before the centre crop to image_size. null: image_size / 0.875, and images of that size as they are.",
        ge=1,
    )
    cache: bool = knob(
        False, "Keep decoded, resized images in a file beside the run folders, for data that fits on disk."
    )


@dataclass(eq=False, repr=False)
class FakeConf(DataConf):
    """Random images with learnable classes, for tests and benchmarks."""

    _target_: str = "app.data.fake.fake"
    size: int = knob(1024, "Training images.", ge=1)
    val_size: int = knob(256, "Validation images.", ge=1)
    num_classes: int = knob(10, "Classes.", ge=2)
    channels: int = knob(3, "Channels.", ge=1)
    image_size: int | None = knob(32, "Side in pixels.", ge=1)


@dataclass(eq=False, repr=False)
class CropConf:
    """Shift the image by up to `padding` pixels, filling with `fill`."""

    padding: int = knob(4, "Greatest shift, in pixels.", ge=1)
    fill: int = knob(0, "Grey level that fills the border.", ge=0, le=255)


@dataclass(eq=False, repr=False)
class ProbConf:
    """With probability `prob`."""

    prob: float = knob(0.5, "Probability of each image.", ge=0, le=1)


@dataclass(eq=False, repr=False)
class EraseConf:
    """Blank a square of the image."""

    prob: float = knob(0.25, "Probability of each image.", ge=0, le=1)
    size: float = knob(0.25, "Side of the square, as part of the image's.", gt=0, le=1)


@dataclass(eq=False, repr=False)
class RotateConf:
    """Turn the image."""

    degrees: float = knob(15.0, "Greatest angle.", ge=0, le=180)


@dataclass(eq=False, repr=False)
class ResizedCropConf:
    """Crop a random part and resize it to image_size."""

    scale: list[float] = knob([0.08, 1.0], "Range of the crop's area, as part of the image's.", gt=0, le=1)
    ratio: list[float] = knob([0.75, 1.3333], "Range of the crop's aspect ratio.", gt=0)


@dataclass(eq=False, repr=False)
class ColorConf:
    """Change brightness, contrast, saturation and hue."""

    brightness: float = knob(0.4, "Strength.", ge=0)
    contrast: float = knob(0.4, "Strength.", ge=0)
    saturation: float = knob(0.4, "Strength.", ge=0)
    hue: float = knob(0.0, "Strength.", ge=0, le=0.5)


@dataclass(eq=False, repr=False)
class RandAugmentConf:
    """RandAugment (arXiv:1909.13719), torchvision's."""

    num_ops: int = knob(2, "Operations in a row.", ge=1)
    magnitude: int = knob(9, "Strength of all of them.", ge=0, le=30)


@dataclass(eq=False, repr=False)
class AugMixConf:
    """AugMix (arXiv:1912.02781), torchvision's."""

    severity: int = knob(3, "Strength.", ge=1, le=10)


@dataclass(eq=False, repr=False)
class PolicyConf:
    """An augmentation without settings."""


AUGMENTS: dict[str, type] = {
    "resized_crop": ResizedCropConf,
    "crop": CropConf,
    "rotate": RotateConf,
    "flip": ProbConf,
    "vflip": ProbConf,
    "color": ColorConf,
    "randaugment": RandAugmentConf,
    "trivialaugment": PolicyConf,
    "autoaugment": PolicyConf,
    "augmix": AugMixConf,
    "erase": EraseConf,
}
"""Names of `data.augment`, in the order in which they are applied; others must be class names of torchvision.transforms.v2."""


@dataclass(eq=False, repr=False)
class MixConf:
    """mixup (arXiv:1710.09412) or cutmix (arXiv:1905.04899)."""

    alpha: float = knob(1.0, "Both parameters of the Beta distribution that the mixing weight is drawn from.", gt=0)
    prob: float = knob(
        0.5, "Probability of each batch; the probabilities of all of them together are at most 1.", ge=0, le=1
    )


BATCH_AUGMENTS: dict[str, type] = {"mixup": MixConf, "cutmix": MixConf}
DATA: dict[str, type] = {
    "digits": DigitsConf,
    "torchvision": TorchvisionDataConf,
    "folder": FolderConf,
    "fake": FakeConf,
    "custom": DataConf,
}
