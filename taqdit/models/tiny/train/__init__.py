"""The training of the embedded model; needs torch (`uv run --extra train`)."""
