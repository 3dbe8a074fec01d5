"""The noun: where a version came from that was trained here, and what there is to say of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CARD_LINES_MAX = 100
CARD_VALUE_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """All that made a version of the one it started from.

    `base` is `name@version` with its digest, `data_digest` the hash of all it learned from. The job `job`, of type
    `type`, trained it by `method` (`lora` or `full`) with these hyperparameters and this seed, in `code_version` of
    the coordinator, and told `metrics` last. `licence` is what the base said of its own, empty when nothing.
    """

    base: str
    base_digest: str
    data_digest: str
    job: str
    type: str
    method: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    code_version: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    trained_tokens: int = 0
    licence: str = ""


def card(reference: str, digest: str, lineage: Lineage) -> str:
    """What there is to say of a version, as Markdown."""
    name = reference.partition("@")[0]
    facts = {
        "base": f"{lineage.base} ({lineage.base_digest})",
        "method": f"{lineage.type}, {lineage.method}",
        "data": lineage.data_digest,
        "tokens trained": lineage.trained_tokens,
        "seed": lineage.seed,
        "job": lineage.job,
        "code": f"modelops-coordinator {lineage.code_version}",
        "licence of the base": lineage.licence or "not told; ask who made it",
        "digest": digest,
    }
    parts = [
        f"# {reference}",
        f"{lineage.base}, fine-tuned. The metrics are those of its training: try it before you rely on it.",
        _table("What", "Value", facts),
        "## Metrics",
        _table("Metric", "Value", {key: f"{value:.6g}" for key, value in lineage.metrics.items()}),
        "## Hyperparameters",
        _table("Hyperparameter", "Value", lineage.hyperparameters),
        "## How to call it",
        f'```\nmoc chat {name} "…"\n```',
        f"Over HTTP it is the model `{name}`, its newest version, or `{reference}` for good.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(left: str, right: str, values: Mapping[str, Any]) -> str:
    rows = [f"| {_cell(key)} | {_cell(value)} |" for key, value in [*values.items()][:CARD_LINES_MAX]]
    return "\n".join([f"| {left} | {right} |", "|---|---|", *rows])


def _cell(value: Any) -> str:
    text = " ".join(str(value).split()).replace("|", "\\|")
    return text if len(text) <= CARD_VALUE_CHARACTERS else f"{text[: CARD_VALUE_CHARACTERS - 1]}…"
