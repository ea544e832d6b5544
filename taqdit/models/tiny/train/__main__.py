"""`python -m taqdit.models.tiny.train`: makes the embedded model, from the first picture to the
measured weights.

    uv run --extra train python -m taqdit.models.tiny.train              # everything
    uv run --extra train python -m taqdit.models.tiny.train vae flow     # these stages
    uv run --extra train python -m taqdit.models.tiny.train --steps-scale 0.003   # a smoke run
    uv run python -m taqdit.models.tiny.train outliers hardness --start-from PLAIN   # no torch
"""

import argparse
import importlib
import importlib.util
import logging
import sys
from pathlib import Path

from taqdit.errors import ConfigError, ModelError, TaqditError
from taqdit.models.tiny.train.run import Run, log

STAGES = {
    "vae": ("stage_vae", "train_vae", "vae.safetensors"),
    "flow": ("stage_flow", "train_flow", "flow.safetensors"),
    "decoder": ("stage_vae", "train_decoder", "decoder.safetensors"),
    "classifier": ("stage_classifier", "train_classifier", "classifier.safetensors"),
    "export": ("export", "export", "plain/config.json"),
    "outliers": ("outliers", "outliers", "weights/config.json"),
    "verify": ("verify", "verify", "verify.json"),
    "measure": ("measure", "measure", "measure.json"),
    "hardness": ("hardness", "hardness", "hardness.json"),
    "likeness": ("likeness", "likeness", "likeness.json"),
    "sheet": ("sheet", "sheet", "sheet.png"),
}
"""In order: the module, its function, and the file whose presence says that the stage is done."""
WITHOUT_TORCH = {"outliers", "hardness", "likeness"}


def main(arguments: list[str] | None = None) -> int:
    """Runs the stages asked for; returns the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    try:
        _train(options)
    except TaqditError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m taqdit.models.tiny.train")
    parser.add_argument("stages", nargs="*", help=f"some of: {' '.join(STAGES)}; default all")
    parser.add_argument("--work", type=Path, default=Path("outputs/tiny_training"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="part of what fixes the result")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="share of all steps")
    parser.add_argument(
        "--bf16", action="store_true", help="the denoiser's products in bfloat16, where it is fast"
    )
    parser.add_argument(
        "--start-from",
        type=Path,
        help="folder of exported weights: keep their autoencoder, train their denoiser further; "
        "for `outliers` those that get them",
    )
    parser.add_argument("--force", action="store_true", help="run finished stages again")
    return parser


def _train(options: argparse.Namespace) -> None:
    unknown = [name for name in options.stages if name not in STAGES]
    if unknown:
        raise ConfigError(f"no stage {unknown[0]!r}; the stages are {', '.join(STAGES)}")
    if not options.steps_scale > 0:
        raise ConfigError(f"--steps-scale {options.steps_scale:g} must be above 0, e.g. 0.003")
    run = Run(options.work, options.seed, options.steps_scale, options.start_from)
    stages = options.stages or list(STAGES)
    if not set(stages) <= WITHOUT_TORCH:
        _prepare_torch(options, run)
    for name in stages:
        module, function, product = STAGES[name]
        if (run.work / product).exists() and not options.force:
            log.info("%s: done before (%s); --force runs it again", name, run.work / product)
            continue
        log.info("%s: begins", name)
        getattr(importlib.import_module(f"taqdit.models.tiny.train.{module}"), function)(run)


def _prepare_torch(options: argparse.Namespace, run: Run) -> None:
    """Torch set so that the same call gives the same weights; the autoencoder adopted."""
    if importlib.util.find_spec("torch") is None:
        raise ModelError(
            "training needs torch, which is not installed: `pip install torch`, "
            "or `uv run --extra train python -m taqdit.models.tiny.train`"
        )
    import torch

    from taqdit.models.tiny.train.linear import Linear
    from taqdit.models.tiny.train.stage_vae import adopt_vae

    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, changes nothing
    Linear.half_products = options.bf16
    if run.start_from is not None and not (run.work / STAGES["vae"][2]).exists():
        adopt_vae(run, run.start_from)


if __name__ == "__main__":
    sys.exit(main())
