"""What a report calls the poisons of a run, and the contact sheet."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.evidence import Status
from llm_unlearn.reporting.contact_sheet import contact_sheet_section
from llm_unlearn.reporting.report import compose, write_report
from llm_unlearn.reporting.run_results import read_results
from llm_unlearn.reporting.verdicts import judge

pytestmark = pytest.mark.unit

SHARED = {
    "train_size": 1000,
    "image_shape": [1, 8, 8],
    "classes": ["0", "1"],
    "forget_fraction": 1.0,
    "forget_ids": [1, 2, 3],
    "data_sha256": "0",
}
PATCH = {"patch": {"example_ids": [1, 2, 3], "size": 3, "pattern": "white", "target": "7"}}
MATCHING = {"gradient_matching": {"example_ids": [1, 2], "epsilon": 16 / 255, "targets": [{}] * 8}}
CANCELLING = {"gradient_cancelling": {"example_ids": [1, 2]}}
LOST = {"poisoned": (0.08, 1e-9), "kl": (0.07, 1e-7), "gradient_descent": (0.01, 0.4)}


@pytest.fixture
def image_run(make_run):
    """`image_run(poison)`: a made-up run whose manifest is that of images."""

    def make(poison: dict):
        run_dir = make_run()
        (run_dir / "poison.json").write_text(json.dumps({**SHARED, **poison}))
        for path in (run_dir / "evaluation").glob("*.json"):
            doc = json.loads(path.read_text())
            if not ("patch" in poison or "gradient_matching" in poison):
                doc["attack"] = None
            doc["gus"] = doc["loss_rank"] = None
            if doc["oracle"]:
                mean, p = LOST.get(path.stem, (0.0, 1.0))
                doc["oracle"]["accuracy_lost"] = {
                    "mean": mean,
                    "p_value": p,
                    "ci95": [mean - 0.02, mean + 0.02],
                    "n": 500,
                }
            path.write_text(json.dumps(doc))
        return run_dir

    return make


def test_a_patch_is_no_trigger(image_run):
    report = compose(read_results(image_run(PATCH)))
    assert "3 (0.3 %)" in report.poisoned and "white, 3 × 3 pixels" in report.poisoned and "“7”" in report.poisoned
    assert ("ASR", "Patch") in report.table.columns and "patched test images" in report.table_note
    fired = [verdict.because for verdict in report.verdicts]
    assert not any("trigger" in text for text in (report.poisoned, *fired, *report.warnings, report.table_note))


@pytest.mark.parametrize(
    ("noise", "said", "unsaid"),
    [
        ({"secret": "0a1b2c", "hidden_ids": [1]}, "1 of the deleted ones are hidden", "fixed by the recipe"),
        ({"secret": None, "hidden_ids": [1]}, "fixed by the recipe", "None"),
        ({}, "fixed by the recipe", "hidden"),  # of a run from before there were secrets
    ],
)
def test_canaries_are_hidden_and_their_noise_is_a_secret_or_not(image_run, noise, said, unsaid):
    report = compose(read_results(image_run({"gaussian": {"epsilon": 0.1, "example_ids": [1, 2], **noise}})))
    assert said in report.poisoned and unsaid not in report.poisoned


def test_the_targets_of_gradient_matching_are_spoken_of_as_such(image_run):
    report = compose(read_results(image_run(MATCHING)))
    assert "8 target images" in report.poisoned and "16/255" in report.poisoned
    assert ("lift", "Targets") in report.table.columns
    (verdict,) = (verdict for verdict in report.verdicts if verdict.model == "gradient_descent")
    assert "target lift" in verdict.because


def test_gradient_cancelling_is_judged_by_the_accuracy_that_is_lost(image_run):
    results = read_results(image_run(CANCELLING))
    report = compose(results)
    assert ("accuracy lost (points)", "Gradient cancelling") in report.table.columns
    assert judge(results, "kl").status == Status.REMAINS != judge(results, "gradient_descent").status
    assert "accuracy lost 0.07 [" in judge(results, "kl").because
    assert dict(report.table.rows)["poisoned"][0].value == "8.0"
    assert not report.warnings


def test_a_cancelling_that_did_not_take_is_warned_of(image_run):
    run_dir = image_run(CANCELLING)
    path = run_dir / "evaluation" / "poisoned.json"
    doc = json.loads(path.read_text())
    doc["oracle"]["accuracy_lost"] |= {"mean": 0.01, "ci95": [-0.02, 0.04]}
    path.write_text(json.dumps(doc))
    assert any("(gradient cancelling)" in text for text in compose(read_results(run_dir)).warnings)


def test_texts_have_no_column_of_lost_accuracy(make_run):
    assert "accuracy lost (points)" not in [title for title, _ in compose(read_results(make_run())).table.columns]


def test_the_contact_sheet_is_a_picture_with_a_pair_for_each_image(image_run):
    run_dir = image_run(PATCH)
    generator = np.random.default_rng(0)
    clean = generator.integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
    poisoned = clean.copy()
    poisoned[:, :, :2] = 255
    np.savez(
        run_dir / "contact_sheet.npz",
        kind=np.array(["patch"] * 3 + ["gaussian"] * 2),
        clean=clean,
        poisoned=poisoned,
        label=np.array(list("12345")),
        poisoned_label=np.array(list("77745")),
    )
    section = contact_sheet_section(read_results(run_dir))
    (plot,) = section.plots
    assert "patch and Gaussian noise" in plot.title and "1, 2, 3, 4, 5" in plot.alt
    picture = np.asarray(Image.open(io.BytesIO(plot.content)).convert("RGB")).reshape(-1, 3)
    colours = {tuple(colour) for colour in np.unique(picture, axis=0)}
    shown = {tuple(int(v) for v in clean[i, :, y, x]) for i in range(5) for y in range(8) for x in range(8)}
    assert len(shown - colours) < 0.02 * len(shown)  # every pixel of the clean images is there
    write_report(run_dir)
    assert (run_dir / "plots" / "contact_sheet.png").is_file()


def test_a_damaged_sheet_is_named_and_none_is_no_section(image_run):
    run_dir = image_run(PATCH)
    assert contact_sheet_section(read_results(run_dir)) is None
    (run_dir / "contact_sheet.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"contact_sheet.npz: cannot be read"):
        contact_sheet_section(read_results(run_dir))
