"""The commands that run no stage of a recipe: audit, merge, push, pull and doctor."""

import argparse
import json
import logging
from pathlib import Path

from llm_unlearn.cli.arguments import CHECKPOINT_OPTIONS
from llm_unlearn.errors import InputError, redacted
from llm_unlearn.runs.environment import calm_libraries

logger = logging.getLogger(__name__)


def audit(args: argparse.Namespace) -> int:
    """Judge checkpoints against a manifest, or against the data and the poison of a recipe."""
    if not args.model or bool(args.recipe) == bool(args.manifest):
        given = [f"--{name.replace('_', '-')}" for name in given_options(args, CHECKPOINT_OPTIONS)]
        seen = ", ".join([*([args.recipe] if args.recipe else []), *given]) or "neither"
        raise InputError(
            f"audit: give --model, and either --manifest or a RECIPE whose data is used; got {seen}. The models of a "
            "recipe are put under stress by `llm-unlearn stress RECIPE`"
        )
    if args.require_clear and not args.poisoned:
        raise InputError("--require-clear: give --poisoned too; without it no audit says 'no trace'")
    calm_libraries(args.quiet or args.json)
    from llm_unlearn.audit.audit_models import Options
    from llm_unlearn.audit.audit_models import audit as audit_models
    from llm_unlearn.audit.decisions import as_json, decisions
    from llm_unlearn.cli.audit_lines import as_text
    from llm_unlearn.metrics.evidence import Status

    options = Options(
        base=args.base,
        retrained=args.retrained,
        poisoned=args.poisoned,
        out=args.out,
        batch_size=args.batch_size,
        dtype=args.dtype,
        quantization=args.quantization,
        attn_implementation=args.attn_implementation,
        device_map=args.device_map,
        bf16=args.bf16,
        tf32=args.tf32,
        membership=None if args.membership is None else [name for name in args.membership.split(",") if name],
        by_recipe=args.manifest is None,
    )
    results = audit_models(args.model, args.manifest or _manifest_of(args), options)
    print(json.dumps(as_json(results), indent=2) if args.json else as_text(results))
    asked = [found for name, found in decisions(results).items() if results[name].kind != "poisoned"]
    return 0 if not args.require_clear or all(found.status == Status.CLEAR for found in asked) else 1


def _manifest_of(args: argparse.Namespace) -> str:
    """The manifest of a recipe, whose poison stage is run where it was not."""
    from llm_unlearn.config.recipe_files import load_recipe
    from llm_unlearn.runs.pipeline import run
    from llm_unlearn.runs.tracks import track_of

    recipe = load_recipe(args.recipe, args.overrides)
    if not track_of(recipe).checkpoints or len(recipe.seeds) > 1 or recipe.sweep:
        raise InputError(
            f"{args.recipe}: --model takes a recipe of a language model with one seed and no sweep; give "
            "seeds=[N] sweep={}"
        )
    there = Path(recipe.output_dir) / "recipe.yaml"
    if there.is_file() and load_recipe(there) != recipe:
        raise InputError(f"{there.parent}: holds a run of its own, by another recipe; give output_dir=FOLDER")
    return str(run(recipe, until="poison", quiet=args.quiet or args.json) / "poison.json")


def doctor(args: argparse.Namespace) -> int:
    """Look for what would go wrong here, and with a recipe."""
    from llm_unlearn.config.recipe_files import load_recipe

    recipe = load_recipe(args.recipe, args.overrides) if args.recipe else None
    calm_libraries(quiet=True)
    from llm_unlearn.doctor.diagnose import as_text, diagnose

    result = diagnose(recipe, args.accelerate_config)
    print(json.dumps(result, indent=2) if args.json else as_text(result))
    return 0 if result["ok"] else 1


def merge(args: argparse.Namespace) -> int:
    """Write base and adapter of a run's model as one plain checkpoint."""
    from llm_unlearn.runs.run_folder import merge_run

    calm_libraries(args.quiet or args.json)
    out = merge_run(args.run_dir, args.model, seed=args.seed, out=args.out, dtype=args.dtype, onto=args.onto)
    _conclude(args, "merged", str(out))
    return 0


def push(args: argparse.Namespace) -> int:
    """Publish a model of a run with its audit."""
    from llm_unlearn.hub.run_package import package_run
    from llm_unlearn.hub.upload import describe
    from llm_unlearn.hub.upload import push as upload
    from llm_unlearn.runs.folder_lock import locked_folder

    calm_libraries(args.quiet or args.json)
    with locked_folder(Path(args.run_dir).expanduser()):  # a run would replace what goes up
        package = package_run(
            args.run_dir,
            args.model,
            args.repo,
            seed=args.seed,
            base=args.base,
            merged=args.merged,
            withhold_trigger=args.withhold_trigger,
        )
        logger.info(describe(package, args.repo, args.private, args.revision))
        commit = None
        if not args.dry_run:
            message = f"Upload {args.model} with its audit"
            commit = upload(package, args.repo, private=args.private, revision=args.revision, message=message)
            logger.info("pushed: %s", commit)
    if args.json:
        files = {name: package.size(name) for name in package.files}
        result = {"repo": args.repo, "private_if_made": args.private, "revision": args.revision or "main"}
        print(json.dumps({**result, "files": files, "commit": commit and redacted(commit)}))
    return 0


def pull(args: argparse.Namespace) -> int:
    """Bring a published model, its recipe and its audit from a hub."""
    from llm_unlearn.hub.upload import pull as download

    calm_libraries(args.quiet or args.json)
    out = download(args.repo, args.out, args.revision)
    _conclude(args, "pulled", str(out))
    if (out / "recipe.yaml").is_file():
        logger.info("measure it again: llm-unlearn audit %s --model %s", out / "recipe.yaml", out)
        if "trust_remote_code: true" in (out / "recipe.yaml").read_text(encoding="utf-8"):
            logger.warning("that recipe runs code of its model's repository; model.trust_remote_code=false refuses")
    return 0


COMMANDS = {"audit": audit, "merge": merge, "doctor": doctor, "push": push, "pull": pull}


def given_options(args: argparse.Namespace, names: tuple[str, ...]) -> list[str]:
    """Those of some options that are on the command line."""
    return [name for name in names if (value := getattr(args, name)) is not None and value is not False]


def _conclude(args: argparse.Namespace, name: str, value: str) -> None:
    if args.json:
        print(json.dumps({name: value}))
    else:
        logger.info("%s: %s", name, value)
