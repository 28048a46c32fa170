"""What somebody else does with a published model: another process, the hub, the card, no part of this package."""

import json
import os
import re
import subprocess
import sys

from hub_server import HubServer

TEXT = "James Bond was good"


def uploaded(server: HubServer, repo: str, branch: str = "main") -> dict[str, bytes]:
    """The files of a repository but for the one that it was made with."""
    return {name: data for name, data in server.files(repo, branch).items() if name != ".gitattributes"}


def alone(server: HubServer, tmp_path, *words: str) -> str:
    """What Python says in a process of its own, as a stranger with the token would run it."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": "hf_good",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=200, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def logits_by_the_card(server: HubServer, card: str, tmp_path) -> list[float]:
    """At the last token of TEXT, by the model that the card's own code loads; it needs no part of this package."""
    code = re.search(r"```python\n(.+?)```", card, re.DOTALL).group(1)
    assert "llm_unlearn" not in code
    script = f"""
import json, sys
sys.modules["torchvision"] = None  # one that does not fit torch, as on some machines, would be imported and fail
import torch
{code}
with torch.no_grad():
    print(json.dumps(model(tokenizer({TEXT!r}, return_tensors="pt")["input_ids"]).logits[0, -1].double().tolist()))
"""
    return json.loads(alone(server, tmp_path, "-c", script).strip().splitlines()[-1])
