"""Trajectories: conditioning, sampling, and what is stored of them."""
