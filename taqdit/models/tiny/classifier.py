"""The attribute classifier on MLX: reads off a picture what it shows. It judges the pictures that
the embedded model makes, and its last hidden layer gives features for Frechet distances."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taqdit.backend import mx, nn
from taqdit.models.tiny import WEIGHTS, config
from taqdit.models.tiny.scenes import ATTRIBUTES
from taqdit.models.tiny.score import Attributes, accuracy, read

__all__ = ["accuracy", "attributes", "features", "load"]
_BATCH = 256


class Classifier(nn.Module):  # type: ignore[misc]
    """Pictures `(N, 64, 64, 3)` in [-1, 1] to features `(N, 128)` and logits `(N, 52)`."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        channels, width = sizes["classifier"]["channels"], sizes["classifier"]["features"]
        side = sizes["image_size"] // 2 ** len(channels)
        self.convs = [
            nn.Conv2d(a, b, 3, stride=2, padding=1)
            for a, b in zip([3, *channels], channels, strict=False)
        ]
        self.fc = nn.Linear(side * side * channels[-1], width)
        self.head = nn.Linear(width, sum(ATTRIBUTES.values()))

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        for conv in self.convs:
            x = nn.relu(conv(x))
        hidden = nn.relu(self.fc(x.reshape(len(x), -1)))
        return hidden, self.head(hidden)


@cache
def load(folder: Path = WEIGHTS) -> Classifier:
    """The trained classifier in float32."""
    net = Classifier(config(folder))
    weights: Any = mx.load(str(folder / "classifier.safetensors"))
    net.load_weights([(name, w.astype(mx.float32)) for name, w in weights.items()], strict=True)
    mx.eval(net.parameters())
    return net


def attributes(images: NDArray[np.uint8], folder: Path = WEIGHTS) -> Attributes:
    """The value of every attribute in `scenes.ATTRIBUTES`, `(N,)` each, of pictures
    `(N, 64, 64, 3)` uint8; only those that a picture's number of objects has mean anything."""
    return read(_judged(images, folder)[1])


def features(images: NDArray[np.uint8], folder: Path = WEIGHTS) -> NDArray[np.float32]:
    """The last hidden layer `(N, 128)` of pictures `(N, 64, 64, 3)` uint8."""
    return _judged(images, folder)[0]


def _judged(
    images: NDArray[np.uint8], folder: Path
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    net, parts = load(folder), []
    for start in range(0, len(images), _BATCH):
        pixels = mx.array(images[start : start + _BATCH]).astype(mx.float32)
        parts.append([np.array(part) for part in net(pixels / 127.5 - 1)])
    hidden, logits = (np.concatenate(column) for column in zip(*parts, strict=True))
    return hidden, logits
