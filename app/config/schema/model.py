"""The configuration of models, losses and metrics."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from app.config.schema.knob import knob


@dataclass(eq=False, repr=False)
class InitConf:
    """Pretrained weights that a new model starts from; not read when a checkpoint is resumed."""

    checkpoint: str | None = knob(
        None, "Path or http(s):// address of a .pth, .pt or .safetensors file. null: random weights."
    )
    prefix: str | None = knob(None, "Take only the entries that begin with this (`backbone.`), without it.")


@dataclass(eq=False, repr=False)
class ModelConf:
    """What every model has."""

    _target_: str = MISSING
    num_classes: int | None = knob(None, "Outputs. null: the data set's classes.", ge=1)
    in_channels: int | None = knob(None, "Image channels. null: the data set's.", ge=1)
    init: InitConf = field(default_factory=InitConf)


@dataclass(eq=False, repr=False)
class LeNet5Conf(ModelConf):
    """LeNet-5 (LeCun et al., 1998) with ReLU and max-pooling, for 28x28 or 32x32 images."""

    _target_: str = "app.models.lenet.LeNet5"


@dataclass(eq=False, repr=False)
class SmallCNNConf(ModelConf):
    """Three convolutions with batch norm and a global pool; for images from 8x8 up."""

    _target_: str = "app.models.small_cnn.SmallCNN"
    width: int = knob(32, "Channels of the first convolution; the following have twice and four times as many.", ge=1)
    dropout: float = knob(0.1, "Dropout before the last layer.", ge=0, lt=1)


@dataclass(eq=False, repr=False)
class MLPConf(ModelConf):
    """A multilayer perceptron on flattened images."""

    _target_: str = "app.models.mlp.MLP"
    hidden: list[int] = knob([128], "Sizes of the hidden layers.", ge=1)
    image_size: int | None = knob(None, "Side of the images. null: the data set's.", ge=1)
    dropout: float = knob(0.0, "Dropout after each hidden layer.", ge=0, lt=1)


@dataclass(eq=False, repr=False)
class ResNetCifarConf(ModelConf):
    """torchvision's ResNet with a 3x3 stem and no first pooling, for 32x32 images."""

    _target_: str = "app.models.resnet_cifar.resnet_cifar"
    depth: int = knob(18, "Layers.", choices=(18, 34, 50))


@dataclass(eq=False, repr=False)
class TorchvisionModelConf(ModelConf):
    """Any classification model of torchvision by its name."""

    _target_: str = "app.models.torchvision_model.torchvision_model"
    name: str = knob(MISSING, "resnet18, convnext_tiny, vit_b_16, …")
    args: Any = knob(None, "A mapping with more arguments of that model. null: none.")


MODELS: dict[str, type] = {
    "lenet5": LeNet5Conf,
    "small_cnn": SmallCNNConf,
    "mlp": MLPConf,
    "resnet_cifar": ResNetCifarConf,
    "torchvision": TorchvisionModelConf,
    "custom": ModelConf,
}


@dataclass(eq=False, repr=False)
class LossConf:
    """Training loss."""

    _target_: str = MISSING
    kind: str | None = knob(
        None,
        "Version 0.1's way to say `loss=…`, understood with a warning.",
        choices=("cross_entropy", "bce"),
    )


@dataclass(eq=False, repr=False)
class CrossEntropyConf(LossConf):
    """Cross-entropy: one class an image, or soft targets."""

    _target_: str = "app.metrics.losses.cross_entropy"
    label_smoothing: float = knob(0.0, "Part of the target mass spread over all classes.", ge=0, lt=1)


@dataclass(eq=False, repr=False)
class BCEConf(CrossEntropyConf):
    """Binary cross-entropy: an independent yes or no for each class; multi-label, or one class an image."""

    _target_: str = "app.metrics.losses.bce"


LOSSES: dict[str, type] = {"cross_entropy": CrossEntropyConf, "bce": BCEConf, "custom": LossConf}


@dataclass(eq=False, repr=False)
class MetricsConf:
    """What an evaluation reports, besides its mean loss."""

    topk: list[int] = knob(
        [1],
        "Top-k accuracies, as fractions: `val/top1`, …; the first is the run's metric unless another is monitored.",
        ge=1,
    )
    average: list[str] = knob(
        ["macro"],
        "Averages of precision, recall and F1: `val/precision`, `val/recall`, `val/f1` for the first, `_micro`, … for the others.",
        choices=("macro", "micro", "weighted"),
    )
    per_class: bool = knob(True, "Write precision, recall, F1 and support of each class.")
    confusion: bool = knob(True, "Write the confusion matrix.")
    monitor: str = knob(
        "auto",
        "The run's metric: returned to a sweeper, reported at the end, `auto` elsewhere; auto: what early_stop watches, else the first of topk.",
    )
    rule: str | None = knob(
        None, "Which direction of `monitor` is better. null: known from the metric itself.", choices=("greater", "less")
    )
    threshold: float = knob(0.5, "Multi-label: probability from which a class counts as predicted.", gt=0, lt=1)
    extra: Any = knob(
        None,
        "More torchmetrics by name: {kappa: {_target_: torchmetrics.CohenKappa, task: multiclass}}; num_classes is filled in.",
    )
