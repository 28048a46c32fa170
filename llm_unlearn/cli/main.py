"""llm-unlearn: poison, train, unlearn, evaluate and report, from one recipe.

llm-unlearn run recipes/quickstart.yaml train.epochs=4 seeds="[0, 1]"
"""

import argparse
import errno
import json
import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from llm_unlearn.cli.arguments import CHECKPOINT_OPTIONS, GIVEN_OPTIONS, parser
from llm_unlearn.errors import InputError, LaunchError, Preempted, redacted

if TYPE_CHECKING:
    from llm_unlearn.config.recipe import Recipe


logger = logging.getLogger(__name__)

# what a path may be to the system that somebody has given: too long, a loop of links, not his to read or write
OF_A_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
LONGEST = 200  # characters of it that are shown


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
    except OSError as error:
        if error.errno not in OF_A_PATH or error.filename is None:
            return _fail(args, error, 1)
        return _fail(args, InputError(f"{str(error.filename)[:LONGEST]}: {error.strerror}"), 2)
    except Exception as error:
        return _fail(args, error, 1)


def _run(args: argparse.Namespace) -> int:
    from llm_unlearn.cli.commands import COMMANDS, audit, given_options
    from llm_unlearn.cli.given_commands import tune, unlearn_given
    from llm_unlearn.runs.environment import log_lines

    log_lines(logging.WARNING if getattr(args, "quiet", False) or args.json else logging.INFO)
    if args.command == "evaluate" and (not args.recipe or given_options(args, CHECKPOINT_OPTIONS)):
        logger.warning("`evaluate --model` is called `audit --model` now; the old name goes in version 0.2")
        if of_recipes := given_options(args, ("dry_run", "jobs", "accelerate_config")):
            raise InputError(f"--{of_recipes[0].replace('_', '-')}: is for a recipe's own models; leave it out")
        return audit(args)
    if args.command == "unlearn" and (not args.recipe or given_options(args, GIVEN_OPTIONS)):
        return unlearn_given(args)
    if args.command == "tune":
        return tune(args)
    return COMMANDS[args.command](args) if args.command in COMMANDS else _run_stages(args)


def _run_stages(args: argparse.Namespace) -> int:
    """The stages of a recipe, up to the one that the command names."""
    from llm_unlearn.config.recipe_files import load_recipe
    from llm_unlearn.runs.environment import calm_libraries

    recipe = load_recipe(args.recipe, args.overrides)
    until = "report" if args.command == "run" else args.command
    calm_libraries(args.quiet or args.json)
    config = getattr(args, "accelerate_config", None)
    if args.dry_run:
        return _describe(args, recipe, until, config)
    root = _launch(args, recipe, until, config) if config else _run_here(args, recipe, until)
    if int(os.environ.get("RANK", "0")):  # the main process says it
        return 0
    result = {"run_dir": str(root)} | ({"report": str(root / "report.html")} if until == "report" else {})
    if args.json:
        print(json.dumps(result))
    for name, value in result.items():
        logger.info("%s: %s", name.replace("_", " "), value)
    return 0


def _describe(args: argparse.Namespace, recipe: "Recipe", until: str, config: str | None) -> int:
    """Print what would run."""
    from llm_unlearn.cli.dry_run import describe_plan
    from llm_unlearn.runs.launch_checks import check_topology

    plan = describe_plan(recipe, until, check_topology(recipe, config) if config else None)
    print(json.dumps(plan, indent=2) if args.json else plan["text"])
    return 0


def _run_here(args: argparse.Namespace, recipe: "Recipe", until: str) -> Path:
    from llm_unlearn.runs.pipeline import run

    return run(recipe, until=until, quiet=args.quiet or args.json, jobs=args.jobs)


def _launch(args: argparse.Namespace, recipe: "Recipe", until: str, config: str) -> Path:
    """The same in the processes of an accelerate config; poison and report in this one, where bad input ends it."""
    from llm_unlearn.distributed.launch import launch
    from llm_unlearn.runs.environment import log_lines
    from llm_unlearn.runs.launch_checks import check_topology

    if args.jobs:
        raise InputError(f"--jobs {args.jobs}: a launch works on one seed at a time; leave it out")
    check_topology(recipe, config)
    _run_here(args, recipe, "poison")
    command = "stress" if args.command == "run" else args.command
    loud = [flag for flag, given in (("--quiet", args.quiet or args.json), ("--debug", args.debug)) if given]
    launch(config, [command, args.recipe, *args.overrides, *loud])
    log_lines(logging.WARNING)  # the launched processes have said what was done
    root = _run_here(args, recipe, until)
    log_lines(logging.WARNING if args.quiet or args.json else logging.INFO)
    return root


def _fail(args: argparse.Namespace, error: BaseException, code: int) -> int:
    from llm_unlearn.distributed.launch import leave_exit_code

    rank = int(os.environ.get("RANK", "0"))
    if rank:
        time.sleep(2)  # where the main process fails alike it has said so, and the launcher ends this one meanwhile
    leave_exit_code(code)
    if args.debug:
        print(redacted(traceback.format_exc()), file=sys.stderr)
    expected = isinstance(error, (InputError, LaunchError, Preempted))
    where, kind = f"process {rank}: " if rank else "", "" if expected else f"{type(error).__name__}: "
    line = f"llm-unlearn: error: {where}{kind}{error}"
    print(redacted(line).encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
    if not expected and not args.debug:
        print("llm-unlearn: this looks like a failure, not bad input; --debug shows where", file=sys.stderr)
    return code
