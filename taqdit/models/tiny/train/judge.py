"""The attribute classifier that judges pictures, torch twin of `taqdit.models.tiny.classifier`."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from taqdit.models.tiny.scenes import ATTRIBUTES


class Classifier(nn.Module):
    """Pictures `(N, 3, 64, 64)` in [-1, 1] to the logits of all attributes, `(N, 52)`."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        channels, width = config["classifier"]["channels"], config["classifier"]["features"]
        side = config["image_size"] // 2 ** len(channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1)
            for a, b in zip([3, *channels], channels, strict=False)
        )
        self.fc = nn.Linear(side * side * channels[-1], width)
        self.head = nn.Linear(width, sum(ATTRIBUTES.values()))

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer `(N, 128)`, flattened from NHWC so that MLX gives the same."""
        for conv in self.convs:
            x = F.relu(conv(x))
        return F.relu(self.fc(x.permute(0, 2, 3, 1).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
