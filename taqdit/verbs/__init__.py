"""What the command's verbs do. A verb takes arguments, prints, and returns an exit code."""
