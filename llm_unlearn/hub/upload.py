"""The only uploader: a package of files goes up in one commit or not at all, and comes back.

What is in a package says whoever makes it (run_package.py of a run, trainer_package.py of a trainer). What may never be
in one is refused here: files of any kind but a model's own and its audit, and anything that looks like an access token.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

CARD = "README.md"
TAG = "llm-unlearn"  # on every card that this package writes
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
MODEL = ("config.json", "generation_config.json", "adapter_config.json", "model.safetensors.index.json")
WEIGHTS = re.compile(r"(adapter_model|model(-\d+-of-\d+)?)\.safetensors")
PLACES = ("_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file")
AUDIT = re.compile(r"recipe\.yaml|evaluation/[^/]+\.json|plots/[^/]+\.png")
TOKEN = re.compile(rb"hf_[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{16,}")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)  # of a few models without an owner too


def is_ours(path: str) -> bool:
    """Whether a file is of a kind that this uploader writes, which is all that it replaces or removes."""
    return path == CARD or path in TOKENIZER or path in MODEL or bool(WEIGHTS.fullmatch(path) or AUDIT.fullmatch(path))


@dataclass(frozen=True)
class Package:
    """What goes up: path in the repository → a file, or the content itself."""

    files: dict[str, Path | bytes]

    def __post_init__(self) -> None:
        for name, content in self.files.items():
            if not is_ours(name):
                raise InputError(f"{name}: is no file of a model, its card or its audit; it is not uploaded")
            if isinstance(content, Path) and not content.is_file():
                raise InputError(f"{content}: no such file")
            if not WEIGHTS.fullmatch(name) and TOKEN.search(self.content(name)):
                source = content if isinstance(content, Path) else "what it is made from"
                raise InputError(
                    f"{name}: holds what looks like an access token (hf_…); take it out of {source}, and "
                    "revoke it if it was ever shared"
                )

    def content(self, name: str) -> bytes:
        content = self.files[name]
        return content if isinstance(content, bytes) else content.read_bytes()

    def size(self, name: str) -> int:
        """Bytes of a file."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def model_files(folder: Path) -> dict[str, Path | bytes]:
    """The files of a saved model or adapter and of its tokenizer; nothing else that lies there, no folder in it.

    Raises:
        InputError: it holds no weights in safetensors.
    """
    found = {
        path.name: without_places(path) if path.name == "config.json" else path
        for path in sorted(folder.iterdir())
        if path.name in MODEL or WEIGHTS.fullmatch(path.name)
    }
    if not any(WEIGHTS.fullmatch(name) for name in found):
        raise InputError(f"{folder}: it holds no model in safetensors; a pickle is not uploaded")
    return found | tokenizer_files(folder)


def tokenizer_files(folder: Path) -> dict[str, Path | bytes]:
    """The files of a saved tokenizer, or none."""
    return {
        path.name: without_places(path) if path.name == "tokenizer_config.json" else path
        for path in sorted(folder.iterdir())
        if path.name in TOKENIZER
    }


def without_places(path: Path) -> bytes:
    """A config of model or tokenizer without the fields in which libraries note where it was loaded from."""
    config = json.loads(path.read_text(encoding="utf-8"))
    return _as_json({key: value for key, value in config.items() if key not in PLACES})


def on_base(adapter_config: Path, base: str | None = None, revision: str | None = None) -> bytes:
    """An adapter_config.json that names its base by a hub id and no folder of this machine.

    Args:
        base: by default what the file names. revision: of the base.
    Raises:
        InputError: what the file names is a folder, which nobody else has.
    """
    config = json.loads(adapter_config.read_text(encoding="utf-8"))
    named = base or config.get("base_model_name_or_path")
    if base is None and not is_id(named):
        raise InputError(
            f"the adapter sits on {named or 'a base without a name'}, which nobody else has: upload that "
            "too, and name it here (base=, --base OWNER/NAME)"
        )
    return _as_json(config | {"base_model_name_or_path": named, "revision": revision})


def is_id(name: str | None) -> bool:
    """Whether a name may be a hub's id and is no folder here."""
    return bool(name and ID.fullmatch(name)) and not Path(name).exists()


def _as_json(config: dict) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def describe(package: Package, repo: str, private: bool, revision: str | None = None) -> str:
    """What would be uploaded and how large it is, for people: one line per file, then the sum."""

    def human(count: float) -> str:
        for unit in ("B", "KiB", "MiB"):
            if count < 1024:
                return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
            count /= 1024
        return f"{count:,.2f} GiB"

    sizes = {name: package.size(name) for name in package.files}
    width = max(map(len, sizes))
    lines = [f"  {name:<{width}}  {human(size):>10}" for name, size in sizes.items()]
    where = f"{repo}, branch {revision or 'main'}, {'private' if private else 'PUBLIC where it is made anew'}"
    return "\n".join([f"to {where}:", *lines, f"  {len(sizes)} files, {human(sum(sizes.values()))}"])


def push(
    package: Package,
    repo: str,
    *,
    private: bool = True,
    revision: str | None = None,
    message: str = "Upload a model",
    api: "HfApi | None" = None,
) -> str:
    """Put a package into a repository, made where there is none: one commit, so that it is whole at every moment.

    Files of an earlier upload that the package has not are removed; what others put there stays.

    Args:
        repo: owner/name. private: of a repository that is made; one that is there and public is refused. revision: a
            branch, made where it is not there; None: main.
    Returns:
        the address of the commit.
    Raises:
        InputError: the token, the repository or the network is not what it must be, or somebody else's model is there;
            nothing was committed.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = api or HfApi()
    check_repository(repo)
    with explained(api, repo, revision, pushing=True):
        _make(api, repo, private)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        before = api.model_info(repo, revision=revision)
        there = [name for name in api.list_repo_files(repo, revision=before.sha) if is_ours(name)]
        if any(name != CARD for name in there) and not _was_ours(api, repo, before.sha, there):
            raise InputError(
                f"{repo}: holds a model that was not uploaded by this tool, which would be replaced; give "
                "another repository or another branch (--revision)"
            )
        stale = sorted(name for name in there if name not in package.files)
        if stale:
            logger.info("removed from the repository, left by an earlier upload: %s", ", ".join(stale))
        operations = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in package.files.items()
        ]
        operations += [CommitOperationDelete(name, is_folder=False) for name in stale]
        # the parent: of two pushes at a time one is told to try again
        done = api.create_commit(repo, operations, commit_message=message, revision=revision, parent_commit=before.sha)
    return done.commit_url


def _make(api: "HfApi", repo: str, private: bool) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        there = api.model_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private, exist_ok=True)
        return
    if private and not there.private:
        raise InputError(
            f"{repo}: is there and public, and an upload is private unless you say otherwise: give "
            "--no-private (private=False), or another repository"
        )


def _was_ours(api: "HfApi", repo: str, sha: str, there: list[str]) -> bool:
    """Whether the card of a repository is one that this package wrote."""
    return CARD in there and TAG in Path(api.hf_hub_download(repo, CARD, revision=sha)).read_text(encoding="utf-8")


def pull(repo: str, out: str | Path | None = None, revision: str | None = None, api: "HfApi | None" = None) -> Path:
    """Bring a model, its recipe and its audit to a folder; never a pickle.

    Args:
        out: a new folder; by default the repository's own name, in the working directory. revision: a branch, a tag or
            a commit.
    Raises:
        InputError: `out` is there, or the token, the repository, the revision or the network is not what it must be.
    """
    from huggingface_hub import HfApi

    api, folder = api or HfApi(), Path(out or repo.rpartition("/")[2]).expanduser()
    check_repository(repo)
    if folder.exists():
        raise InputError(f"{folder}: exists already; give another folder (--out), or move it away")
    with explained(api, repo, revision):
        sha = api.model_info(repo, revision=revision).sha  # listed and downloaded as of one moment
        names = [name for name in api.list_repo_files(repo, revision=sha) if is_ours(name)]
        if not any(WEIGHTS.fullmatch(name) for name in names):
            raise InputError(f"{repo}: holds no model in safetensors; a pickle is not loaded")
        # kept when it breaks off: the next try goes on from there
        partial = folder.with_name(f"{folder.name}.{hashlib.sha256(f'{repo}@{sha}'.encode()).hexdigest()[:12]}.partial")
        api.snapshot_download(repo, revision=sha, local_dir=partial, allow_patterns=names)
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the client's notes on where it was
    partial.rename(folder)
    return folder


def check_repository(repo: str) -> None:
    """Raise InputError where a repository's name is not owner/name."""
    if not REPOSITORY.fullmatch(repo):
        raise InputError(f"--repo {repo}: must be OWNER/NAME, of letters, digits, '-', '_' and '.'")


@contextmanager
def explained(api: "HfApi", repo: str, revision: str | None = None, pushing: bool = False) -> Iterator[None]:
    """Turn the hub client's errors into what is wrong and what to do, and when pushing, what is there now. No message
    holds a token."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RevisionNotFoundError,
    )

    def broken(error: Exception) -> InputError:
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
    text = texts.get(status, f"the hub failed ({status}); run the same command again")
    return f"{text} (the hub says: {said})" if said and status not in (401, 404) else text
