"""The models that are named to be audited."""

from pathlib import Path

from llm_unlearn.errors import InputError


def in_run(model: str) -> str:
    """A model as it was named, or the one that was unlearned in the run directory that was named."""
    folder = Path(model).expanduser()
    is_model = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    if is_model or not (folder / "recipe.yaml").is_file():
        return model
    found = [path.parent for path in sorted(folder.glob("unlearned/*/cost.json"))]
    if len(found) != 1:
        named = ", ".join(map(str, found)) or f"folders in {folder} that hold one"
        raise InputError(f"--model {model}: is a run directory; name a model of it: {named}")
    return str(found[0])


def short_names(models: list[str]) -> dict[str, str]:
    """A short name → model: the last part of its path, or as many parts as are needed to be unique."""
    names: dict[str, str] = {}
    seen = set()
    for model in models:
        path = Path(model).expanduser()
        parts = path.resolve().parts[1:] if path.is_dir() else path.parts
        if parts in seen:
            raise InputError(f"--model {model}: given twice")
        seen.add(parts)
        candidates = ("_".join(parts[-k:]).strip("/") for k in range(1, len(parts) + 1))
        names[next(name for name in candidates if name not in names)] = model
    return names
