"""Stages of a run: skipped, rerun, resumed, and never half-written."""

import contextlib
import errno
import json
import os
import shutil
from importlib import metadata
from pathlib import Path

import pytest
import torch

from llm_unlearn.config.recipe import build_recipe
from llm_unlearn.errors import DiskFullError, InputError, NonFiniteLossError
from llm_unlearn.files import fingerprint, is_disk_full, write_json, write_text
from llm_unlearn.runs.language_run import LanguageRun
from llm_unlearn.runs.stages import Stage, Stages
from llm_unlearn.runs.training_stages import poison_stages

pytestmark = pytest.mark.unit


class Run:
    """A directory with one stage whose work is counted."""

    def __init__(self, root: Path, lines: pytest.LogCaptureFixture) -> None:
        self.root, self.lines, self.worked = root, lines, []
        self.output = root / "out" / "result.txt"

    @property
    def logged(self) -> list[str]:
        return self.lines.messages

    def go(self, inputs="a", work=None, name="unlearned/kl") -> None:
        def default(work_dir: Path) -> None:
            self.worked.append(inputs)
            write_text(self.output, str(inputs))

        Stages(self.root).run(Stage(name, inputs, [self.output], work or default))


@pytest.fixture
def run(tmp_path, caplog) -> Run:
    caplog.set_level("INFO", "llm_unlearn")
    return Run(tmp_path, caplog)


def whole_checkpoint(work_dir: Path, step: int = 1) -> Path:
    from safetensors.torch import save_file

    path = work_dir / f"checkpoint-{step}"
    path.mkdir()
    save_file({"w": torch.zeros(2)}, path / "model.safetensors")
    torch.save({}, path / "optimizer.pt")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


class TestSkipping:
    def test_a_stage_that_is_done_is_skipped_and_says_so(self, run):
        run.go()
        run.go()
        assert run.worked == ["a"]
        assert run.logged[0] == "unlearned/kl: running" and len(run.logged) == 2
        assert run.logged[1].startswith("unlearned/kl: ") and "skipped" in run.logged[1]

    def test_changed_inputs_run_it_again(self, run):
        run.go("a")
        run.go("b")
        run.go("b")
        assert run.worked == ["a", "b"]
        assert run.output.read_text() == "b"

    def test_inputs_changed_back_run_it_again_since_the_output_is_of_others(self, run):
        for inputs in ("a", "b", "a"):
            run.go(inputs)
        assert run.worked == ["a", "b", "a"]

    def test_a_missing_output_runs_it_again(self, run):
        run.go()
        run.output.unlink()
        run.go()
        assert run.worked == ["a", "a"]
        assert run.output.exists()

    @pytest.mark.parametrize("content", ["", '{"key": "', "[]", "{}", '{"key": 3}', '{"key": "x", "made_by": 3}'])
    @pytest.mark.parametrize("folder", [".stages", ".work/unlearned_kl"])
    def test_a_damaged_mark_is_named_and_deleting_it_runs_it_again(self, run, folder, content):
        def killed(work_dir: Path) -> None:
            raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            run.go(work=None if folder == ".stages" else killed)
        (mark,) = (run.root / folder).glob("*.json")
        mark.write_text(content)
        with pytest.raises(InputError) as error:
            run.go()
        assert str(mark) in str(error.value) and "delete it" in str(error.value)
        before = len(run.worked)
        mark.unlink()
        run.go()
        assert len(run.worked) == before + 1

    def test_nothing_but_the_output_and_the_mark_is_left(self, run):
        run.go()
        assert {p.name for p in run.root.iterdir()} == {"out", ".stages"}

    def test_the_key_is_of_the_inputs_and_not_of_their_order(self):
        assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
        assert fingerprint([1, 2]) != fingerprint([2, 1])
        assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})


def installed(monkeypatch, **others: str) -> None:
    """Pretend that other versions of libraries are installed."""
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: others.get(name) or version(name))


class TestVersions:
    """What other versions of the libraries, or of our code, made is made again, and said."""

    def warnings(self, run) -> list[str]:
        return [record.getMessage() for record in run.lines.records if record.levelname == "WARNING"]

    def test_other_libraries_are_named_and_the_stage_is_made_again(self, run, monkeypatch):
        installed(monkeypatch, torch="2.1.0+cpu", transformers="5.0.0")
        run.go()
        installed(monkeypatch, torch="2.2.0", transformers="5.0.0")
        run.go()
        (warning,) = self.warnings(run)
        assert "unlearned/kl" in warning and "torch 2.1.0+cpu, now 2.2.0" in warning and "transformers" not in warning
        assert run.worked == ["a", "a"]
        run.go()
        assert run.worked == ["a", "a"] and len(self.warnings(run)) == 1

    def test_another_build_and_an_optional_library_that_is_new_do_not_count(self, run, monkeypatch):
        installed(monkeypatch, torch="2.1.0+cpu")
        run.go()
        (mark,) = (run.root / ".stages").iterdir()
        tree = json.loads(mark.read_text())
        del tree["made_by"]["versions"]["scipy"]
        mark.write_text(json.dumps(tree))
        installed(monkeypatch, torch="2.1.0+cu126")
        run.go()
        assert run.worked == ["a"] and self.warnings(run) == []

    def test_a_killed_stage_does_not_go_on_with_other_libraries(self, run, monkeypatch):
        def killed(work_dir: Path) -> None:
            whole_checkpoint(work_dir)
            raise KeyboardInterrupt

        found = []

        def work(work_dir: Path) -> None:
            found.extend(work_dir.glob("checkpoint-*"))
            write_text(run.output, "x")

        installed(monkeypatch, peft="0.1")
        with pytest.raises(KeyboardInterrupt):
            run.go(work=killed)
        installed(monkeypatch, peft="0.2")
        run.go(work=work)
        assert found == [] and "peft 0.1, now 0.2" in self.warnings(run)[0]

    def test_what_other_runs_share_is_kept_and_said(self, run, monkeypatch):
        def go() -> bool:
            return Stages(run.root).run(
                Stage("base", "a", [run.output], lambda _: write_text(run.output, "x"), is_shared=True)
            )

        installed(monkeypatch, torch="2.1.0")
        assert go()
        installed(monkeypatch, torch="2.2.0")
        assert not go()
        assert "torch 2.1.0, now 2.2.0" in self.warnings(run)[0]

    def test_other_code_of_ours_changes_the_key(self):
        first, second = (Stage("a", 1, [], lambda _: None, code=code).key for code in (1, 2))
        assert first != second

    def test_what_made_each_stage_is_kept(self, run, monkeypatch):
        installed(monkeypatch, torch="2.1.0")
        run.go(name="unlearned/kl")
        installed(monkeypatch, torch="2.2.0")
        run.go(name="evaluation/kl")
        made_by = Stages(run.root).made_by()
        assert {name: entry["versions"]["torch"] for name, entry in made_by.items()} == {
            "unlearned/kl": "2.1.0",
            "evaluation/kl": "2.2.0",
        }
        assert all(entry["device"] and entry["processes"] == 1 for entry in made_by.values())

    def test_what_a_stage_says_of_itself_is_kept_beside_it(self, tmp_path):
        Stages(tmp_path).run(Stage("evaluation/kl", "a", [], lambda _: None, about={"precision": "tf32"}))
        (entry,) = Stages(tmp_path).made_by().values()
        assert entry["precision"] == "tf32" and entry["versions"]

    def test_hashes_are_taken_when_the_work_is_done_and_kept_in_the_mark(self, tmp_path):
        written = {}
        stage = Stage("evaluation/kl", "a", [], lambda _: written.update(model="1f"), hashes=lambda: dict(written))
        assert Stages(tmp_path).hashes(stage.name) == {}
        Stages(tmp_path).run(stage)
        assert Stages(tmp_path).hashes(stage.name) == {"model": "1f"}
        Stages(tmp_path).run(Stage("evaluation/npo", "a", [], lambda _: None))
        hashed, plain = Stages(tmp_path).made_by().values()
        assert hashed.keys() == plain.keys()  # environment.json shows it to everybody, and the hashes to nobody

    def test_a_folder_taken_from_another_run_keeps_what_made_it(self, run, tmp_path, caplog, monkeypatch):
        other = Run(tmp_path / "other", caplog)
        other.go()
        stage = Stage("unlearned/kl", "a", [run.output], lambda work_dir: None)
        assert Stages(run.root).adopt(stage, [other.root])
        assert Stages(run.root).made_by() == Stages(other.root).made_by()


class TestResuming:
    def kill(self, run, inputs="a"):
        def work(work_dir: Path) -> None:
            whole_checkpoint(work_dir)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run.go(inputs, work)

    def found_by(self, run, inputs) -> list[str]:
        """Names of the checkpoints that the next run of the stage finds."""
        found = []

        def work(work_dir: Path) -> None:
            found.extend(p.name for p in work_dir.glob("checkpoint-*"))
            write_text(run.output, "x")

        run.go(inputs, work)
        return found

    def test_a_killed_stage_finds_its_checkpoints_again(self, run):
        self.kill(run)
        assert self.found_by(run, "a") == ["checkpoint-1"]
        assert run.logged[-1] == "unlearned/kl: resuming"
        assert not (run.root / ".work").exists()

    def test_a_poison_stage_that_is_killed_goes_on_with_the_noise_that_it_began_with(self, tmp_path, monkeypatch):
        recipe = build_recipe(
            {
                "name": "r",
                "output_dir": str(tmp_path),
                "model": {"path": "m"},
                "data": {"verbalizers": {"a": " a", "b": " b"}},
                "poison": {"gaussian": {"fraction": 0.1, "epsilon": 1.0}},
            }
        )
        first, second = (LanguageRun(recipe, 0, tmp_path, quiet=True) for _ in range(2))
        monkeypatch.setattr(LanguageRun, "corrupted", lambda self, work_dir: (_ for _ in ()).throw(KeyboardInterrupt))
        (stage,) = poison_stages(first, {})
        with pytest.raises(KeyboardInterrupt):
            Stages(tmp_path).run(stage)
        assert second.secret == first.secret and poison_stages(second, {})[0].key == stage.key
        assert [path.stat().st_mode & 0o777 for path in tmp_path.rglob("secret.json")] == [0o600]

    def test_checkpoints_of_other_inputs_are_thrown_away(self, run):
        self.kill(run)
        assert self.found_by(run, "b") == []
        assert run.logged[-1] == "unlearned/kl: running"

    def test_a_stage_that_failed_while_it_replaced_a_result_is_not_done(self, run):
        run.go("a")
        self.kill(run, "b")
        run.go("a")
        assert run.worked == ["a", "a"]

    def test_an_unexpected_error_keeps_the_work(self, run):
        def work(work_dir: Path) -> None:
            (work_dir / "half").write_text("x")
            raise RuntimeError("boom")

        with pytest.raises(RuntimeError, match="boom"):
            run.go("a", work)
        assert (run.root / ".work" / "unlearned_kl" / "half").exists()


class TestRefusals:
    def test_bad_input_leaves_nothing_behind(self, run):
        def work(work_dir: Path) -> None:
            (work_dir / "half").write_text("x")
            raise InputError("bad row")

        with pytest.raises(InputError, match="bad row"):
            run.go("a", work)
        assert list(run.root.iterdir()) == []

    def test_an_earlier_result_stands(self, run):
        def refuse(work_dir: Path) -> None:
            raise InputError("bad row")

        run.go("a")
        with pytest.raises(InputError):
            run.go("b", refuse)
        run.go("a")
        assert run.worked == ["a"]

    def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(self, run):
        def work(work_dir: Path) -> None:
            whole_checkpoint(work_dir, 1)
            whole_checkpoint(work_dir, 2)
            (work_dir / "checkpoint-3").mkdir()  # cut off
            raise NonFiniteLossError("the loss is nan")

        with pytest.raises(NonFiniteLossError):
            run.go("a", work)
        assert [p.name for p in (run.root / ".work" / "unlearned_kl").glob("checkpoint-*")] == ["checkpoint-2"]


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


class TestFullDisk:
    def test_a_write_is_whole_or_not_at_all(self, tmp_path, monkeypatch):
        path = tmp_path / "a.json"
        write_json(path, {"old": 1})

        def half(self, text, encoding):
            with open(self, "w", encoding=encoding) as file:
                file.write(text[: len(text) // 2])
            no_space()

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", half)
            with pytest.raises(DiskFullError, match=r"a\.json: .*No space left"):
                write_json(path, {"new": 2})
        assert json.loads(path.read_text()) == {"old": 1}
        assert [p.name for p in tmp_path.iterdir()] == ["a.json"]

    def test_where_renaming_fails_the_old_file_stays(self, tmp_path, monkeypatch):
        path = tmp_path / "a.txt"
        write_text(path, "old")
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", no_space)
            with pytest.raises(DiskFullError):
                write_text(path, "new")
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]

    def test_a_place_that_cannot_be_written_is_bad_input_and_not_a_full_disk(self, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(InputError, match="cannot be written") as error:
            write_text(tmp_path / "file" / "below", "y")
        assert not isinstance(error.value, DiskFullError)

    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, "No space left on device"),
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0: file write failed"),
            Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
        ],
    )
    def test_the_many_errors_of_a_full_disk_keep_the_checkpoint_and_say_how_to_go_on(self, error, run):
        def work(work_dir: Path) -> None:
            whole_checkpoint(work_dir)
            raise error

        with pytest.raises(DiskFullError, match="no space left.*'unlearned/kl'.*free some"):
            run.go("a", work)
        assert (run.root / ".work" / "unlearned_kl" / "checkpoint-1").is_dir()
        run.go("a")
        assert run.logged[-1] == "unlearned/kl: resuming"
        assert run.worked == ["a"]

    def test_a_full_disk_while_a_result_was_replaced_does_not_leave_it_as_done(self, run):
        run.go("a")
        with pytest.raises(DiskFullError):
            run.go("b", no_space)
        run.go("a")
        assert run.worked == ["a", "a"]

    def test_a_cause_further_down_counts_and_another_error_does_not(self):
        try:
            try:
                no_space()
            except OSError as error:
                raise ValueError("while saving") from error
        except ValueError as error:
            assert is_disk_full(error)
        assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))
        assert not is_disk_full(None)


def test_stamps_see_a_changed_file_in_a_folder_or_behind_a_glob(tmp_path):
    from llm_unlearn.files import file_stamps

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text("1")
    paths = [str(tmp_path / "data"), str(tmp_path / "data" / "*.jsonl"), "owner/name"]
    before = file_stamps(paths)
    assert len(before) == 2
    (tmp_path / "data" / "a.jsonl").write_text("12")
    assert file_stamps(paths) != before


def test_a_base_depends_on_the_unlabelled_text_of_a_saved_data_set(tmp_path):
    from llm_unlearn.config.recipe import build_recipe
    from llm_unlearn.training.pretraining import base_folder

    (tmp_path / "rows.arrow").write_text("one")
    recipe = build_recipe(
        {
            "name": "r",
            "output_dir": "out",
            "model": {"architecture": {"model_type": "gpt2"}},
            "pretrain": {},
            "data": {"source": str(tmp_path), "verbalizers": {"bad": " bad", "good": " good"}},
            "poison": {"gaussian": {"fraction": 0.2, "epsilon": 0.1}},
        }
    )
    before = base_folder(recipe)
    (tmp_path / "rows.arrow").write_text("two")
    assert base_folder(recipe) != before


class TestAdopting:
    @pytest.fixture
    def other(self, tmp_path, caplog) -> Run:
        run = Run(tmp_path / "other", caplog)
        run.go()
        return run

    def adopt(self, run: Run, other: Run, inputs: str = "a") -> bool:
        stage = Stage("unlearned/kl", inputs, [run.output], lambda work_dir: None)
        return Stages(run.root).adopt(stage, [run.root / "absent", other.root])

    def test_a_finished_stage_is_taken_with_its_folder_and_counts_as_done(self, run, tmp_path, other):
        (other.output.parent / "weights").write_text("w")
        assert self.adopt(run, other)
        assert (run.output.parent / "weights").read_text() == "w" and run.output.read_text() == "a"
        run.go()
        assert not run.worked and "skipped" in run.logged[-1]

    def test_outputs_of_one_folder_are_taken_at_once(self, run, other, monkeypatch):
        copied, copytree = [], shutil.copytree
        (other.output.parent / "step-3").mkdir()
        monkeypatch.setattr("shutil.copytree", lambda *a, **k: copied.append(a[0]) or copytree(*a, **k))
        stage = Stage("unlearned/kl", "a", [run.output, run.output.parent / "step-3"], lambda work_dir: None)
        assert Stages(run.root).adopt(stage, [other.root]) and copied.count(other.output.parent) == 1
        assert (run.output.parent / "step-3").is_dir()

    def test_other_inputs_or_a_stage_that_was_not_finished_are_not_taken(self, run, tmp_path, other):
        assert not self.adopt(run, other, inputs="b")
        other.output.unlink()
        assert not self.adopt(run, other)
        assert not run.output.exists()

    def test_what_is_done_already_is_left_alone(self, run, tmp_path, other):
        run.go()
        other.output.write_text("changed")
        assert not self.adopt(run, other)
        assert run.output.read_text() == "a"

    def test_rewriting_the_copy_leaves_the_original(self, run, tmp_path, other):
        self.adopt(run, other)
        run.go(inputs="b")
        assert (run.output.read_text(), other.output.read_text()) == ("b", "a")
