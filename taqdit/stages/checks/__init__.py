"""What the shards and images of the stages must be, beyond being as they were written."""
