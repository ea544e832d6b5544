"""The prompts that come with the package."""
