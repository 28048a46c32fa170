"""Methods' settings of another toolkit under its name: `unlearn.preset` of a recipe."""

from typing import Any

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # configs/trainer/*.yaml of github.com/locuslab/open-unlearning; docs/open-unlearning.md has what else differs
    "open-unlearning": {
        "gradient_ascent": {"learning_rate": 1e-5},
        "grad_diff": {"learning_rate": 1e-5, "gamma": 1.0, "alpha": 1.0},
        "kl": {"learning_rate": 1e-5, "alpha": 1.0},  # its GradDiff with retain_loss_type KL
        "npo": {"learning_rate": 1e-5, "beta": 0.1, "gamma": 1.0, "alpha": 1.0, "retain_loss": "nll"},
        "simnpo": {
            "learning_rate": 1e-5,
            "beta": 4.5,
            "delta": 0.0,
            "gamma": 0.125,
            "alpha": 1.0,
            "retain_loss": "nll",
        },
        "dpo": {  # the prefactor is 2/β
            "learning_rate": 1e-5,
            "beta": 0.1,
            "prefactor": 20.0,
            "gamma": 1.0,
            "alpha": 1.0,
            "retain_loss": "nll",
        },
        "rmu": {"learning_rate": 1e-5, "steering": 2.0, "alpha": 1.0},
        "undial": {"learning_rate": 1e-4, "beta": 10.0, "gamma": 1.0, "retain_loss": "none"},
        "wga": {"learning_rate": 1e-5, "beta": 1.0, "gamma": 1.0, "alpha": 1.0, "retain_loss": "nll"},
        "satimp": {"learning_rate": 1e-5, "beta1": 5.0, "beta2": 1.0, "gamma": 0.1, "alpha": 1.0, "retain_loss": "nll"},
        "ce_u": {"learning_rate": 1e-5, "gamma": 1.0, "retain_loss": "none"},
        "pdu": {"learning_rate": 1e-5, "gamma": 1.0, "multiplier": 1.0, "epsilon": 0.0, "dual_rate": 1.0},
    }
}


def preset_of(name: str | None, method: str) -> dict[str, Any]:
    """The options that a preset gives a method; none without a preset, or for a method that the other toolkit lacks."""
    return {} if name is None else PRESETS[name].get(method, {})
