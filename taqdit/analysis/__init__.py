"""What is asked of the statistics, without a model. Importing this is light."""

from taqdit.analysis.options import full, none

__all__ = ["full", "none"]
