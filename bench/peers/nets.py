"""PyTorch twins of kiln's built-in networks: the same parameter names and shapes as nn/models/*.json.

Checkpoints, gradient checks and epoch timings share them:

    net = build("resnet18", classes=10)
    net.load_state_dict(safetensors.torch.load_file("runs/x/weights.safetensors"))

`build("resnet18_smooth")` is the twin of the network without kinks: GELU for ReLU and ReLU6, average for max
pooling, the same parameters. A `Kit` makes the layers in which the two differ.
"""

import torch
from torch import nn

SMOOTH = "_smooth"


class Kit:
    """Makes the layers that have kinks; they are called in the order of kiln's list of layers."""

    relu, relu6, max_pool = nn.ReLU, nn.ReLU6, nn.MaxPool2d


class SmoothKit:
    relu, relu6, max_pool = nn.GELU, nn.GELU, nn.AvgPool2d


def conv3x3(c, k, stride=1):
    return nn.Conv2d(c, k, 3, stride=stride, padding=1, bias=False)


def conv1x1(c, k, stride=1):
    return nn.Conv2d(c, k, 1, stride=stride, bias=False)


def depthwise3x3(c, stride):
    return nn.Conv2d(c, c, 3, stride=stride, padding=1, groups=c, bias=False)


def global_average(x):
    return x.mean((2, 3))


class SmallCnn(nn.Module):
    """Three times [conv-BN-ReLU, conv-BN-ReLU, max-pool 2x2] with 32, 64, 128 channels, then one linear layer."""

    def __init__(self, classes, kit):
        super().__init__()
        layers, c = [], 3
        for k in (32, 64, 128):
            layers += [conv3x3(c, k), nn.BatchNorm2d(k), kit.relu(), conv3x3(k, k), nn.BatchNorm2d(k), kit.relu(),
                       kit.max_pool(2)]
            c = k
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(128 * 4 * 4, classes)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class BasicBlock(nn.Module):
    def __init__(self, c, k, stride, kit):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = conv3x3(c, k, stride), nn.BatchNorm2d(k), kit.relu()
        self.conv2, self.bn2, self.relu2 = conv3x3(k, k), nn.BatchNorm2d(k), kit.relu()
        self.shortcut = nn.Sequential()
        if stride != 1 or c != k:
            self.shortcut = nn.Sequential(conv1x1(c, k, stride), nn.BatchNorm2d(k))

    def forward(self, x):
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """The usual CIFAR variant: 3x3 stem, four stages of two basic blocks, 1x1 conv + BN shortcuts."""

    def __init__(self, classes, kit):
        super().__init__()
        self.conv1, self.bn1, self.relu = conv3x3(3, 64), nn.BatchNorm2d(64), kit.relu()
        c = 64
        for i, (k, stride) in enumerate(((64, 1), (128, 2), (256, 2), (512, 2)), start=1):
            setattr(self, f"layer{i}", nn.Sequential(BasicBlock(c, k, stride, kit), BasicBlock(k, k, 1, kit)))
            c = k
        self.linear = nn.Linear(512, classes)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.linear(global_average(x))


class Separable(nn.Module):
    """Depthwise 3x3, then pointwise 1x1, each with BN and ReLU."""

    def __init__(self, c, k, stride, kit):
        super().__init__()
        self.dw, self.bn1, self.relu1 = depthwise3x3(c, stride), nn.BatchNorm2d(c), kit.relu()
        self.pw, self.bn2, self.relu2 = conv1x1(c, k), nn.BatchNorm2d(k), kit.relu()

    def forward(self, x):
        return self.relu2(self.bn2(self.pw(self.relu1(self.bn1(self.dw(x))))))


class MobileNetV1(nn.Module):
    """Stem of 32 channels at stride 1, 13 separable convolutions, global average, linear."""

    def __init__(self, classes, kit):
        super().__init__()
        self.conv1, self.bn1, self.relu = conv3x3(3, 32), nn.BatchNorm2d(32), kit.relu()
        widths = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
        blocks, c = [], 32
        for k, stride in widths:
            blocks.append(Separable(c, k, stride, kit))
            c = k
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(c, classes)

    def forward(self, x):
        return self.linear(global_average(self.blocks(self.relu(self.bn1(self.conv1(x))))))


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, 1x1 projection without activation; the input is added where shapes are equal."""

    def __init__(self, c, k, stride, expansion, kit):
        super().__init__()
        wide = c * expansion
        self.expand, self.bn1, self.relu1 = conv1x1(c, wide), nn.BatchNorm2d(wide), kit.relu6()
        self.dw, self.bn2, self.relu2 = depthwise3x3(wide, stride), nn.BatchNorm2d(wide), kit.relu6()
        self.project, self.bn3 = conv1x1(wide, k), nn.BatchNorm2d(k)
        self.identity = stride == 1 and c == k

    def forward(self, x):
        y = self.relu2(self.bn2(self.dw(self.relu1(self.bn1(self.expand(x))))))
        y = self.bn3(self.project(y))
        return y + x if self.identity else y


class MobileNetV2(nn.Module):
    """Stem of 32 channels at stride 1, 17 inverted residuals, 1x1 conv to 1280, global average, linear."""

    def __init__(self, classes, kit):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = conv3x3(3, 32), nn.BatchNorm2d(32), kit.relu6()
        blocks, c = [], 32
        for expansion, k, count, stride in ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                                            (6, 160, 3, 2), (6, 320, 1, 1)):
            for i in range(count):
                blocks.append(InvertedResidual(c, k, stride if i == 0 else 1, expansion, kit))
                c = k
        self.blocks = nn.Sequential(*blocks)
        self.conv2, self.bn2, self.relu2 = conv1x1(c, 1280), nn.BatchNorm2d(1280), kit.relu6()
        self.linear = nn.Linear(1280, classes)

    def forward(self, x):
        x = self.blocks(self.relu1(self.bn1(self.conv1(x))))
        return self.linear(global_average(self.relu2(self.bn2(self.conv2(x)))))


NETWORKS = {"small_cnn": SmallCnn, "resnet18": ResNet18, "mobilenet_v1": MobileNetV1, "mobilenet_v2": MobileNetV2}


def names():
    """All twins' names: each network and its smooth one."""
    return [name + suffix for name in NETWORKS for suffix in ("", SMOOTH)]


def make(name, classes=10, kit=None):
    """The twin of a built-in network. `kit` replaces the layers that have kinks."""
    plain = name.removesuffix(SMOOTH)
    if plain not in NETWORKS:
        raise SystemExit(f"unknown network '{name}'; known: {', '.join(names())}")
    return NETWORKS[plain](classes, kit or (Kit if plain == name else SmoothKit))


def build(name, classes=10, device="cpu"):
    """The twin of a built-in network, channels-last, in fp32."""
    return make(name, classes).to(device).to(memory_format=torch.channels_last)
