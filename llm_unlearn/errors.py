"""The ways in which llm_unlearn stops or warns on purpose, each with a message written for a person."""

import warnings


class InputError(ValueError):
    """Something that the user gave is wrong; the message names it and the remedy. The command line exits with 2."""


class DiskFullError(InputError):
    """The disk filled up; what was finished before is kept, and the same command resumes."""


class NonFiniteLossError(InputError):
    """A training or unlearning loss became NaN or infinite; the last good checkpoint is kept."""


class Preempted(Exception):
    """Training was stopped by SIGTERM after a checkpoint was written; the same command resumes it."""


class LaunchError(Exception):
    """One of several launched processes failed or was killed; the same command resumes."""


def warn_deprecated(old: str, new: str, removed_in: str) -> None:
    """Warn the caller's caller that it uses a name that will go; see docs/releasing.md.

    Args:
        old: the deprecated name, as the user writes it.
        new: what to write instead.
        removed_in: the version without the old name, one minor version after the one that deprecates it.
    """
    # FutureWarning is shown by default; level 3 is the line that uses the old name.
    warnings.warn(f"{old} is deprecated and goes in version {removed_in}; use {new}.", FutureWarning, stacklevel=3)
