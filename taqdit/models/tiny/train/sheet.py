"""Stage `sheet`: a contact sheet of the exported weights, to be looked at."""

import textwrap
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from taqdit.models.tiny.captions import captions
from taqdit.models.tiny.scenes import sample_scenes, take
from taqdit.models.tiny.train import files
from taqdit.models.tiny.train.measure import held_out_tuples
from taqdit.models.tiny.train.run import Run
from taqdit.models.tiny.train.sampling import Sampler
from taqdit.store import publish_bytes

COLUMNS, ZOOM, GAP, TEXT = 8, 2, 6, 34
ODD = (
    "a red circle",
    "a large green star",
    "",
    "heart",
    "a photo of a zebra",
    "a red dog on a white background",
    "a small blue ring, top left",
    "three purple crosses",
)


def sheet(run: Run) -> None:
    """Writes sheet.png, CFG 2: four rows of held-out tuples (the last of two objects), one of
    held-out shape-colour pairs, one of odd prompts."""
    folder = run.weights
    sampler = Sampler(files.load_text_to_image(folder), files.load_vae(folder))
    texts = prompts()
    pictures = sampler(texts, cfg_scale=2.0, seed=5)
    buffer = BytesIO()
    arranged(pictures, texts).save(buffer, "PNG", optimize=True)
    publish_bytes(run.work / "sheet.png", buffer.getvalue())


def prompts() -> list[str]:
    """The captions of the sheet, row by row."""
    scenes, texts = held_out_tuples(256, 11)
    one = np.flatnonzero(scenes["rel"] == 0)[: 3 * COLUMNS]
    two = np.flatnonzero(scenes["rel"] > 0)[:COLUMNS]
    rng = np.random.default_rng(13)
    pairs = take(sample_scenes(64, rng, "pair", 0.0), np.arange(COLUMNS))
    return [*(texts[i] for i in [*one, *two]), *captions(pairs, rng), *ODD]


def arranged(pictures: NDArray[np.uint8], texts: Sequence[str]) -> Image.Image:
    """The pictures in rows of eight, twice as large, each above its caption."""
    side = ZOOM * pictures.shape[1]
    rows = -(-len(pictures) // COLUMNS)
    size = (COLUMNS * (side + GAP) + GAP, rows * (side + TEXT + GAP) + GAP)
    paper = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(paper)
    for index, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        x = GAP + index % COLUMNS * (side + GAP)
        y = GAP + index // COLUMNS * (side + TEXT + GAP)
        tile = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
        paper.paste(tile, (x, y))
        for line, words in enumerate(textwrap.wrap(text or "(empty prompt)", 22)[:3]):
            draw.text((x, y + side + 1 + 11 * line), words, fill="black")
    return paper
