"""The ways in which llm_unlearn stops on purpose, each with a message written for a person."""


class InputError(ValueError):
    """The user's input is wrong; the message names it and the remedy. The command line exits with 2."""


class DiskFullError(InputError):
    """The disk filled up; finished work is kept, and the same command resumes."""


class NonFiniteLossError(InputError):
    """A training or unlearning loss became NaN or infinite; the last good checkpoint is kept."""


class Preempted(Exception):
    """Training was stopped by SIGTERM after a checkpoint was written; the same command resumes it."""


class LaunchError(Exception):
    """One of several launched processes failed or was killed; the same command resumes."""
