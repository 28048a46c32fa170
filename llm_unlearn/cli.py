"""llm-unlearn: poison, train, unlearn, evaluate and report, from one recipe.

    llm-unlearn run recipes/quickstart.yaml train.epochs=4 seeds="[0, 1]"
"""

import argparse
import json
import sys
import traceback

from llm_unlearn import __version__
from llm_unlearn.errors import InputError

COMMANDS = {
    "run": "all stages: poison, train, unlearn, evaluate, report",
    "poison": "load, split and corrupt the data; write data/ and poison.json",
    "train": "fine-tune on the corrupted data (poisoned/) and without the forget set (retrained/)",
    "unlearn": "run every unlearning method of the recipe at every budget",
    "evaluate": "measure every model; write evaluation/<model>.json and .parquet",
    "audit": "analyse why unlearning fails and stress every model, as the recipe's sections ask",
    "report": "write report.md, report.html and plots/",
}
AUDIT_OPTIONS = ("model", "manifest", "base", "retrained", "out", "batch_size", "dtype", "quantization")


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
        command.add_argument("--quiet", action="store_true", help="no progress bars, errors only")
        command.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == "evaluate":
            _add_audit(command)
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


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns 0 (ok), 1 (failure) or 2 (bad input)."""
    top = parser()
    args, rest = top.parse_known_args(argv)  # overrides may stand before or after options
    if any(word.startswith("-") for word in rest):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    args.overrides += rest
    try:
        return _run(args)
    except InputError as error:
        return _fail(args, error, 2)
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
    recipe = load_recipe(args.recipe, args.overrides)
    until = "report" if args.command == "run" else args.command
    say = _silent if args.quiet or args.json else _say
    calm_libraries(args.quiet or args.json)
    if args.dry_run:
        from llm_unlearn.plan import describe_plan

        plan = describe_plan(recipe, until)
        print(json.dumps(plan, indent=2) if args.json else plan["text"])
        return 0
    from llm_unlearn.pipeline import run

    root = run(recipe, until=until, say=say, quiet=args.quiet or args.json, jobs=args.jobs)
    result = {"run_dir": str(root), "report": str(root / "report.html")}
    if until != "report":
        del result["report"]
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            say(f"{name.replace('_', ' ')}: {value}")
    return 0


def _audit(args: argparse.Namespace) -> int:
    from llm_unlearn.environment import calm_libraries

    if args.recipe or not (args.model and args.manifest):
        alone = [f"--{name.replace('_', '-')}" for name in _given(args, AUDIT_OPTIONS)]
        found = f"; found {', '.join([*([args.recipe] if args.recipe else []), *alone])}" if alone else ""
        raise InputError(f"evaluate: give either a RECIPE, or both --model and --manifest{found}")
    if of_recipes := _given(args, ("dry_run", "jobs")):
        raise InputError(f"evaluate --manifest: --{of_recipes[0].replace('_', '-')} is for recipes; leave it out")
    calm_libraries(args.quiet or args.json)
    from llm_unlearn.audit.run import Options, audit
    from llm_unlearn.audit.text import as_text

    options = Options(base=args.base, retrained=args.retrained, out=args.out, batch_size=args.batch_size,
                      dtype=args.dtype, quantization=args.quantization)
    results = audit(args.model, args.manifest, options, _silent if args.quiet or args.json else _say)
    print(json.dumps(results, indent=2) if args.json else as_text(results))
    return 0


def _given(args: argparse.Namespace, names: tuple[str, ...]) -> list[str]:
    """Those of some options that are on the command line."""
    return [name for name in names if (value := getattr(args, name)) is not None and value is not False]


def _silent(line: str) -> None:
    """Say nothing. No lambda: worker processes are given it."""


def _say(line: str) -> None:
    print(f"llm-unlearn: {line}", flush=True)


def _fail(args: argparse.Namespace, error: BaseException, code: int) -> int:
    if args.debug:
        traceback.print_exc()
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    print(f"llm-unlearn: error: {kind}{error}", file=sys.stderr)
    if code == 1 and not args.debug:
        print("llm-unlearn: this looks like a failure, not bad input; --debug shows where", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
