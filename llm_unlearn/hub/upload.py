"""The only uploader: a package of files goes up in one commit or not at all, and comes back.

run_package.py and trainer_package.py say what goes up of a run and of a trainer; package.py refuses what may never.
"""

import glob
import hashlib
import logging
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from llm_unlearn.errors import InputError
from llm_unlearn.hub.client_errors import explained
from llm_unlearn.hub.package import CARD, TAG, WEIGHTS, Package, is_ours

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


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
    """Put a package into a repository, in one commit, so that the repository is whole at every moment.

    Files of an earlier upload that the package does not have are removed. What others put there stays. `upload_folder`
    of the client would need a folder, and so a copy of weights that lie elsewhere.

    Args:
        package: the files.
        repo: owner/name; made where there is none.
        private: of a repository that is made. A public one that is there is then refused.
        revision: a branch, made where there is none; None is main.
        message: of the commit.
        api: the hub's client; by default one with the token that is logged in.

    Returns:
        the address of the commit.

    Raises:
        InputError: the token, the repository or the network fails, or somebody else's model is there. Nothing was
            committed.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = api or HfApi()
    check_repository(repo)
    with explained(api, repo, revision, pushing=True):
        _make(api, repo, private)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        parent = api.model_info(repo, revision=revision).sha
        present = [name for name in api.list_repo_files(repo, revision=parent) if is_ours(name)]
        if any(name != CARD for name in present) and not _was_ours(api, repo, parent, present):
            raise InputError(
                f"{repo}: holds a model that was not uploaded by this tool, which would be replaced; give "
                "another repository or another branch (--revision)"
            )
        stale = sorted(set(present) - set(package.files))
        if stale:
            logger.info("removed from the repository, left by an earlier upload: %s", ", ".join(stale))
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in package.files.items()
        ]
        operations += [CommitOperationDelete(name, is_folder=False) for name in stale]
        # the parent: of two pushes at a time one is told to try again
        done = api.create_commit(repo, operations, commit_message=message, revision=revision, parent_commit=parent)
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


def _was_ours(api: "HfApi", repo: str, sha: str | None, files: list[str]) -> bool:
    """Whether the card of a repository is one that this package wrote."""
    return CARD in files and TAG in Path(api.hf_hub_download(repo, CARD, revision=sha)).read_text(encoding="utf-8")


def pull(repo: str, out: str | Path | None = None, revision: str | None = None, api: "HfApi | None" = None) -> Path:
    """Bring a model, its recipe and its audit to a folder; never a pickle.

    Args:
        repo: owner/name.
        out: a new folder; by default the repository's name, in the working directory.
        revision: a branch, a tag or a commit.
        api: the hub's client; by default one with the token that is logged in.

    Raises:
        InputError: `out` exists, or the token, the repository, the revision or the network fails.
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
        # escaped, since a name may be a pattern that others match
        api.snapshot_download(repo, revision=sha, local_dir=partial, allow_patterns=[*map(glob.escape, names)])
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the client's notes on where it was
    partial.rename(folder)
    return folder


def check_repository(repo: str) -> None:
    """Raise InputError where a repository's name is not owner/name."""
    if not REPOSITORY.fullmatch(repo):
        raise InputError(f"--repo {repo}: must be OWNER/NAME, of letters, digits, '-', '_' and '.'")
