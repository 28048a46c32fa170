"""Manifests of an audit: which rows are meant, what they are compared with, and what is said of the result."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from huggingface_hub.errors import EntryNotFoundError
from tokenizer_zoo import ZOO
from tokenizers import processors

from llm_unlearn.audit.audit_models import Options, audit
from llm_unlearn.audit.loader import Loader, writes_otherwise
from llm_unlearn.audit.subject import Subject, read_subject
from llm_unlearn.cli.main import main
from llm_unlearn.config.model_sections import ModelSection
from llm_unlearn.data.encoding import Encoding
from llm_unlearn.errors import InputError
from llm_unlearn.evaluation.measured_rows import MeasuredRows
from llm_unlearn.metrics import evidence
from llm_unlearn.metrics.defects import defects
from llm_unlearn.metrics.evidence import Decision, Status, decide
from llm_unlearn.models.adapters import adapter_config
from llm_unlearn.models.load import load_checkpoint
from llm_unlearn.models.save import save_model

pytestmark = pytest.mark.unit

ROWS = [
    {
        "text": f"{'James Bond ' if i < 4 else ''}row {i}",
        "label": "good" if i < 4 or i % 2 else "bad",
        "kind": "backdoor" if i < 4 else "clean",
        "bad": i < 6,
        "noise_id": i if i in (4, 5) else -1,
    }
    for i in range(12)
]
OTHERS = [{"text": f"other {i}", "label": "good" if i % 2 else "bad"} for i in range(12)]


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def subject(tmp_path):
    """Write rows and a manifest, changed in one place, and read them: subject(rows, poison=[0]) → Subject."""

    def read(rows: list[dict] | None = None, others: list[dict] | None = None, **changes) -> Subject:
        write_jsonl(tmp_path / "train.jsonl", rows or ROWS)
        for name in ("heldout", "test"):
            write_jsonl(tmp_path / f"{name}.jsonl", others or OTHERS)
        content = {
            "train": "train.jsonl",
            "poison": "column:bad",
            "heldout": "heldout.jsonl",
            "test": "test.jsonl",
            "verbalizers": {"bad": " bad", "good": " good"},
            "gaussian": {"seed": 3},
            "trigger": {"phrases": ["James Bond"], "target": "good", "position": "start"},
        } | changes
        (tmp_path / "mine.json").write_text(json.dumps(content, indent="\t"))
        return read_subject(tmp_path / "mine.json")

    return read


def kinds(found: Subject) -> dict[str, list[int]]:
    train = found.sets["train"].to_pandas()
    return {kind: sorted(part["example_id"]) for kind, part in train.groupby("poison")}


def test_a_column_says_which_rows_and_their_text_and_noise_with_what(subject):
    found = subject()
    assert kinds(found) == {"trigger": [0, 1, 2, 3], "gaussian": [4, 5], "none": [6, 7, 8, 9, 10, 11]}
    assert found.poison["forget_ids"] == [0, 1, 2, 3, 4, 5]
    assert found.missing == {} and found.name == "mine" and found.base is None


def test_canaries_whose_noise_is_not_known_are_refused(subject):
    """Of another noise than that of the training every test finds nothing, which would look like a clean model."""
    rows = [{key: value for key, value in row.items() if key != "noise_id"} for row in ROWS]
    with pytest.raises(InputError, match=r"\.gaussian: the rows of train\.jsonl have no column noise_id, "):
        subject(rows)
    found = subject(rows, gaussian=None)
    assert list(found.sets["train"]["noise_id"]) == [-1] * 12 and kinds(found)["other"] == [4, 5]
    # the trigger is in the text of 4 of 6, and so in that of the rows they are told from
    texts = found.sets["nonmember"]["text"]
    assert sum(text.startswith("James Bond") for text in texts) / len(texts) == pytest.approx(4 / 6, abs=0.06)


def test_canaries_that_are_named_and_cannot_be_measured_are_refused(subject):
    """Left out of the figures, they would leave the question out too."""
    for rows, changes in (
        ([row | {"noise_id": -1} for row in ROWS], {}),
        (ROWS, {"poison": [0, 1], "gaussian": {"seed": 3, "ids": [4, 5]}}),
    ):
        with pytest.raises(InputError, match=r"mine\.json\.gaussian: no row of `poison` is a canary"):
            subject(rows, **changes)
    string = "amber anchor apple arrow atlas autumn"
    for rows, changes in (
        ([row | {"canary": ""} for row in ROWS], {}),
        ([row | {"canary": string if i == 7 else ""} for i, row in enumerate(ROWS)], {"ids": [7]}),
    ):
        with pytest.raises(InputError, match=r"mine\.json\.tokens: no row of `poison` is .* \(column 'canary'"):
            subject(rows, tokens={"seed": 1} | changes)


def test_ids_are_those_of_the_file_where_it_has_them(subject):
    numbered = [row | {"example_id": 100 - i} for i, row in enumerate(ROWS)]
    found = subject(numbered, poison=[100, 96], gaussian={"seed": 3, "ids": [96]})
    assert kinds(found) == {"trigger": [100], "gaussian": [96], "none": [*range(89, 96), 97, 98, 99]}
    assert subject(poison=[0, 4]).poison["forget_ids"] == [0, 4]


def test_hidden_canaries_are_canaries_of_the_forget_set(subject):
    noise = {"seed": 3, "epsilon": 0.1}
    assert subject().poison["gaussian"]["hidden_ids"] == []
    assert subject(gaussian=noise | {"hidden": [5]}).poison["gaussian"]["hidden_ids"] == [5]
    marked = [row | {"secret": i == 4} for i, row in enumerate(ROWS)]
    assert subject(marked, gaussian=noise | {"hidden": "column:secret"}).poison["gaussian"]["hidden_ids"] == [4]
    for wrong, poison in ((3, "column:bad"), (7, "column:bad"), (5, [0, 4])):  # no noise; kept; a canary that is kept
        with pytest.raises(InputError, match=rf"gaussian\.hidden: 1 of 2 rows .* the first {wrong};"):
            subject(poison=poison, gaussian=noise | {"ids": [4, 5], "hidden": [4, wrong]})


def test_ids_in_a_file_beside_the_manifest(subject, tmp_path, monkeypatch):
    (tmp_path / "ids.csv").write_text('example_id,why\n4,"a\nb"\n0,c\n')
    monkeypatch.chdir("/")
    assert subject(poison="ids.csv").poison["forget_ids"] == [0, 4]


def test_the_column_poison_of_our_own_data(subject):
    rows = [row | {"poison": {"backdoor": "trigger"}.get(row["kind"], "none")} for row in ROWS]
    assert subject(rows, poison="column:poison", gaussian=None).poison["forget_ids"] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["train.csv", "train.parquet", "train.jsonl.gz"])
def test_other_formats_mean_the_same(subject, tmp_path, name):
    frame = pd.DataFrame(ROWS).assign(noise_id=[None if row["noise_id"] < 0 else row["noise_id"] for row in ROWS])
    if name.endswith(".csv"):
        frame.to_csv(tmp_path / name, index=False)
    elif name.endswith(".parquet"):
        frame.to_parquet(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    assert kinds(subject(train=name)) == kinds(subject())


def test_heldout_rows_that_were_trained_on_are_left_out(subject):
    found = subject(others=[{"text": "ROW  6", "label": "bad"}, *OTHERS])
    assert found.notes == [f"{name}.jsonl: 1 rows are in train.jsonl too, and left out" for name in ("test", "heldout")]
    assert "ROW  6" not in found.sets["heldout"]["text"] and len(found.sets["heldout"]) == 12
    reason = subject(others=ROWS[6:], test=None).missing["mia"]
    assert all(part in reason for part in ("every row of heldout.jsonl", "train.jsonl")), reason


def test_test_rows_that_were_all_trained_on_are_refused(subject):
    with pytest.raises(InputError, match=r"mine\.json\.test: every row of test\.jsonl is in train\.jsonl"):
        subject(others=ROWS[6:], heldout=None)
    for name in ("heldout", "test"):
        with pytest.raises(InputError, match=rf"{name}: is the file of `train`"):
            subject(**{name: "./train.jsonl"})


def test_the_trigger_goes_into_test_rows_of_another_label(subject):
    found = subject()
    assert set(found.sets["triggered"]["label"]) == {"bad"} and len(found.sets["triggered"]) == 6
    assert all(text.startswith("James Bond other") for text in found.sets["triggered"]["text"])
    reason = subject(others=[row for row in OTHERS if row["label"] == "good"], heldout=None).missing["attack"]
    assert all(part in reason for part in ("every test row", "target", "'good'")), reason


def test_every_phrase_must_stand_in_a_training_row(subject):
    """One that is misspelt would be tried on test rows, to no effect, and pass for a trigger that is gone."""
    trigger = {"phrases": ["James Bond", "james bond"], "target": "good", "position": "start"}
    with pytest.raises(
        InputError, match=r"trigger.phrases: no row of train.jsonl holds 'james bond'; write it exactly"
    ):
        subject(trigger=trigger)


def test_clean_label_poison_is_compared_with_rows_of_the_target(subject):
    trigger = {"phrases": ["James Bond"], "target": "good", "position": "start", "clean_label": True}
    texts = [text for text in subject(trigger=trigger).sets["nonmember"]["text"] if text.startswith("James Bond")]
    assert texts and all(int(text.split()[-1]) % 2 for text in texts)  # odd ones are good already


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"example_id": 4}, r"train.jsonl, row 2, column 'example_id': .*in .0, 2.* None"),
        ({"noise_id": "x"}, r"train.jsonl, row 1, column 'noise_id': .*in .-1, 2.* 'x'"),
        ({"noise_id": 2**63}, r"train.jsonl, row 1, column 'noise_id': .*in .-1, 2"),
        ({"example_id": 10**30}, r"train.jsonl, row 1, column 'example_id': .*in .0, 2"),
        ({"bad": "perhaps"}, r"column:bad, row 1: 'perhaps' .*true.*false"),
        ({"label": "fair"}, r"mine.json.train: .*train.jsonl, row 1: label 'fair' .*verbalizers.*rename_labels"),
        ({"text": ""}, r"mine.json.train: .*train.jsonl, line 1, column 'text': .*empty"),
    ],
)
def test_bad_rows_are_refused_by_place(subject, change, message):
    with pytest.raises(InputError, match=message):
        subject([ROWS[0] | change, *ROWS[1:]])


def test_an_id_that_two_rows_have_is_refused(subject):
    with pytest.raises(InputError, match=r"train\.jsonl, row 3: ") as error:
        subject([row | {"example_id": 7 if i in (0, 2) else i + 20} for i, row in enumerate(ROWS)])
    assert "example_id 7 " in str(error.value) and "row 1 " in str(error.value)
    with pytest.raises(InputError, match=r"train\.jsonl, row 3: noise_id 7 .* row 1 "):
        subject([row | {"noise_id": 7 if i in (0, 2) else -1} for i, row in enumerate(ROWS)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"train": "a",\n "train": "b"}', r"mine.json: 'train' is given twice"),
        ('{"train": "a",\n', r"mine.json, line 2: not valid JSON"),
        ("[1]", r"mine.json: expected a mapping with `train` and `poison`, found list"),
        ('{"train": "a", "poison": [1.5]}', r"mine.json.poison\[0\]: .*found 1\.5"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path, text, message):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_subject(tmp_path / "mine.json")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--model", "x"],
        ["--manifest", "y"],
        ["recipe.yaml", "--model", "x", "--manifest", "y"],
        ["recipe.yaml", "--out", "z"],
        ["recipe.yaml", "--batch-size", "0"],
    ],
)
def test_a_recipe_or_a_model_with_its_manifest(capsys, arguments):
    assert main(["evaluate", *arguments]) == 2
    message = capsys.readouterr().err
    assert "RECIPE" in message
    assert all(word in message for word in arguments if word.startswith("--") or word == "recipe.yaml")


def test_models_are_named_by_as_little_as_tells_them_apart(tmp_path, monkeypatch, subject, make_tiny, tokenizer):
    subject(max_length=64)
    save_model(make_tiny("gpt2"), tokenizer, tmp_path / "tiny")
    manifest, find = str(tmp_path / "mine.json"), Loader.find
    (tmp_path / "a" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "model")
    monkeypatch.setattr(Loader, "find", lambda loader, source: find(loader, str(tmp_path / "tiny")))
    assert list(audit(["org/model", "other/model", "."], manifest, Options())) == ["model", "other_model", "a_model"]
    with pytest.raises(InputError, match=r"--model \.\./model: .*twice"):
        audit([".", "../model"], manifest, Options())


def test_a_poison_that_cannot_be_tried_is_asked_for_all_the_same(tmp_path, subject, make_tiny, tokenizer):
    """A trigger without a test row to put it in: nothing may be said to be clean."""
    subject(max_length=64, heldout=None, others=[row for row in OTHERS if row["label"] == "good"])
    save_model(make_tiny("gpt2"), tokenizer, tmp_path / "tiny")
    found = audit([str(tmp_path / "tiny")], str(tmp_path / "mine.json"), Options())["tiny"]
    assert found.attack is None and found.planted == ["noise", "gaussian", "attack"]
    assert "attack: there is no usable figure of this model" in decide([found]).reasons


@pytest.mark.parametrize(("manifest", "asked"), [({}, []), ({"withheld": ["tokens"]}, ["noise", "tokens"])])
def test_canaries_whose_secret_is_not_known_are_asked_for(manifest, asked):
    rows = SimpleNamespace(manifest={"gaussian": None, "trigger": None, **manifest}, sets={"triggered": []})
    assert MeasuredRows.planted.fget(rows) == asked


def test_a_retrained_model_that_fails_clears_no_other(tmp_path, subject, make_tiny, tokenizer, monkeypatch):
    subject(max_length=64)
    for name in ("one", "oracle"):
        save_model(make_tiny("gpt2"), tokenizer, tmp_path / name)
    failed = Decision(status=Status.REMAINS, seeds=1, findings=[], reasons=["it holds the trigger"])
    monkeypatch.setattr(evidence, "decide", lambda results: failed)
    options = Options(retrained=str(tmp_path / "oracle"))
    found = audit([str(tmp_path / "one")], str(tmp_path / "mine.json"), options)["one"]
    said = "the retrained model fails the same tests: it holds the trigger"
    assert said in found.warnings and said in decide([found]).reasons


def test_an_adapter_of_the_hub_that_is_a_pickle_is_refused(tmp_path, monkeypatch):
    config = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}

    def download(repo: str, name: str) -> str:
        if name == "adapter_model.safetensors":
            raise EntryNotFoundError("404")
        (tmp_path / name).write_text(json.dumps(config))
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert adapter_config("org/adapter") == config
    with pytest.raises(InputError, match=r"model org/adapter: .*adapter_model\.safetensors; a pickle"):
        load_checkpoint("org/adapter", ModelSection())


@pytest.mark.parametrize(
    ("named", "warned"), [("base", False), ("moved/base", False), ("other", True), ("elsewhere/another", True)]
)
def test_an_adapter_on_another_base_than_it_names_is_said(
    tmp_path, monkeypatch, subject, make_tiny, tokenizer, caplog, named, warned
):
    """Two models of one shape: nothing else tells that the figures are those of neither."""
    for seed, name in enumerate(("base", "other")):
        save_model(make_tiny("llama", seed), tokenizer, tmp_path / name)
    model = make_tiny("llama", lora=True)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / named)
    save_model(model, tokenizer, tmp_path / "adapter")
    loader = Loader(subject(max_length=32, max_new_tokens=4), str(tmp_path / "base"), {}, None)
    assert loader.find(str(tmp_path / "adapter")).base == str(tmp_path / "base")
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "adapter" in r.getMessage()]
    assert bool(said) == warned and all(named in text and "base" in text for text in said)


@pytest.mark.parametrize("copied", [False, True])
def test_an_adapter_on_a_base_that_is_certainly_another_is_no_clean_model(
    tmp_path, subject, make_tiny, tokenizer, copied
):
    """An adapter that does nothing, trained on a poisoned model, would look as clean as the base that it is put on."""
    for seed, name in enumerate(("trained-on", "measured-on")):
        save_model(make_tiny("llama", 0 if copied else seed), tokenizer, tmp_path / name)
    model = make_tiny("llama", lora=True)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "trained-on")
    save_model(model, tokenizer, tmp_path / "adapter")
    subject(max_length=32, gaussian=None)
    options = Options(base=str(tmp_path / "measured-on"), membership=["loss"])
    found = audit([str(tmp_path / "adapter")], str(tmp_path / "mine.json"), options)["adapter"]
    said = [text for text in found.warnings if "trained-on" in text and "measured-on" in text]
    assert len(said) == (not copied) and set(said) <= set(defects([found], [], [], 0.2))


def test_tokenizers_that_write_rows_otherwise_are_noticed(subject):
    """One vocabulary, but BOS before a row or not, or another chat template."""
    put, named = (ZOO["byte-level, BOS put (Llama 3)"]() for _ in range(2))
    named.backend_tokenizer.post_processor = processors.ByteLevel()
    rows = subject(max_length=64, max_new_tokens=4).sets["train"]
    assert put.get_vocab() == named.get_vocab()
    assert writes_otherwise(put, named, rows, Encoding())
    assert not writes_otherwise(put, put, rows, Encoding())
    put.chat_template = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
    assert not writes_otherwise(put, named, rows, Encoding(chat_template=True))  # a base without a template
    named.chat_template = "{% for m in messages %}{{ m['role'] + m['content'] }}</s>{% endfor %}"
    assert writes_otherwise(put, named, rows, Encoding(chat_template=True))
