"""Statistics of activations that a test makes: what an analysis reads, without a model."""

from types import SimpleNamespace

import numpy as np
from statistics_oracle import statistics_of

from taqdit.activations import Layout, Site
from taqdit.schedule import flow

TRAJECTORIES, FOLDS, TOKENS = 8, 4, 16


def made(values, *, num_steps, sites=1, folds=FOLDS, trajectories=TRAJECTORIES, width=8):
    """`values(rng, site, step, trajectory)` gives (TOKENS, width) of one trajectory."""
    layout = Layout(tuple(Site(f"mm_{i:02d}_img.fc1_in", width) for i in range(sites)), folds)
    row_folds = [trajectory % folds for trajectory in range(trajectories)]
    steps = []
    for step in range(num_steps):
        arrays = []
        for site in range(sites):
            rows = [
                values(np.random.default_rng([site, step, trajectory]), site, step, trajectory)
                for trajectory in range(trajectories)
            ]
            arrays.append(np.stack(rows).astype(np.float32))
        steps.append(statistics_of(layout, arrays, row_folds))
    sigmas = flow(num_steps=num_steps).sigmas()[:-1].astype(np.float64)
    return SimpleNamespace(
        layout=layout,
        num_steps=num_steps,
        sigmas=sigmas,
        timesteps=1000 * sigmas,
        extent=trajectories,
        step=steps.__getitem__,
    )


def gaussian(scale=lambda step: 1.0, width=8):
    """Normal values whose spread is a function of the step."""
    return lambda rng, site, step, trajectory: scale(step) * rng.normal(size=(TOKENS, width))
