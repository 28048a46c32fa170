"""What an error of the hub's client means, and what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@contextmanager
def explained(api: "HfApi", repo: str, revision: str | None = None, pushing: bool = False) -> Iterator[None]:
    """Turn the hub client's errors into what is wrong and what to do. No message holds a token.

    Args:
        api: the client.
        repo: owner/name.
        revision: the branch, tag or commit that was asked for.
        pushing: whether the message must say what is in the repository now.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RevisionNotFoundError,
    )

    def broken(error: BaseException) -> InputError:
        return InputError(
            f"{repo}: the connection to {api.endpoint} failed ({type(error).__name__})."
            f"{' The upload is there whole or not at all.' * pushing} Run the same command again once "
            "it can be reached (HF_ENDPOINT names another hub)"
        )

    try:
        yield
    except LocalTokenNotFoundError:
        raise InputError("there is no access token: log in with `hf auth login`, or set HF_TOKEN") from None
    except (OfflineModeIsEnabled, HFValidationError) as error:
        raise InputError(f"{repo}: {error}") from None
    except RevisionNotFoundError:
        raise InputError(f"{repo}: has no revision '{revision}'; leave it out, or see its branches and tags") from None
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise broken(error) from None
        raise InputError(f"{repo}: a file that a model must have is not there: {str(error).splitlines()[-1]}") from None
    except HfHubHTTPError as error:
        raise InputError(f"{repo}: {_answer(error)}.{' Nothing was committed.' * pushing}") from None
    except (ConnectionError, TimeoutError) as error:
        raise broken(error) from None
    except Exception as error:
        cause = error.__cause__ or error  # a large file's upload is said to have failed, for a reason
        if type(cause).__module__.startswith(("httpx", "httpcore")):  # whichever the client was built on
            raise broken(cause) from None
        if pushing and type(error) in (RuntimeError, ValueError):  # large files' uploader; a card that the hub refuses
            raise InputError(f"{repo}: the upload failed: {error}. Nothing was committed.") from None
        raise


def _answer(error: Exception) -> str:
    """What an answer of the hub means, with its own words where it has some."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = getattr(error, "server_message", None)
    texts = {
        401: "the hub did not accept the access token, or wants one: log in with `hf auth login`, or set HF_TOKEN",
        403: "the access token may not do this: it needs the right to write to this repository",
        404: "there is no such repository, or the access token may not see it",
        409: "the repository was changed meanwhile; run the same command again",
        412: "the repository was changed meanwhile; run the same command again",
        413: "the hub says that a file is too large",
        429: "the hub asks for a pause; run the same command again later",
    }
    text = texts.get(status or 0, f"the hub failed ({status}); run the same command again")
    return f"{text} (the hub says: {said})" if said and status not in (401, 404) else text
