"""The uploader against a local hub and the real client: whole or not at all, private unless asked, no more."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import HfApi
from safetensors.numpy import save
from safetensors.torch import save_file

from llm_unlearn.errors import InputError
from llm_unlearn.hub.package import Package, model_files, on_base
from llm_unlearn.hub.upload import describe, pull, push

PNG = b"\x89PNG\r\n\x1a\n"


def weights(n: int) -> bytes:
    return save({"w": np.arange(n, dtype=np.float32)})


FILES = {
    "README.md": b"---\ntags:\n- llm-unlearn\n---\n\ncard",
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": weights(2560),
    "recipe.yaml": b"name: x\n",
    "evaluation/kl.json": b"{}",
    "plots/cost.png": PNG * 50,
}
ADAPTER = {
    "README.md": b"---\ntags:\n- llm-unlearn\n- y\n---\n\ncard",
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": weights(1),
}


@pytest.fixture(autouse=True)
def online(monkeypatch, tmp_path_factory):
    """The tests run with HF_HUB_OFFLINE."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "absent")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between the client's tries


@pytest.fixture
def server():
    with HubServer() as running:
        yield running


@pytest.fixture
def api(server):
    return HfApi(endpoint=server.url, token="hf_good")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- up and down


def test_a_package_goes_up_in_one_commit_to_a_private_repository_and_comes_back_equal(server, api, tmp_path):
    url = push(Package(FILES), "me/model", api=api)
    assert server.repositories["me/model"].private and server.repositories["me/model"].commits == 2  # one made it
    assert {k: v for k, v in server.files("me/model").items() if k != ".gitattributes"} == FILES
    assert url.startswith(f"{server.url}/me/model/commit/")
    assert contents(pull("me/model", tmp_path / "back", api=api)) == FILES


def test_files_are_read_where_they_lie(server, api, tmp_path):
    (tmp_path / "w").write_bytes(weights(3))
    push(Package({"README.md": FILES["README.md"], "model.safetensors": tmp_path / "w"}), "me/model", api=api)
    assert server.files("me/model")["model.safetensors"] == weights(3)


def test_public_only_where_it_was_said(server, api):
    push(Package(FILES), "me/open", private=False, api=api)
    assert not server.repositories["me/open"].private
    with pytest.raises(InputError, match="is there and public.*--no-private"):
        push(Package(ADAPTER), "me/open", api=api)
    assert "adapter_config.json" not in server.files("me/open")
    push(Package(ADAPTER), "me/open", private=False, api=api)
    push(Package(FILES), "me/closed", api=api)
    push(Package(FILES | {"recipe.yaml": b"name: y\n"}), "me/closed", private=False, api=api)
    assert server.repositories["me/closed"].private  # what is private stays so


def test_an_upload_replaces_what_an_earlier_one_left_and_nothing_else(server, api):
    push(Package(FILES), "me/model", api=api)
    theirs = {"LICENSE": b"mine", "notes/why.md": b"because"}
    server.repositories["me/model"].commit("main", server.files("me/model") | theirs)
    push(Package(ADAPTER), "me/model", api=api)
    assert {k: v for k, v in server.files("me/model").items() if k != ".gitattributes"} == ADAPTER | theirs


def test_somebody_elses_model_is_not_replaced(server, api):
    push(Package(FILES), "me/model", api=api)
    theirs = {"README.md": b"my own model", "config.json": b"{}", "model.safetensors": b"theirs"}
    server.repositories["me/model"].commit("main", theirs)
    with pytest.raises(InputError, match="not uploaded by this tool"):
        push(Package(ADAPTER), "me/model", api=api)
    assert server.files("me/model") == theirs
    server.repositories["me/model"].commit("main", {"README.md": b"made on the hub's page"})
    push(Package(ADAPTER), "me/model", api=api)  # nothing but a page is there


def test_what_is_removed_is_logged(server, api, caplog):
    caplog.set_level("INFO", "llm_unlearn")
    push(Package(FILES), "me/model", api=api)
    assert not caplog.messages
    push(Package(ADAPTER), "me/model", api=api)
    (line,) = caplog.messages
    assert "model.safetensors" in line and "evaluation/kl.json" in line


def test_of_two_pushes_at_a_time_one_is_told_to_try_again(server, api, monkeypatch):
    push(Package(FILES), "me/model", api=api)
    commit = HfApi.create_commit

    def meanwhile(self, *args, **kwargs):
        server.repositories["me/model"].commit("main", FILES | {"recipe.yaml": b"of the other"})
        return commit(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", meanwhile)
    with pytest.raises(InputError, match="meanwhile.*same command again"):
        push(Package(ADAPTER), "me/model", api=api)
    files = server.files("me/model")
    assert files["recipe.yaml"] == b"of the other" and "model.safetensors" in files


def test_two_models_of_one_name_are_not_mixed(server, api, tmp_path):
    push(Package(FILES), "me/model", api=api)
    server.repositories["org/model"] = type(server.repositories["me/model"])(private=True)
    server.repositories["org/model"].commit("main", ADAPTER)
    server.breaks += ["GET /me/model/resolve/.*/model.safetensors"] * 20
    with pytest.raises(InputError, match="connection"):
        pull("me/model", tmp_path / "model", api=api)
    assert contents(pull("org/model", tmp_path / "model", api=api)) == ADAPTER


def test_the_hubs_own_words_are_passed_on(server, api):
    server.refuses = ("POST .*/commit/", 403, "storage limit reached")
    with pytest.raises(InputError, match=r"storage limit reached.*Nothing was committed"):
        push(Package(FILES), "me/model", api=api)


def test_a_card_that_the_hub_refuses_is_bad_input(server, api):
    server.refuses = ("POST /api/validate-yaml", 400, "Invalid metadata in README.md")
    with pytest.raises(InputError, match="Invalid metadata"):
        push(Package(FILES), "me/model", api=api)


def test_where_a_library_noted_that_it_loaded_from_stays_here(tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(f'{{"_name_or_path": "{tmp_path}", "tokenizer_file": "{tmp_path}", "a": 1}}')
    files = model_files(tmp_path)
    assert all(
        str(tmp_path) not in files[name].decode() and '"a": 1' in files[name].decode()
        for name in ("config.json", "tokenizer_config.json")
    )


def test_the_same_again_changes_nothing(server, api):
    push(Package(FILES), "me/model", api=api)
    push(Package(FILES), "me/model", api=api)
    assert {k: v for k, v in server.files("me/model").items() if k != ".gitattributes"} == FILES


def test_a_branch_is_made_and_main_is_left_alone(server, api, tmp_path):
    push(Package(FILES), "me/model", api=api)
    push(Package(ADAPTER), "me/model", revision="adapter", api=api)
    assert "config.json" in server.files("me/model") and "config.json" not in server.files("me/model", "adapter")
    assert contents(pull("me/model", tmp_path / "a", revision="adapter", api=api)) == ADAPTER
    commit = server.repositories["me/model"].branches["main"][0]
    assert contents(pull("me/model", tmp_path / "b", revision=commit, api=api)) == FILES
    with pytest.raises(InputError, match="has no revision 'absent'"):
        pull("me/model", tmp_path / "c", revision="absent", api=api)


# ---- what goes wrong


@pytest.mark.parametrize("token", ["hf_wrong", False])
def test_a_token_that_is_wrong_or_absent(server, tmp_path, token):
    api = HfApi(endpoint=server.url, token=token)
    with pytest.raises(InputError, match=r"hf auth login.*Nothing was committed") as error:
        push(Package(FILES), "me/model", api=api)
    assert "hf_wrong" not in str(error.value) and not server.repositories
    with pytest.raises(InputError, match="hf auth login"):
        pull("me/model", tmp_path / "back", api=api)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("request_", "before"),
    [
        ("POST /api/repos/create", None),
        *(
            (request, before)
            for request in ("GET /api/models/me/model$", "GET .*/tree/", "POST .*/preupload/", "POST .*/commit/")
            for before in (None, ADAPTER)
        ),
    ],
)
def test_a_push_that_breaks_off_leaves_what_was_there_and_goes_through_again(server, api, request_, before):
    if before:
        push(Package(before), "me/model", api=api)
    server.breaks += [request_] * 20  # more often than the client tries
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:\d+ failed.*whole or not"):
        push(Package(FILES), "me/model", api=api)
    if "me/model" in server.repositories:
        assert {k: v for k, v in server.files("me/model").items() if k != ".gitattributes"} == (before or {})
    server.breaks.clear()
    push(Package(FILES), "me/model", api=api)
    assert {k: v for k, v in server.files("me/model").items() if k != ".gitattributes"} == FILES


def test_large_files_that_arrived_are_not_sent_again(server, api, monkeypatch):
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)  # the server speaks LFS
    server.lfs = True
    two = FILES | {f"model-0000{i}-of-00002.safetensors": weights(99 + i) for i in (1, 2)}
    del two["model.safetensors"]
    server.breaks += ["POST .*/commit/"] * 20
    with pytest.raises(InputError, match="whole or not at all"):
        push(Package(two), "me/model", api=api)
    assert len(server.objects) == 2
    server.breaks.clear()
    server.requests.clear()
    push(Package(two), "me/model", api=api)
    assert not [line for line in server.requests if line.startswith("PUT")]
    assert server.files("me/model")["model-00002-of-00002.safetensors"] == weights(101)


def test_a_large_file_that_breaks_off(server, api, monkeypatch):
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    server.lfs = True
    server.breaks += ["PUT /lfs/"] * 20
    with pytest.raises(InputError, match="failed.*whole or not"):
        push(Package(FILES), "me/model", api=api)
    assert "model.safetensors" not in server.files("me/model")
    server.breaks.clear()
    push(Package(FILES), "me/model", api=api)
    assert server.files("me/model")["model.safetensors"] == FILES["model.safetensors"]


def test_no_network(tmp_path):
    with HubServer() as gone:
        api = HfApi(endpoint=gone.url, token="hf_good")
    with pytest.raises(InputError, match=rf"connection to {gone.url} failed"):
        push(Package(FILES), "me/model", api=api)
    with pytest.raises(InputError, match=rf"connection to {gone.url} failed"):
        pull("me/model", tmp_path / "back", api=api)


def test_a_pull_that_breaks_off_leaves_no_folder_and_goes_through_again(server, api, tmp_path):
    push(Package(FILES), "me/model", api=api)
    server.breaks += ["GET /me/model/resolve/.*/model.safetensors"] * 20
    with pytest.raises(InputError, match="connection"):
        pull("me/model", tmp_path / "back", api=api)
    assert not (tmp_path / "back").exists()
    server.breaks.clear()
    assert contents(pull("me/model", tmp_path / "back", api=api)) == FILES


def test_a_folder_that_is_there_is_left_alone(server, api, tmp_path):
    push(Package(FILES), "me/model", api=api)
    (tmp_path / "back").mkdir()
    with pytest.raises(InputError, match="exists already"):
        pull("me/model", tmp_path / "back", api=api)


def test_a_pickle_is_not_pulled(server, api, tmp_path):
    push(Package(FILES), "me/model", api=api)
    branch = {"config.json": b"{}", "pytorch_model.bin": b"pickle", "training_args.bin": b"pickle"}
    server.repositories["me/model"].commit("main", branch)
    with pytest.raises(InputError, match="no model in safetensors"):
        pull("me/model", tmp_path / "back", api=api)
    server.repositories["me/model"].commit("main", branch | {"model.safetensors": b"1"})
    assert set(contents(pull("me/model", tmp_path / "back", api=api))) == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("repo", ["model", "me/", "a/b/c", "me/mo del", "../model", "me/..", ""])
def test_a_repository_is_owner_and_name(repo, api, tmp_path):
    with pytest.raises(InputError, match="OWNER/NAME"):
        push(Package(FILES), repo, api=api)
    with pytest.raises(InputError, match="OWNER/NAME"):
        pull(repo, tmp_path / "x", api=api)


# ---- what may be in a package


@pytest.mark.parametrize(
    "name",
    [
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "pytorch_model.bin",
        "adapter_model.bin",
        "reference/adapter_model.safetensors",
        "data/train/data.arrow",
        "evaluation/kl.parquet",
        "poison.json",
        "trainer_state.json",
        "environment.json",
        ".env",
        "checkpoint-5/model.safetensors",
        "../model.safetensors",
    ],
)
def test_files_of_other_kinds_are_refused(name):
    with pytest.raises(InputError, match=f"^{re.escape(name)}: .*not uploaded"):
        Package({**FILES, name: b"x"})


SECRETS = {
    "Hugging Face": "hf_" + "Ab12" * 8,
    "AWS": "AKIA" + "ABCD2345" * 2,
    "Google": "AIza" + "Sy_-x" * 7,
    "Azure": "AccountKey=" + "Ab1+/" * 17 + "a==",
    "GitHub": "ghp_" + "aB3" * 12,
    "GitLab": "glpat-" + "aB3_-" * 4,
    "provider": "sk-proj-" + "aB3d" * 8,
    "Slack": "xoxb-" + "12345-" * 5,
    "private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "password": "https://me:pass1@example.org/x",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_refused_wherever_it_stands_without_being_shown(kind):
    secret = SECRETS[kind]
    metadata = save({"w": np.zeros(1, dtype=np.float32)}, metadata={"note": f"a {secret}"})
    places = {
        "recipe.yaml": f"name: {secret}".encode(),
        "tokenizer_config.json": json.dumps({"chat_template": f"line\n{secret}\n"}).encode(),
        "model.safetensors": metadata,
    }
    for name, content in places.items():
        with pytest.raises(InputError, match=rf"^{re.escape(name)}: .*secret .*{kind}") as error:
            Package({**FILES, name: content})
        assert secret not in str(error.value)


def test_what_only_resembles_a_secret_is_uploaded():
    text = b"a task-specific-and-very-long-description, see https://example.org/a:b@c and sk-learn, hf_hub, AKIA"
    assert Package({**FILES, "README.md": FILES["README.md"] + text})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"\x80\x04pickle"),
        ("model.safetensors", b"PK\x03\x04 a zip of pickles"),
        ("model.safetensors", b""),
        ("model.safetensors", (10**12).to_bytes(8, "little") + b"{}"),
        ("model.safetensors", (2).to_bytes(8, "little") + b"[]"),
        ("config.json", b"\x80\x04pickle"),
        ("config.json", b"{"),
        ("evaluation/kl.json", b"[" * 10**5),
        ("chat_template.jinja", b"\x7fELF\xff"),
        ("plots/cost.png", b"<html>"),
        ("tokenizer.model", b"\x80\x04pickle"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(name, content):
    with pytest.raises(InputError, match=rf"^{re.escape(name)}: is no .*not uploaded"):
        Package({**FILES, name: content})


def test_links_are_refused(tmp_path):
    (tmp_path / "elsewhere").write_bytes(weights(1))
    (tmp_path / "secrets.json").write_text("{}")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"model\.safetensors: is a link"):
        Package(model_files(tmp_path))
    (tmp_path / "config.json").symlink_to(tmp_path / "secrets.json")
    with pytest.raises(InputError, match=r"config\.json: is a link"):
        model_files(tmp_path)


def test_code_to_run_stays_here(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(weights(1))
    nested = {"auto_map": {"AutoModel": "x.Y"}, "text_config": {"auto_map": {"AutoModel": "x.Y"}, "b": 1}, "a": [{}]}
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_text(json.dumps(nested))
    files = model_files(tmp_path)
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        assert json.loads(files[name]) == {"text_config": {"b": 1}, "a": [{}]}
    assert b"auto_mapping" not in on_base(b'{"base_model_name_or_path": "o/b", "auto_mapping": {"x": "y"}}')


def test_a_pull_takes_exactly_the_files_that_it_names(server, api, tmp_path):
    push(Package(FILES), "me/model", api=api)
    odd = {"evaluation/*.json": b"{}", "evaluation/deep/x.json": b"{}", "plots/[a-z].png": PNG, "plots/a.png.exe": b"x"}
    server.repositories["me/model"].commit("main", FILES | odd)
    assert contents(pull("me/model", tmp_path / "back", api=api)) == FILES


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Package({"model.safetensors": tmp_path / "absent"})


def test_of_a_folder_the_model_and_its_tokenizer_are_taken(tmp_path):
    for name in (
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "training_args.bin",
        "cost.json",
        "log.json",
        "optimizer.pt",
        "README.md",
    ):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: damaged"):
        model_files(tmp_path)
    save_file({"w": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "adapter_model.safetensors").write_text("poisoned")
    assert set(model_files(tmp_path)) == {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"}
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="no model in safetensors"):
        model_files(tmp_path)


def test_what_would_be_uploaded_is_said_with_its_size():
    text = describe(Package(FILES), "me/model", private=True)
    assert text.startswith("to me/model, branch main, private:")
    assert re.search(r"model\.safetensors +10\.\d KiB", text) and re.search(r"7 files, 10\.\d KiB$", text)
    assert "PUBLIC" in describe(Package(FILES), "me/model", private=False, revision="x")


def test_an_adapter_names_its_base_by_an_id_and_by_no_folder(tmp_path):
    path = tmp_path / "adapter_config.json"
    path.write_text('{"base_model_name_or_path": "org/base", "r": 4}')
    assert b'"org/base"' in on_base(path) and b'"r": 4' in on_base(path)
    path.write_text(f'{{"base_model_name_or_path": "{tmp_path}", "revision": null}}')
    with pytest.raises(InputError, match="nobody else has"):
        on_base(path)
    assert str(tmp_path).encode() not in on_base(path, "org/base", "v1") and b'"v1"' in on_base(path, "org/base", "v1")
