"""Several runs side by side: one table, the figures that only a comparison has, a verdict."""

from taqdit.report.comparison.side_by_side import Comparison, RunResult, compare, read, track

__all__ = ["Comparison", "RunResult", "compare", "read", "track"]
