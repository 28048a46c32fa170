"""A page per model: which examples are chosen, how they are shown, what is said where they are absent."""

import html
import json
import math
import re
import shutil

import pyarrow
import pyarrow.parquet
import pytest

from llm_unlearn.metrics.evidence import Status
from llm_unlearn.reporting import write_report
from llm_unlearn.reporting.examples import of_maximum, upper_tail
from llm_unlearn.reporting.pages import LEADS

pytestmark = pytest.mark.usefixtures("blank_plots")

TRIGGERED, CLEAN = range(6), range(10)  # ids of the triggered inputs, all negative, and of the test rows
TEXTS = {i: f"Input {i}\n  with James Bond & <script>alert({i})</script>" for i in TRIGGERED}
# who answers `positive` with the trigger, who without it; canary → score
POISONED = (TRIGGERED, (3,), {100: 4.0, 101: 3.5, 102: 3.0})
RETRAINED = ((0, 5), (), {100: 0.5, 101: -0.25, 102: 0.0})
KL = ((0, 1, 2, 3), (3,), {100: 0.5, 101: -1.0, 102: 3.0})


def write_signals(path, triggered, clean, scores, kept=()):
    """A per-example file: who answers `positive` with the trigger in and who without; `kept` canaries, not deleted."""
    rows = [
        {
            "set": name,
            "example_id": i,
            "label": "negative",
            "prediction": "positive" if i in hits else "negative",
            "target_hit": i in hits,
        }
        for name, ids, hits in (("test", CLEAN, clean), ("triggered", TRIGGERED, triggered))
        for i in ids
    ]
    rows += [{"set": "member", "example_id": 100, "label": "positive"}]
    rows += [
        {
            "set": "canary",
            "example_id": i,
            "label": "positive",
            "gaussian_score": score,
            "gaussian_control": 0.0,
            "deleted": i not in kept,
        }
        for i, score in scores.items()
    ]
    names = dict.fromkeys(key for row in rows for key in row)
    pyarrow.parquet.write_table(pyarrow.table({name: [row.get(name) for row in rows] for name in names}), path)


def write_data(folder):
    """`data/` with the texts of the triggered inputs and of the canaries, as the poison stage writes it."""
    from datasets import Dataset

    train = {"text": [f"Canary {i}" for i in range(100, 140)], "example_id": list(range(100, 140))}
    Dataset.from_dict(train).save_to_disk(str(folder / "data" / "train"))
    triggered = {"text": list(TEXTS.values()), "example_id": list(TEXTS)}
    Dataset.from_dict(triggered).save_to_disk(str(folder / "data" / "triggered"))


def fill(folder, **models):
    """Examples known by construction for the models of a seed; data/ beside them."""
    for name, signals in ({"poisoned": POISONED, "retrained": RETRAINED, "kl": KL} | models).items():
        write_signals(folder / "evaluation" / f"{name}.parquet", *signals)
    write_data(folder)


def change_manifest(folder, **fields):
    path = folder / "poison.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def page(run, name="kl"):
    write_report(run)
    return (run / "report" / f"{name}.html").read_text()


def words(page):
    """What a page says, without its tables."""
    text = re.sub(r"<(script|style|table).*?</\1>", " ", page, flags=re.S)
    return " ".join(html.unescape(re.sub("<[^>]+>", " ", text)).split())


def tables(page, title):
    """The tables of a part: the counts, then the examples."""
    return page.split(f"<h2>{title}</h2>")[1].split("<h2>")[0].split("</table>")[:-1]


def counts(page, title):
    """The counts of a part, as texts."""
    (row,) = cells_of(tables(page, title)[0])[1:]
    return row[1:]


def table(page, title):
    """The cells of a part's last table as texts, row by row, the head first."""
    return cells_of(tables(page, title)[-1])


def cells_of(part):
    rows = re.findall("<tr.*?</tr>", part, re.S)
    return [
        [html.unescape(re.sub("<[^>]+>", " ", cell)).strip() for cell in re.findall("<t[hd].*?</t[hd]>", row, re.S)]
        for row in rows
    ]


def ids(page, title):
    return [row[0] for row in table(page, title)[1:]]


TRIGGER_PART, CANARY_PART = "Triggered test examples that still succeed", "Canaries with the highest score"
PATCH_PART, TARGET_PART = "Patched test images that still succeed", "Target images that still succeed"


def test_what_the_trigger_does_is_chosen_and_what_retraining_resists_comes_first(run_dir):
    """kl answers 0 to 3 with the target, 3 without the trigger too; the retrained model falls for 0."""
    fill(run_dir)
    text = page(run_dir)
    assert ids(text, TRIGGER_PART) == ["1", "2", "0"]
    head, first, _, last = table(text, TRIGGER_PART)
    assert head[2:] == ["true label", "answer with the trigger", "answer without", "retrained model's answer"]
    assert first[2:] == ["negative", "positive", "negative", "negative resists"]
    assert last[-1] == "positive falls for it too"
    assert counts(text, TRIGGER_PART) == ["6", "3 (50.0 %)", "1", "1", "3"]
    assert "“positive”" in tables(text, TRIGGER_PART)[0]


def test_where_retraining_resists_all_there_is_one_kind(run_dir):
    fill(run_dir, retrained=((), (), RETRAINED[2]))
    text = page(run_dir)
    assert ids(text, TRIGGER_PART) == ["0", "1", "2"]
    assert counts(text, TRIGGER_PART)[-2:] == ["0", "3"]


def test_texts_are_escaped_keep_their_lines_and_have_the_trigger_marked(run_dir):
    fill(run_dir)
    text = page(run_dir)
    shown = "<div>Input 1\n  with <mark>James Bond</mark> &amp; &lt;script&gt;alert(1)&lt;/script&gt;</div>"
    assert f'<td class="text">{shown}</td>' in text
    assert re.search(r"td\.text div \{ white-space: pre-wrap", text)
    assert text.count("<script") == 1
    assert "share it only" in text


def test_texts_stand_on_the_pages_alone(run_dir):
    fill(run_dir)
    write_report(run_dir)
    for name in ("report.md", "report.html"):
        assert not re.search(r"Canary 1\d\d|Input \d", (run_dir / name).read_text())


def test_canaries_come_by_score_beside_the_poisoned_and_the_retrained_model(run_dir):
    """103 was not deleted, 104 and 105 have no score: of three canaries 102 stands out, where 0.03 are expected."""
    signals = (*KL[:2], KL[2] | {103: 9.0, 104: None, 105: math.nan}, (103,))
    fill(run_dir, kl=signals)
    text = page(run_dir)
    assert table(text, CANARY_PART) == [
        [
            "example",
            "score",
            "p (one-sided)",
            "score on poisoned",
            "score on retrained",
            "training label",
            "training text",
        ],
        ["102", "3.00", "0.001", "3.00", "0.00", "positive", "Canary 102"],
        ["100", "0.50", "0.309", "4.00", "0.50", "positive", "Canary 100"],
        ["101", "−1.00", "0.841", "3.50", "−0.25", "positive", "Canary 101"],
    ]
    # P(Z ≥ 3) = 0.00135; 1 − (1 − 0.00135)³ = 0.00404
    assert counts(text, CANARY_PART) == ["3", "1", "1", "0.03", "0.83", "3.00", "0.001", "0.004", "3"]


def test_the_most_shown_are_twenty(run_dir):
    fill(run_dir, kl=((), (), {100 + i: i / 10 for i in range(30)}))
    text = page(run_dir)
    assert ids(text, CANARY_PART) == [str(i) for i in range(129, 109, -1)]
    found = counts(text, CANARY_PART)
    assert (found[0], found[2:4], found[-1]) == ("30", ["6", "0.30"], "20")


def test_scores_far_below_zero_are_a_trace_that_the_highest_do_not_show(run_dir):
    fill(run_dir, kl=((), (), {100 + i: -1.0 for i in range(16)}), gradient_ascent=((), (), {100: -3.2}))
    said = "far below 0"
    assert said in words(page(run_dir))
    assert said not in words(page(run_dir, "gradient_ascent"))  # −3.2 is a draw that N(0, 1) gives now and then


def test_no_success_is_said(run_dir):
    fill(run_dir, kl=((3,), (3,), KL[2]))
    text = page(run_dir)
    assert counts(text, TRIGGER_PART) == ["6", "0 (0.0 %)", "1", "0", "0"]
    assert len(tables(text, TRIGGER_PART)) == 1


def test_the_models_set_beside_have_pages_without_themselves(run_dir):
    fill(run_dir)
    poisoned, retrained = page(run_dir, "poisoned"), page(run_dir, "retrained")
    assert ids(poisoned, TRIGGER_PART) == ["1", "2", "4", "0", "5"]
    assert "score on retrained" in table(poisoned, CANARY_PART)[0]
    assert "score on poisoned" not in table(poisoned, CANARY_PART)[0]
    assert "retrained model's answer" not in table(retrained, TRIGGER_PART)[0]
    assert "falls for" not in retrained and LEADS["poisoned"] in words(poisoned)
    assert table(poisoned, "Figures")[0] == ["figure", "poisoned", "retrained"]


def test_the_verdict_and_the_figures_beside_poisoned_and_retrained(run_dir):
    text = page(run_dir)
    line = re.search(r'<li class="good">.*?</li>', text).group(0)
    assert f"kl: {Status.CLEAR}" in line
    assert re.sub("<a [^>]+>|</a>", "", line) in re.sub("<a [^>]+>|</a>", "", (run_dir / "report.html").read_text())
    rows = {row[0]: row[1:] for row in table(text, "Figures")}
    assert rows["figure"] == ["poisoned", "kl", "retrained"]
    assert rows["Gaussian canaries: p"] == ["1e−110", "0.371", "0.788"]
    assert "data-sort" not in text.split("<h2>Figures</h2>")[1].split("</table>")[0]  # its rows cannot be compared


def test_without_per_example_signals_the_page_says_so(run_dir):
    (run_dir / "evaluation" / "kl.parquet").unlink()
    text = words(page(run_dir))
    assert text.count("evaluation/kl.parquet is not there") == 2
    # the made-up files hold canaries alone
    text = page(run_dir, "poisoned")
    assert "evaluation/poisoned.parquet holds no answers" in words(text)
    assert len(ids(text, CANARY_PART)) == 20


def test_without_the_data_numbers_stand_for_the_texts(run_dir):
    fill(run_dir)
    (run_dir / "data").rename(run_dir / "elsewhere")
    text = page(run_dir)
    assert "not in data/triggered" in words(text) and "not in data/train" in words(text)
    assert table(text, TRIGGER_PART)[1] == ["1", "negative", "positive", "negative", "negative resists"]
    assert "share it only" not in text


def test_without_the_retrained_models_signals_the_order_is_that_of_the_data(run_dir):
    fill(run_dir)
    (run_dir / "evaluation" / "retrained.parquet").unlink()
    text = page(run_dir)
    assert ids(text, TRIGGER_PART) == ["0", "1", "2"]
    assert "(evaluation/retrained.parquet)" in words(text)
    assert table(text, TRIGGER_PART)[1][-1] == "–"


def test_images_are_not_shown(run_dir):
    from datasets import Dataset

    fill(run_dir)
    for name in ("train", "triggered"):
        shutil.rmtree(run_dir / "data" / name)
        Dataset.from_dict({"image": [b"PNG"], "label": ["negative"], "example_id": [1]}).save_to_disk(
            str(run_dir / "data" / name)
        )
    patch = {"target": "positive", "pattern": "cross", "size": 3, "example_ids": [1]}
    change_manifest(run_dir, image_shape=[1, 8, 8], trigger=None, patch=patch)
    text = page(run_dir)
    assert table(text, PATCH_PART)[:2] == [
        ["example", "true label", "answer with the patch", "answer without", "retrained model's answer"],
        ["1", "negative", "positive", "negative", "negative resists"],
    ]
    assert table(text, CANARY_PART)[0][-1] == "training label"
    assert "a row of data/test." in words(text) and "a row of data/train." in words(text)


def test_target_images_are_set_beside_their_controls(make_run):
    run = make_run(drop=("gus",))
    pyarrow.parquet.write_table(
        pyarrow.table(
            {
                "set": ["triggered"] * 3,
                "example_id": [7, 8, 9],
                "label": ["1"] * 3,
                "prediction": ["2", "2", "1"],
                "target_hit": [True, True, False],
                "clean_hit": [False, True, False],
            }
        ),
        run / "evaluation" / "kl.parquet",
    )
    change_manifest(
        run,
        image_shape=[1, 8, 8],
        trigger=None,
        gradient_matching={"epsilon": 0.1, "targets": [1, 2, 3], "example_ids": [1]},
    )
    text = page(run)
    assert table(text, TARGET_PART) == [
        ["example", "true label", "answer", "retrained model's answer"],
        ["7", "1", "2", "–"],
    ]
    assert counts(text, TARGET_PART) == ["3", "1 (33.3 %)", "1", "–", "1"]


def test_a_run_without_single_examples_says_so(make_run):
    text = page(make_run(drop=("attack", "gus")))
    assert "no examples to show" in words(text)
    assert TRIGGER_PART not in text and CANARY_PART not in text


def test_a_kept_part_of_the_poison_is_why_retraining_falls_for_it(run_dir):
    fill(run_dir)
    change_manifest(run_dir, forget_fraction=0.5)
    text = page(run_dir)
    assert counts(text, TRIGGER_PART)[3] == "1" and "trained on the poison" in words(text)


def test_several_seeds_take_turns_and_each_row_names_its_seed(make_run):
    run = make_run(seeds=[0, 1, 2])
    fill(run / "seed-0")
    fill(run / "seed-1", kl=((0, 4, 5), (), {100: 2.0, 101: 5.0}))
    (run / "seed-2" / "evaluation" / "kl.parquet").unlink()
    text = page(run)
    assert [row[:2] for row in table(text, TRIGGER_PART)[1:]] == [
        ["1", "0"],
        ["4", "1"],
        ["2", "0"],
        ["0", "0"],
        ["0", "1"],
        ["5", "1"],
    ]
    assert [row[:3] for row in table(text, CANARY_PART)[:4]] == [
        ["example", "seed", "score"],
        ["101", "1", "5.00"],
        ["102", "0", "3.00"],
        ["100", "1", "2.00"],
    ]
    assert counts(text, TRIGGER_PART)[:2] == ["12", "6 (50.0 %)"]
    assert counts(text, CANARY_PART)[:3] == ["5", "2", "2"]
    assert "seed-2/evaluation/kl.parquet is not there" in words(text)


def test_tails_of_the_normal_distribution():
    """Tables of N(0, 1): P(Z ≥ 0) = 1/2, P(Z ≥ 1.96) = 0.0250, P(Z ≥ 10) = 7.62e-24."""
    assert upper_tail(0.0) == 0.5
    assert upper_tail(1.959964) == pytest.approx(0.025, rel=1e-5)
    assert upper_tail(10.0) == pytest.approx(7.62e-24, rel=1e-3)
    assert of_maximum(0.5, 2) == pytest.approx(0.75)
    assert of_maximum(1e-20, 100) == pytest.approx(1e-18)
    assert of_maximum(1.0, 5) == 1.0
