"""Whether what goes up of a run is what its card speaks of: the weights, what they were merged from, and their base."""

from pathlib import Path
from typing import TYPE_CHECKING

from llm_unlearn.config.model_sections import ModelSection
from llm_unlearn.errors import InputError
from llm_unlearn.files import file_stamps, read_json
from llm_unlearn.hub.client_errors import explained
from llm_unlearn.hub.package import WEIGHTS, is_id
from llm_unlearn.runs.model_hashes import model_hash, result_hashes
from llm_unlearn.runs.run_folder import MERGE, RunModel
from llm_unlearn.runs.stages import Stages

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CHANGED = {"result": "this file", "poison": "poison.json", "model": "the model", "base": "its base"}  # by result_hashes


def check_measured(source: RunModel, names: list[str]) -> None:
    """Refuse results that were measured on another model, base or poison than lie there now, or nobody knows on what.

    Args:
        source: the model that is published.
        names: the models whose results go up; those beside the published one may be gone.

    Raises:
        InputError: naming the result and the remedy.
    """
    for kind, command in (("evaluation", "evaluate"), ("stress", "stress")):
        for name in names:
            folder = source.path if name == source.name else source.folder / name
            result = source.folder / kind / f"{name}.json"
            if not result.is_file() or not folder.is_dir():
                continue
            before = Stages(source.folder).hashes(f"{kind}/{name}")
            now = result_hashes(result, folder, source.base, source.recipe.model)
            changed = [words for key, words in CHANGED.items() if key in now and now[key] != before.get(key)]
            if changed:
                what = f"{', '.join(changed)} changed since" if before else "nothing says on which weights"
                remedy = f"delete {result.parent}, and run `llm-unlearn {command} {source.root / 'recipe.yaml'}` again"
                raise InputError(f"{result}: {what} it was measured; {remedy}")


def merge_of(source: RunModel) -> tuple[Path, str]:
    """What `merge` wrote of a model.

    Args:
        source: the model, whose evaluation was checked.

    Returns:
        the folder and the type of its weights.

    Raises:
        InputError: there is none, or it is no merge of the adapter and the base that were evaluated.
    """
    folder = source.folder / "merged" / source.name
    seed = f" --seed {source.seed}" * (source.folder != source.root)
    again = f"llm-unlearn merge {source.root} --model {source.name}{seed}"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; make it: {again}")
    remedy = f"delete {folder}, and merge again: {again}"
    record = read_json(folder / MERGE, remedy) if (folder / MERGE).is_file() else {}
    evaluated, hashes = Stages(source.folder).hashes(f"evaluation/{source.name}"), record.get("sha256") or {}
    if not hashes:
        why = "nothing says what it was merged from"
    elif hashes.get("merged") != model_hash(folder):
        why = "it changed since it was merged"
    elif any(hashes.get(key) != evaluated.get(key) for key in ("model", "base")):
        why = "it was merged from another adapter or base than was evaluated"
    elif record["onto"] == "original" and (bits := source.recipe.model.quantization) != "none":
        why = f"it is merged onto the original weights; what was evaluated is the adapter on the base in {bits}"
    else:
        return folder, record["dtype"]
    raise InputError(f"{folder}: {why}; {remedy}")


def check_base(model: RunModel, on_hub: str, revision: str | None, api: "HfApi | None") -> None:
    """Refuse a base that is not on the hub, or whose config or weights are not those that the run started from.

    Args:
        model: of the run.
        on_hub: the hub id of the base.
        revision: of it; None for the default one.
        api: the hub's client; by default one with the token that is logged in.

    Raises:
        InputError: it differs, or no weight file of the two can be compared.
    """
    from llm_unlearn.models.load import read_config

    config, weights = _hosted(on_hub, revision, api)
    base = model.base or "a base that was made for the run"
    if is_id(base):
        if base == on_hub:
            return
        own_config, own_weights = _hosted(base, model.recipe.model.revision, api)
    else:
        own_config = Path(base)
        files = [str(path) for path in sorted(own_config.glob("*")) if WEIGHTS.fullmatch(path.name)]
        own_weights = {Path(file).name: digest for file, digest in file_stamps(files)}
    unknown = f"--base {on_hub}: cannot be compared with what the model was made from"
    if not own_weights:
        raise InputError(f"{unknown}: {base} has no weights in safetensors here, or is gone")
    own, hosted = (read_config(ModelSection(path=str(folder))).to_dict() for folder in (own_config, config))
    differs = f"--base {on_hub}: is not what the model was made from ({base})"
    unlike = sorted(
        key
        for key in own
        if key not in ("_name_or_path", "transformers_version", "dtype") and hosted.get(key) != own[key]
    )
    if unlike:
        raise InputError(f"{differs}: {', '.join(unlike)} differ in its config.json")
    if weights.keys() != own_weights.keys():
        raise InputError(
            f"{unknown} ({base}): its weights are in {', '.join(weights) or 'no safetensors'}, not in "
            f"{', '.join(own_weights)}; give a repository with the same files (push --model base makes one)"
        )
    if unlike := sorted(name for name in weights if weights[name] != own_weights[name]):
        raise InputError(f"{differs}: {unlike[0]} holds other weights")


def _hosted(repo: str, revision: str | None, api: "HfApi | None") -> tuple[Path, dict[str, str]]:
    """The folder with the config of a model on the hub, and the SHA-256 of its weight files by name."""
    from huggingface_hub import HfApi

    api = api or HfApi()
    with explained(api, repo, revision):
        info = api.model_info(repo, revision=revision, files_metadata=True)
        config = Path(api.hf_hub_download(repo, "config.json", revision=info.sha))
    files = {file.rfilename: file.lfs for file in info.siblings or []}
    return config.parent, {name: lfs.sha256 for name, lfs in files.items() if lfs and WEIGHTS.fullmatch(name)}
