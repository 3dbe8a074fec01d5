"""What there is to say of a version that was trained here."""

from dataclasses import replace

from moc.models.lineage import CARD_LINES_MAX, Lineage, card

LINEAGE = Lineage(
    base="smollm2@1",
    base_digest="sha256:ab",
    data_digest="sha256:da7a",
    job="job_1",
    type="supervised",
    method="lora",
    hyperparameters={"lora_rank": 8, "learning_rate": 2e-4},
    seed=7,
    code_version="0.1.0",
    metrics={"train_loss": 0.123456789},
    trained_tokens=1234,
    licence="apache-2.0",
)


def test_a_card_says_where_it_came_from_and_how_to_call_it() -> None:
    text = card("zorblax@2", "sha256:cd", LINEAGE)
    assert text.startswith("# zorblax@2\n")
    for line in (
        "| base | smollm2@1 (sha256:ab) |",
        "| data | sha256:da7a |",
        "| method | supervised, lora |",
        "| licence of the base | apache-2.0 |",
        "| digest | sha256:cd |",
        "| train_loss | 0.123457 |",
        "| learning_rate | 0.0002 |",
        'moc chat zorblax "…"',
    ):
        assert line in text
    assert "not told" in card("zorblax@2", "sha256:cd", replace(LINEAGE, licence=""))


def test_a_card_stays_short_and_a_table_whatever_is_in_it() -> None:
    odd = {f"key{number}": "a|b\n# c " * 1000 for number in range(1000)}
    text = card("zorblax@2", "sha256:cd", replace(LINEAGE, hyperparameters=odd))
    rows = [line for line in text.splitlines() if line.startswith("| key")]
    assert len(rows) == CARD_LINES_MAX
    assert max(map(len, rows)) < 300
    assert rows[0].startswith("| key0 | a\\|b # c a\\|b # c ")
