"""The calibration set: trajectories x timestep selection, as a view."""
