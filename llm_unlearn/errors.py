"""The ways in which llm_unlearn stops on purpose, each with a message written for a person, and without a secret."""

import re

# What looks like a key or a token: its kind → how it is written
SECRETS = {
    "access token of Hugging Face": r"hf_[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{16,}",
    "key of AWS": r"(?:AKIA|ASIA)[A-Z0-9]{16}",
    "key of Google Cloud": r"AIza[\w-]{35}|ya29\.[\w-]{20,}",
    "key of Azure": r"(?:Account|SharedAccess)Key=[A-Za-z0-9+/]{40,}={0,2}|[\w~.-]{3}8Q~[\w~.-]{31,}",
    "token of GitHub": r"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{22,}",
    "token of GitLab": r"gl(?:pat|dt|rt|ptt)-[\w-]{20,}",
    # at the start of a word, which in JSON may follow the n of \n
    "key of a model provider": r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))sk[-_](?:(?:proj|svcacct|live|ant-\w+)[-_])?\w{20,}",
    "token of Slack, npm or PyPI": r"xox[abprs]-[\w-]{10,}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}",
    "private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----",
    "password in an address": r"(?<=://)[^/\s@:\"']*:[^/\s@\"']+(?=@)",
}
_IN_ADDRESS = (  # a token in the place of the user; a parameter
    r"(?<=://)[^/\s@]+(?=@)",
    r"(?<=[?&])((?i:(?:[\w-]*(?:token|key|secret|password|signature|credential)|sig|auth))=)[^&\s'\"]+",
)
_SECRET = re.compile("|".join([*_IN_ADDRESS, *SECRETS.values()]))


def redacted(text: str) -> str:
    """The text without what looks like a secret: user and password, or the token, of an address; keys of any kind."""
    return _SECRET.sub(lambda match: f"{match[1] or ''}…", text)


class InputError(ValueError):
    """The user's input is wrong; the message names it and the remedy. The command line exits with 2."""

    def __init__(self, message: object = "") -> None:
        super().__init__(redacted(str(message)))


class DiskFullError(InputError):
    """The disk filled up; finished work is kept, and the same command resumes."""


class NonFiniteLossError(InputError):
    """A training or unlearning loss became NaN or infinite; the last good checkpoint is kept."""


class Preempted(Exception):
    """Training was stopped by SIGTERM after a checkpoint was written; the same command resumes it."""


class NothingPassedError(Exception):
    """No candidate of a search passes; the message says what was tried, and what retraining would take."""


class LaunchError(Exception):
    """One of several launched processes failed or was killed; the same command resumes."""
