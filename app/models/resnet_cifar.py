"""ResNets for small images."""

from torch import nn


def resnet_cifar(num_classes: int, in_channels: int, depth: int = 18) -> nn.Module:
    """torchvision's ResNet-18, 34 or 50 with a 3x3 stem of stride 1 and no first pooling, as usual on 32x32 images."""
    from torchvision.models import resnet

    model: nn.Module = getattr(resnet, f"resnet{depth}")(weights=None, num_classes=num_classes)
    stem = nn.Conv2d(in_channels, 64, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    model.conv1, model.maxpool = stem, nn.Identity()
    return model
