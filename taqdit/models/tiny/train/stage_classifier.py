"""Stage `classifier`: reads attributes off real pictures; a measure, not a part of the model."""

import torch
from torch import Tensor

from taqdit.models.tiny.scenes import Scenes, present, take
from taqdit.models.tiny.train.judge import Classifier
from taqdit.models.tiny.train.loop import (
    Dice,
    Trapezoid,
    descend,
    dice_of,
    drawn,
    publish,
    restore,
)
from taqdit.models.tiny.train.losses import attributes
from taqdit.models.tiny.train.run import Run, log

STEPS, BATCH, POOL, RATE = 3000, 96, 8192, 2e-3
CHECK_SEED = 98


def train_classifier(run: Run) -> None:
    """Trained on all splits, so that it judges held-out combinations as well as trained ones;
    half of the noise levels of a generated picture's faults are covered by added noise."""
    dice, steps = dice_of(run, "classifier"), run.steps(STEPS)
    net = dice.initialised(Classifier, run.config).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=1e-3, fused=True)
    schedule = Trapezoid(optimiser, steps, warmup=100, descent=0.5)
    scenes, pictures = drawn(run.count(POOL, 256), dice.numpy, "all")
    for step in range(steps):
        schedule.set(step)
        if step % 10 == 9:
            _redraw(scenes, pictures, dice)
        rows = dice.numpy.integers(len(pictures), size=BATCH)
        strength = 0.05 * dice.uniform(BATCH, 1, 1, 1)
        noisy = pictures[torch.from_numpy(rows)] + strength * dice.normal(BATCH, 3, 64, 64)
        loss = attributes(net(noisy), take(scenes, rows))
        descend(loss, optimiser, net.parameters())
        if step % 200 == 199:
            log.info("classifier %d/%d loss %.4f", step + 1, steps, loss.item())
    log.info("classifier accuracy %s", checked(net, run))
    publish(run.work / "classifier.safetensors", net)


def load_classifier(run: Run) -> Classifier:
    """The trained classifier, frozen."""
    return restore(run.work / "classifier.safetensors", Classifier(run.config), "classifier")


def _redraw(scenes: Scenes, pictures: Tensor, dice: Dice) -> None:
    """Replaces a hundred of the pool's pictures, in place."""
    rows = dice.numpy.choice(len(pictures), size=min(100, len(pictures)), replace=False)
    fresh, drawing = drawn(len(rows), dice.numpy, "all")
    pictures[torch.from_numpy(rows)] = drawing
    for name, column in fresh.items():
        scenes[name][rows] = column


@torch.no_grad()
def checked(net: Classifier, run: Run) -> dict[str, float]:
    """Accuracy per attribute in per cent on 2048 fresh pictures of all splits."""
    scenes, pictures = drawn(run.count(2048, 64), Dice(CHECK_SEED).numpy, "all", 0.4)
    parts = dict(zip(scenes, _split(net(pictures)), strict=True))
    return {
        name: round(100 * float((parts[name].argmax(1).numpy() == scenes[name])[mask].mean()), 2)
        for name, mask in present(scenes).items()
        if mask.any()
    }


def _split(logits: Tensor) -> tuple[Tensor, ...]:
    from taqdit.models.tiny.scenes import ATTRIBUTES

    parts: tuple[Tensor, ...] = logits.split(list(ATTRIBUTES.values()), 1)
    return parts
