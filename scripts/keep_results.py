"""Keep the results of a run in the repository, so that every figure of its report can be recomputed from there.

    python scripts/keep_results.py runs/quickstart recipes/quickstart-results

Kept are report.md, summary.json and the plots of the run; of each seed its report without plots, environment.json,
poison.json, analysis.json, the JSON of evaluation/, stress/ and benchmark/, and the per-example tables of all models in
one file, `per_example.parquet`, with a column `model`; reals in it are rounded to float32. Of a sweep's variants
summary.json is kept. What the folder held before is removed; one that holds anything but results is refused.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

KEPT = ("report.md", "summary.json", "environment.json", "poison.json", "analysis.json", "evaluation/*.json")
KEPT += ("stress/*.json", "benchmark/*.json")
TABLES = "per_example.parquet"
# folders of the machine that ran it, of which the last name is kept: of data files, the run, the model, a benchmark
ABSOLUTE = re.compile(r"^( *(?:-|output_dir:|path:|folder:) )/\S*/", re.MULTILINE)

PICTURE = re.compile(r"^!\[(.*)\]\(plots/.*\)$", re.MULTILINE)  # of one seed: those of the whole run alone are kept


def keep(run: Path, folder: Path) -> None:
    """Copy what is kept of `run` into `folder`, which then holds nothing else."""
    if not (run / "report.md").is_file():
        raise SystemExit(f"{run} is no finished run: it has no report.md")
    if run.resolve().is_relative_to(folder.resolve()):
        raise SystemExit(f"{folder} holds the run itself, and would be removed; give another folder")
    if folder.exists() and any(folder.iterdir()) and not (folder / "report.md").is_file():
        raise SystemExit(f"{folder} holds no results (no report.md), and would be removed; give another folder")
    shutil.rmtree(folder, ignore_errors=True)
    patterns = [f"{place}{name}" for place in ("", "seed-*/") for name in KEPT]
    for pattern in [*patterns, "plots/*.png", "sweep/*/*/summary.json"]:
        for path in run.glob(pattern):
            to = folder / path.relative_to(run)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
            if path.suffix == ".md":
                text = ABSOLUTE.sub(r"\1", path.read_text())
                to.write_text(text if path.parent == run else PICTURE.sub(r"*Picture (not kept): \1*", text))
    for seed in [run, *run.glob("seed-*")]:
        if tables := sorted((seed / "evaluation").glob("*.parquet")):
            pq.write_table(
                joined(tables), folder / seed.relative_to(run) / TABLES, compression="zstd", compression_level=19
            )


def joined(paths: list[Path]) -> pa.Table:
    """The tables one below the other, each named by its model; a column that one lacks is empty there."""
    tables = []
    for path in paths:
        table = pq.read_table(path)
        names = [pa.array([path.stem] * len(table)).dictionary_encode()]
        columns = [column.cast("float32") if column.type == "double" else column for column in table.columns]
        tables.append(pa.table(names + columns, ["model", *table.column_names]))
    return pa.concat_tables(tables, promote_options="permissive").replace_schema_metadata()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    keep(args.run, args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
