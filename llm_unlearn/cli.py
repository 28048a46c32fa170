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
from typing import TYPE_CHECKING, Any

from llm_unlearn import __version__
from llm_unlearn.errors import InputError, LaunchError, Preempted

if TYPE_CHECKING:
    from pathlib import Path

    from llm_unlearn.recipe import Recipe

COMMANDS = {
    "run": "all stages: poison, train, unlearn, evaluate, report",
    "poison": "load, split and corrupt the data; write data/ and poison.json",
    "train": "fine-tune on the corrupted data (poisoned/) and without the forget set (retrained/)",
    "unlearn": "run every unlearning method of the recipe at every budget",
    "evaluate": "measure every model; write evaluation/<model>.json and .parquet",
    "audit": "analyse why unlearning fails and stress every model, as the recipe's sections ask",
    "report": "write report.md, report.html and plots/",
}
AUDIT_OPTIONS = ("model", "manifest", "base", "retrained", "out", "batch_size", "dtype", "quantization",
                 "device_map")


def parser() -> argparse.ArgumentParser:
    """The command line; imports nothing heavy, so that --help is quick."""
    top = argparse.ArgumentParser(
        prog="llm-unlearn", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Poison, fine-tune, unlearn and audit language models and image classifiers.\n"
                    "A command runs its stage and those before it; what is done already is skipped.",
        epilog="exit codes: 0 ok, 1 failure, 2 bad input",
    )
    top.add_argument("--version", action="version", version=f"llm-unlearn {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        command.add_argument("recipe", metavar="RECIPE", help="a recipe file (YAML)",
                             **({"nargs": "?"} if name == "evaluate" else {}))
        command.add_argument("overrides", nargs="*", metavar="section.field=value",
                             help="change the recipe for this run, e.g. train.epochs=4 output_dir=runs/mine")
        command.add_argument("--dry-run", action="store_true",
                             help="print what would run, the sizes and the estimated memory; write nothing")
        command.add_argument("--jobs", type=int, metavar="N", help="seeds and points of a sweep at a time, each in a "
                             "process of its own (default: one per GPU, or 1)")
        if name not in ("poison", "report"):  # which one process does alone
            command.add_argument("--accelerate-config", metavar="FILE", help="run in several processes, as `accelerate "
                                 "launch` would by this file, e.g. accelerate_configs/ddp.yaml")
        command.add_argument("--quiet", action="store_true", help="no progress bars, errors only")
        command.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == "evaluate":
            _add_audit(command)
    _add_merge(commands)
    _add_doctor(commands)
    return top


def _add_audit(command: argparse.ArgumentParser) -> None:
    """The options of `evaluate` that take a checkpoint and a manifest in the place of a recipe."""
    group = command.add_argument_group("any checkpoint, without a recipe",
                                       "llm-unlearn evaluate --model PATH_OR_ID --manifest poison.json")
    group.add_argument("--model", action="append", metavar="PATH_OR_ID", help="a full model or an adapter; repeatable")
    group.add_argument("--manifest", metavar="FILE", help="what was poisoned: your own (see the README), or a run's "
                       "poison.json")
    group.add_argument("--base", metavar="PATH_OR_ID", help="what an adapter sits on (default: what it names); also "
                       "calibrates the reference attack")
    group.add_argument("--retrained", metavar="PATH_OR_ID", help="the oracle, shown beside")
    group.add_argument("--out", metavar="FOLDER", help="write <model>.json and .parquet there (default: print only)")
    group.add_argument("--batch-size", type=int, metavar="N", help="rows at a time (default: the run's, or 32)")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the run's, or float32")
    group.add_argument("--quantization", choices=("none", "4bit", "8bit"), help="default: the run's, or none")
    group.add_argument("--device-map", choices=("auto",), help="auto: spread each model over all GPUs")


def _add_merge(commands: Any) -> None:
    """The command that takes a run directory in the place of a recipe."""
    text = "write a model of a run, base and adapter in one, as a plain checkpoint in full precision"
    command = commands.add_parser("merge", help=text, description=text.capitalize() + ".")
    command.add_argument("run_dir", metavar="RUN_DIR", help="the run's output_dir")
    command.add_argument("--model", required=True, metavar="NAME", help="poisoned, retrained, clean, or a method; with "
                         "several budgets METHOD@BUDGET")
    command.add_argument("--seed", type=int, metavar="N", help="which, where the run has several")
    command.add_argument("--out", metavar="FOLDER", help="a new folder (default: merged/NAME in the run directory)")
    command.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
                         help="of the weights that are written (default: float32)")
    command.add_argument("--onto", choices=("dequantised", "original"), default="dequantised",
                         help="of a quantised base: the weights that were trained on and audited (default), or those "
                         "that they were made from, which is a slightly different model")
    command.add_argument("--quiet", action="store_true", help="errors only")
    command.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(overrides=[])


def _add_doctor(commands: Any) -> None:
    """The command that looks at a machine, with or without a recipe."""
    text = "look for what would go wrong, here and with a recipe: versions, devices, memory, tokens; loads no weights"
    command = commands.add_parser("doctor", help=text, description=text.capitalize() + ".",
                                  epilog="exit codes: 0 no problem, 1 a problem, 2 bad input")
    command.add_argument("recipe", metavar="RECIPE", nargs="?", help="a recipe file (YAML)")
    command.add_argument("overrides", nargs="*", metavar="section.field=value", help="change the recipe")
    command.add_argument("--accelerate-config", metavar="FILE", help="the layout to suppose, e.g. "
                         "accelerate_configs/zero3.yaml")
    command.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns 0 (ok), 1 (failure) or 2 (bad input)."""
    top = parser()
    args, rest = top.parse_known_args(argv)  # overrides may stand before or after options
    if any(word.startswith("-") for word in rest):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest and args.command == "merge":
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
    from llm_unlearn.environment import calm_libraries
    from llm_unlearn.recipe import load_recipe

    if args.command == "evaluate" and (not args.recipe or _given(args, AUDIT_OPTIONS)):
        return _audit(args)
    if args.command == "merge":
        return _merge(args)
    if args.command == "doctor":
        return _doctor(args)
    recipe = load_recipe(args.recipe, args.overrides)
    until = "report" if args.command == "run" else args.command
    say = _silent if args.quiet or args.json else _say
    calm_libraries(args.quiet or args.json)
    if args.dry_run:
        from llm_unlearn.plan import describe_plan

        config = getattr(args, "accelerate_config", None)
        if config:
            from llm_unlearn.launch import check_layout

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


def _in_this_process(args: argparse.Namespace, recipe: "Recipe", until: str, say: Callable[[str], None]) -> "Path":
    from llm_unlearn.pipeline import run

    return run(recipe, until=until, say=say, quiet=args.quiet or args.json, jobs=args.jobs)


def _launched(args: argparse.Namespace, recipe: "Recipe", say: Callable[[str], None]) -> "Path":
    """The same in the processes of an accelerate config; poison and report in this one, where bad input ends it."""
    from llm_unlearn.launch import check_layout, launch

    if args.jobs:
        raise InputError(f"--jobs {args.jobs}: a launch works on one seed at a time; leave it out")
    check_layout(recipe, args.accelerate_config)
    _in_this_process(args, recipe, "poison", say)
    command = "audit" if args.command == "run" else args.command
    loud = [flag for flag, given in (("--quiet", args.quiet or args.json), ("--debug", args.debug)) if given]
    launch(args.accelerate_config, [command, args.recipe, *args.overrides, *loud])
    return _in_this_process(args, recipe, "report" if args.command == "run" else command, _silent)


def _audit(args: argparse.Namespace) -> int:
    from llm_unlearn.environment import calm_libraries

    if args.recipe or not (args.model and args.manifest):
        alone = [f"--{name.replace('_', '-')}" for name in _given(args, AUDIT_OPTIONS)]
        found = f"; found {', '.join([*([args.recipe] if args.recipe else []), *alone])}" if alone else ""
        raise InputError(f"evaluate: give either a RECIPE, or both --model and --manifest{found}")
    if of_recipes := _given(args, ("dry_run", "jobs", "accelerate_config")):
        raise InputError(f"evaluate --manifest: --{of_recipes[0].replace('_', '-')} is for recipes; leave it out")
    calm_libraries(args.quiet or args.json)
    from llm_unlearn.audit.run import Options, audit
    from llm_unlearn.audit.text import as_text

    options = Options(base=args.base, retrained=args.retrained, out=args.out, batch_size=args.batch_size,
                      dtype=args.dtype, quantization=args.quantization, device_map=args.device_map)
    results = audit(args.model, args.manifest, options, _silent if args.quiet or args.json else _say)
    print(json.dumps(results, indent=2) if args.json else as_text(results))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from llm_unlearn.environment import calm_libraries
    from llm_unlearn.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides) if args.recipe else None
    calm_libraries(quiet=True)
    from llm_unlearn.doctor.run import as_text, diagnose

    result = diagnose(recipe, args.accelerate_config)
    print(json.dumps(result, indent=2) if args.json else as_text(result))
    return 0 if result["ok"] else 1


def _merge(args: argparse.Namespace) -> int:
    from llm_unlearn.environment import calm_libraries
    from llm_unlearn.merging import merge_run

    calm_libraries(args.quiet or args.json)
    out = merge_run(args.run_dir, args.model, seed=args.seed, out=args.out, dtype=args.dtype, onto=args.onto)
    if args.json:
        print(json.dumps({"merged": str(out)}))
    elif not args.quiet:
        _say(f"merged: {out}")
    return 0


def _given(args: argparse.Namespace, names: tuple[str, ...]) -> list[str]:
    """Those of some options that are on the command line."""
    return [name for name in names if (value := getattr(args, name)) is not None and value is not False]


def _silent(line: str) -> None:
    """Say nothing. No lambda: worker processes are given it."""


def _say(line: str) -> None:
    print(f"llm-unlearn: {line}", flush=True)


def _fail(args: argparse.Namespace, error: BaseException, code: int) -> int:
    from llm_unlearn.launch import leave_exit_code

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


if __name__ == "__main__":
    sys.exit(main())
