"""What can go wrong, by kind. Each kind has its exit code; each message is one line that says
what was wrong, its value, what is allowed and what to do."""


class TaqditError(Exception):
    """Base of every error a user can meet. `exit_code` is the process's exit status."""

    exit_code = 1

    def __str__(self) -> str:
        return "; ".join(str(problem) for problem in self.args)


class ConfigError(TaqditError):
    """Settings that are unknown, of the wrong type or out of range; one argument per problem."""

    exit_code = 2


class InputError(TaqditError):
    """A file or text that a person supplied cannot be used."""

    exit_code = 3


class StorageError(TaqditError):
    """The disk is full, or a file cannot be written or claimed."""

    exit_code = 4


class CorruptError(TaqditError):
    """A stored file does not hold what was written."""

    exit_code = 5


class NumericError(TaqditError):
    """NaN or Inf appeared in a latent, a prediction or an activation."""

    exit_code = 6


class ModelError(TaqditError):
    """Weights are missing, gated, damaged or of the wrong shape."""

    exit_code = 7


def require(*checks: tuple[bool, str]) -> None:
    """Raise one ConfigError that carries the message of every check that does not hold.

    A message starts with `name=value`, so that the caller can put the config group before it.
    """
    problems = tuple(message for holds, message in checks if not holds)
    if problems:
        raise ConfigError(*problems)
