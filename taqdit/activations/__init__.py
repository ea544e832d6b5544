"""Streaming statistics of activations: exact where it is possible, bounded where it is not.

Everything is numpy in float64 on the host and merges: any split of a stream of batches gives the
same numbers. What is reduced on a device reaches this package as sums about a shift.
"""

from taqdit.activations.bins import SHIFT
from taqdit.activations.counts import BinCounts
from taqdit.activations.histogram import Histogram
from taqdit.activations.site import Layout, Site
from taqdit.activations.step import BatchSums, ChannelSums, StepStatistics

__all__ = [
    "SHIFT",
    "BatchSums",
    "BinCounts",
    "ChannelSums",
    "Histogram",
    "Layout",
    "Site",
    "StepStatistics",
]
