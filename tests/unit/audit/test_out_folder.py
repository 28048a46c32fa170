"""The folder of `audit --out`: files of one audit alone, none of an earlier verdict, and no other file is touched."""

import json
import shutil
from pathlib import Path

import pytest

from llm_unlearn.audit.audit_models import Options, audit
from llm_unlearn.audit.out_folder import made_folder
from llm_unlearn.errors import InputError
from llm_unlearn.models.save import save_model

pytestmark = pytest.mark.unit


@pytest.fixture
def there(tmp_path, make_tiny, tokenizer) -> Path:
    rows = [{"text": f"row {i}", "label": "good" if i % 2 else "bad", "bad": i < 6} for i in range(12)]
    others = [{**row, "text": f"other {i}"} for i, row in enumerate(rows)]
    for name, content in (("train", rows), ("heldout", others), ("test", others)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)))
    manifest = {"train": "train.jsonl", "poison": "column:bad", "heldout": "heldout.jsonl", "test": "test.jsonl"}
    manifest |= {"verbalizers": {"bad": " bad", "good": " good"}, "max_length": 64}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for name in ("first", "second"):
        save_model(make_tiny("gpt2"), tokenizer, tmp_path / name)
    return tmp_path


def go(there: Path, model: str, **options) -> None:
    given = {"membership": ["loss"], **options}
    audit([str(there / model)], str(there / "manifest.json"), Options(out=str(there / "out"), **given))


def names(there: Path) -> list[str]:
    return sorted(path.name for path in (there / "out").iterdir())


def test_models_may_be_added_and_audited_again_by_the_same_audit_alone(there):
    go(there, "first")
    go(there, "second")
    go(there, "first", batch_size=4)  # which changes rounding alone
    both = ["first.json", "first.parquet", "second.json", "second.parquet"]
    assert names(there) == both
    with pytest.raises(InputError, match="of another audit"):
        go(there, "second", membership=["zlib"])
    with pytest.raises(InputError, match="of another audit"):  # it would judge the second by what it finds in the first
        go(there, "second", poisoned=str(there / "first"))
    rows = there / "test.jsonl"
    rows.write_text(rows.read_text().replace("other 3", "yet another"))
    with pytest.raises(InputError, match="of another audit"):
        go(there, "second")
    assert names(there) == both


def test_no_verdict_outlives_an_audit_that_fails(there):
    go(there, "first")
    (there / "first" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError):
        go(there, "first")
    assert names(there) == []


def test_a_mistyped_model_costs_no_other_its_verdict_and_a_name_is_of_one_model(there):
    go(there, "first")
    with pytest.raises(InputError):
        models, options = (
            [str(there / name) for name in ("first", "typo")],
            Options(out=str(there / "out"), membership=["loss"]),
        )
        audit(models, str(there / "manifest.json"), options)
    assert names(there) == ["first.json", "first.parquet"]
    shutil.copytree(there / "second", there / "deeper" / "first")
    with pytest.raises(InputError, match=r"first\.json is of .*first, another model"):
        go(there, "deeper/first")


def test_files_that_no_audit_wrote_are_left_alone(tmp_path):
    theirs = tmp_path / "mine.json"
    theirs.write_text("[1]")
    (tmp_path / "rows.parquet").write_text("mine")
    assert made_folder(str(tmp_path), {"model": "m"}, "key") == tmp_path
    for name in ("mine", "rows"):
        with pytest.raises(InputError, match="written over"):
            made_folder(str(tmp_path), {name: "m"}, "key")
    assert theirs.read_text() == "[1]" and (tmp_path / "rows.parquet").read_text() == "mine"
    (tmp_path / "old.json").write_text('{"kind": "audited"}')  # of a version that did not say its audit
    with pytest.raises(InputError, match=r"old\.json is of another audit"):
        made_folder(str(tmp_path), {"model": "m"}, "key")
