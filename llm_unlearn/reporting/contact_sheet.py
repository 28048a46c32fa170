"""A contact sheet: poisoned images beside their clean ones, kind by kind."""

from typing import Any
from zipfile import BadZipFile

import numpy as np

from llm_unlearn.errors import InputError
from llm_unlearn.reporting.contents import Plot, Section
from llm_unlearn.reporting.run_results import Results
from llm_unlearn.reporting.style import figure, png

FILE = "contact_sheet.npz"
_NAMES = {
    "gaussian": "Gaussian noise",
    "patch": "patch",
    "gradient_matching": "gradient matching",
    "gradient_cancelling": "gradient cancelling",
}


def contact_sheet_section(results: Results) -> Section | None:
    """The sheet of the first seed; None where the run has none.

    Raises:
        InputError: naming the file where it cannot be read.
    """
    path = results.runs[0].path / FILE
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            sheet = {name: arrays[name] for name in ("kind", "clean", "poisoned", "label", "poisoned_label")}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it for a report without it") from None
    kinds = list(dict.fromkeys(sheet["kind"].tolist()))
    named = " and ".join(_NAMES.get(kind, kind) for kind in kinds)
    note = (
        "The first poisoned training images of each kind: above as they were, below as they were trained on, with "
        "the largest change of a pixel (of 255). A label that was changed is shown with an arrow."
    )
    alt = f"Pairs of clean and poisoned images, labelled {', '.join(sheet['label'].tolist())}."
    plot = Plot("contact_sheet", f"Poisoned images: {named}", note, alt, _draw(sheet, kinds))
    return Section("What the poison looks like", plots=[plot])


def _draw(sheet: dict[str, np.ndarray], kinds: list[str]) -> bytes:
    columns = max(int((sheet["kind"] == kind).sum()) for kind in kinds)
    ratios = [0.1, 1, 1] * len(kinds)  # a line for the name of the kind, the clean images, the poisoned ones
    grid = {"height_ratios": ratios}
    with figure(2.7 * len(kinds), rows=3 * len(kinds), columns=columns, gridspec_kw=grid) as (fig, axes):
        for axis in axes.flat:
            axis.axis("off")
        for k, kind in enumerate(kinds):
            corner, title = axes[3 * k, 0], f"{_NAMES.get(kind, kind)}, clean and poisoned"
            name = corner.text(0, 0, title, fontsize=10.5, fontweight="bold", transform=corner.transAxes)
            name.set_in_layout(False)  # or the first column would be made as wide as it
            for column, row in enumerate(np.flatnonzero(sheet["kind"] == kind)):
                before, after = str(sheet["label"][row]), str(sheet["poisoned_label"][row])
                change = np.abs(sheet["clean"][row].astype(int) - sheet["poisoned"][row]).max()
                changed = f"± {change}" if before == after else f"→ {after} (± {change})"
                _show(axes[3 * k + 1, column], sheet["clean"][row], before)
                _show(axes[3 * k + 2, column], sheet["poisoned"][row], changed)
        return png(fig)


def _show(axis: Any, image: np.ndarray, title: str) -> None:
    """One image (C, H, W) uint8, its pixels as squares."""
    picture = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_title(title, fontsize=8, pad=2)
