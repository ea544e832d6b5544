"""One run: its course, its record, what it writes and shows."""
