"""PyTorch twins of kiln's built-in networks: the same parameter names and shapes as nn/models/*.json.

Checkpoints, gradient checks and epoch timings share them:

    net = build("resnet18", classes=10)
    net.load_state_dict(safetensors.torch.load_file("runs/x/weights.safetensors"))
"""

import torch
from torch import nn
import torch.nn.functional as F


def conv3x3(c, k, stride=1):
    return nn.Conv2d(c, k, 3, stride=stride, padding=1, bias=False)


class SmallCnn(nn.Module):
    """Three times [conv-BN-ReLU, conv-BN-ReLU, max-pool 2x2] with 32, 64, 128 channels, then one linear layer."""

    def __init__(self, classes=10):
        super().__init__()
        layers, c = [], 3
        for k in (32, 64, 128):
            layers += [conv3x3(c, k), nn.BatchNorm2d(k), nn.ReLU(), conv3x3(k, k), nn.BatchNorm2d(k), nn.ReLU(),
                       nn.MaxPool2d(2)]
            c = k
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(128 * 4 * 4, classes)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class BasicBlock(nn.Module):
    def __init__(self, c, k, stride):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(c, k, stride), nn.BatchNorm2d(k)
        self.conv2, self.bn2 = conv3x3(k, k), nn.BatchNorm2d(k)
        self.shortcut = nn.Sequential()
        if stride != 1 or c != k:
            self.shortcut = nn.Sequential(nn.Conv2d(c, k, 1, stride=stride, bias=False), nn.BatchNorm2d(k))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """The usual CIFAR variant: 3x3 stem, four stages of two basic blocks, 1x1 conv + BN shortcuts."""

    def __init__(self, classes=10):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(3, 64), nn.BatchNorm2d(64)
        c = 64
        for i, (k, stride) in enumerate(((64, 1), (128, 2), (256, 2), (512, 2)), start=1):
            setattr(self, f"layer{i}", nn.Sequential(BasicBlock(c, k, stride), BasicBlock(k, k, 1)))
            c = k
        self.linear = nn.Linear(512, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.linear(x.mean((2, 3)))


NETWORKS = {"small_cnn": SmallCnn, "resnet18": ResNet18}


def build(name, classes=10, device="cpu"):
    """The twin of a built-in network, channels-last, in fp32."""
    if name not in NETWORKS:
        raise SystemExit(f"unknown network '{name}'; known: {', '.join(NETWORKS)}")
    return NETWORKS[name](classes).to(device).to(memory_format=torch.channels_last)
