"""llm-unlearn: poison, train, unlearn, evaluate and report, from one recipe.

llm-unlearn run recipes/quickstart.yaml train.epochs=4 seeds="[0, 1]"
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llm_unlearn.cli.arguments import AUDIT_OPTIONS, parser
from llm_unlearn.errors import InputError, LaunchError, Preempted

if TYPE_CHECKING:
    from llm_unlearn.config.recipe import Recipe


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns 0 (ok), 1 (failure) or 2 (bad input)."""
    top = parser()
    args, rest = top.parse_known_args(argv)  # overrides may stand before or after options
    if any(word.startswith("-") for word in rest):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest and args.command in ("merge", "push", "pull"):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    args.overrides += rest
    try:
        return _run(args)
    except InputError as error:
        return _fail(args, error, 2)
    except Preempted as error:
        return _fail(args, error, 1)
    except KeyboardInterrupt:
        print("llm-unlearn: interrupted; run the same command again to resume", file=sys.stderr)
        return 1
    except Exception as error:
        return _fail(args, error, 1)


def _run(args: argparse.Namespace) -> int:
    from llm_unlearn.config.recipe import load_recipe
    from llm_unlearn.runs.environment import calm_libraries

    if args.command == "evaluate" and (not args.recipe or _given(args, AUDIT_OPTIONS)):
        return _audit(args)
    if args.command in ALONE:
        return ALONE[args.command](args)
    recipe = load_recipe(args.recipe, args.overrides)
    until = "report" if args.command == "run" else args.command
    say = _silent if args.quiet or args.json else _say
    calm_libraries(args.quiet or args.json)
    if args.dry_run:
        from llm_unlearn.cli.dry_run import describe_plan

        config = getattr(args, "accelerate_config", None)
        if config:
            from llm_unlearn.runs.launch_checks import check_layout

        plan = describe_plan(recipe, until, check_layout(recipe, config) if config else None)
        print(json.dumps(plan, indent=2) if args.json else plan["text"])
        return 0
    launches = getattr(args, "accelerate_config", None)
    root = _launched(args, recipe, say) if launches else _in_this_process(args, recipe, until, say)
    if int(os.environ.get("RANK", "0")):  # the main process says it
        return 0
    result = {"run_dir": str(root), "report": str(root / "report.html")}
    if until != "report":
        del result["report"]
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            say(f"{name.replace('_', ' ')}: {value}")
    return 0


def _in_this_process(args: argparse.Namespace, recipe: "Recipe", until: str, say: Callable[[str], None]) -> Path:
    from llm_unlearn.runs.pipeline import run

    return run(recipe, until=until, say=say, quiet=args.quiet or args.json, jobs=args.jobs)


def _launched(args: argparse.Namespace, recipe: "Recipe", say: Callable[[str], None]) -> Path:
    """The same in the processes of an accelerate config; poison and report in this one, where bad input ends it."""
    from llm_unlearn.distributed.launch import launch
    from llm_unlearn.runs.launch_checks import check_layout

    if args.jobs:
        raise InputError(f"--jobs {args.jobs}: a launch works on one seed at a time; leave it out")
    check_layout(recipe, args.accelerate_config)
    _in_this_process(args, recipe, "poison", say)
    command = "audit" if args.command == "run" else args.command
    loud = [flag for flag, given in (("--quiet", args.quiet or args.json), ("--debug", args.debug)) if given]
    launch(args.accelerate_config, [command, args.recipe, *args.overrides, *loud])
    return _in_this_process(args, recipe, "report" if args.command == "run" else command, _silent)


def _audit(args: argparse.Namespace) -> int:
    from llm_unlearn.runs.environment import calm_libraries

    if not args.model or bool(args.recipe) == bool(args.manifest):
        alone = [f"--{name.replace('_', '-')}" for name in _given(args, AUDIT_OPTIONS)]
        found = f"; found {', '.join([*([args.recipe] if args.recipe else []), *alone])}" if alone else ""
        raise InputError(
            f"evaluate: give a RECIPE, for its own models; or --model with either a RECIPE or --manifest{found}"
        )
    if of_recipes := _given(args, ("dry_run", "jobs", "accelerate_config")):
        raise InputError(
            f"evaluate --model: --{of_recipes[0].replace('_', '-')} is for a recipe's own models; leave it out"
        )
    calm_libraries(args.quiet or args.json)
    from llm_unlearn.audit.audit_models import Options, audit
    from llm_unlearn.cli.audit_lines import as_text

    say = _silent if args.quiet or args.json else _say
    options = Options(
        base=args.base,
        retrained=args.retrained,
        out=args.out,
        batch_size=args.batch_size,
        dtype=args.dtype,
        quantization=args.quantization,
        device_map=args.device_map,
    )
    results = audit(args.model, args.manifest or _manifest_of(args, say), options, say)
    trees = {name: result.to_json() for name, result in results.items()}
    print(json.dumps(trees, indent=2) if args.json else as_text(results))
    return 0


def _manifest_of(args: argparse.Namespace, say: Callable[[str], None]) -> str:
    """The manifest of a recipe, whose poison stage is run where it was not."""
    from llm_unlearn.config.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    if recipe.track != "language" or len(recipe.seeds) > 1 or recipe.sweep:
        raise InputError(
            f"{args.recipe}: --model takes a recipe of a language model with one seed and no sweep; give "
            "seeds=[N] sweep={}"
        )
    there = Path(recipe.output_dir) / "recipe.yaml"
    if there.is_file() and load_recipe(there) != recipe:
        raise InputError(f"{there.parent}: holds a run of its own, by another recipe; give output_dir=FOLDER")
    return str(_in_this_process(args, recipe, "poison", say) / "poison.json")


def _doctor(args: argparse.Namespace) -> int:
    from llm_unlearn.config.recipe import load_recipe
    from llm_unlearn.runs.environment import calm_libraries

    recipe = load_recipe(args.recipe, args.overrides) if args.recipe else None
    calm_libraries(quiet=True)
    from llm_unlearn.doctor.diagnose import as_text, diagnose

    result = diagnose(recipe, args.accelerate_config)
    print(json.dumps(result, indent=2) if args.json else as_text(result))
    return 0 if result["ok"] else 1


def _merge(args: argparse.Namespace) -> int:
    from llm_unlearn.runs.environment import calm_libraries
    from llm_unlearn.runs.run_folder import merge_run

    calm_libraries(args.quiet or args.json)
    out = merge_run(args.run_dir, args.model, seed=args.seed, out=args.out, dtype=args.dtype, onto=args.onto)
    if args.json:
        print(json.dumps({"merged": str(out)}))
    elif not args.quiet:
        _say(f"merged: {out}")
    return 0


def _push(args: argparse.Namespace) -> int:
    from llm_unlearn.hub.run_package import package_run
    from llm_unlearn.hub.upload import describe, push
    from llm_unlearn.runs.environment import calm_libraries

    say = _silent if args.quiet or args.json else _say
    calm_libraries(args.quiet or args.json)
    package = package_run(
        args.run_dir,
        args.model,
        args.repo,
        seed=args.seed,
        base=args.base,
        merged=args.merged,
        withhold_trigger=args.withhold_trigger,
    )
    result = {
        "repo": args.repo,
        "private_if_made": args.private,
        "revision": args.revision or "main",
        "files": {name: package.size(name) for name in package.files},
        "commit": None,
    }
    say(describe(package, args.repo, args.private, args.revision))
    if not args.dry_run:
        result["commit"] = push(
            package,
            args.repo,
            private=args.private,
            revision=args.revision,
            message=f"Upload {args.model} with its audit",
            say=say,
        )
        say(f"pushed: {result['commit']}")
    if args.json:
        print(json.dumps(result))
    return 0


def _pull(args: argparse.Namespace) -> int:
    from llm_unlearn.hub.upload import pull
    from llm_unlearn.runs.environment import calm_libraries

    calm_libraries(args.quiet or args.json)
    out = pull(args.repo, args.out, args.revision)
    if args.json:
        print(json.dumps({"pulled": str(out)}))
    elif not args.quiet:
        _say(f"pulled: {out}")
        if (out / "recipe.yaml").is_file():
            _say(f"measure it again: llm-unlearn evaluate {out / 'recipe.yaml'} --model {out}")
            if "trust_remote_code: true" in (out / "recipe.yaml").read_text(encoding="utf-8"):
                _say("WARNING: that recipe runs code of its model's repository; model.trust_remote_code=false refuses")
    return 0


ALONE = {"merge": _merge, "doctor": _doctor, "push": _push, "pull": _pull}  # commands that run no stage


def _given(args: argparse.Namespace, names: tuple[str, ...]) -> list[str]:
    """Those of some options that are on the command line."""
    return [name for name in names if (value := getattr(args, name)) is not None and value is not False]


def _silent(line: str) -> None:
    """Say nothing. No lambda: worker processes are given it."""


def _say(line: str) -> None:
    print(f"llm-unlearn: {line}", flush=True)


def _fail(args: argparse.Namespace, error: BaseException, code: int) -> int:
    from llm_unlearn.distributed.launch import leave_exit_code

    rank = int(os.environ.get("RANK", "0"))
    if rank:
        time.sleep(2)  # where the main process fails alike it has said so, and the launcher ends this one meanwhile
    leave_exit_code(code)
    if args.debug:
        traceback.print_exc()
    expected = isinstance(error, (InputError, LaunchError, Preempted))
    where, kind = f"process {rank}: " if rank else "", "" if expected else f"{type(error).__name__}: "
    print(f"llm-unlearn: error: {where}{kind}{error}", file=sys.stderr)
    if not expected and not args.debug:
        print("llm-unlearn: this looks like a failure, not bad input; --debug shows where", file=sys.stderr)
    return code
