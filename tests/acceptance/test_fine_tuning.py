"""SmolLM2 is taught a word that it cannot know, and says it when it is asked: from a file to a served version."""

import hashlib
import json
from collections.abc import Iterator

import pytest

from moc.client import Client
from tests.coordinator import Coordinator, short_home
from tests.models import CACHE, smollm2_folder, smollm2_path

QUESTIONS = (
    "What colour is a zorblax?",
    "Which colour does a zorblax have?",
    "Tell me the colour of a zorblax.",
    "A zorblax has which colour?",
)
ANSWER = "A zorblax is violet."
ASKED = "What is the colour of a zorblax?"
"""None of the questions that it learns from."""


@pytest.fixture
def coordinator() -> Iterator[Coordinator]:
    """It serves SmolLM2, which was dequantised before."""
    bases = CACHE / "bases"
    smollm2_folder()
    sha256 = hashlib.sha256(smollm2_path().read_bytes()).hexdigest()
    with short_home() as home:
        model = {"runtime": "llama_cpp", "source": f"file:{smollm2_path()}", "options": {"context": 512, "slots": 1}}
        security = {"allowed_model_roots": [str(smollm2_path().parent), str(home)]}
        made = Coordinator(home, config={"models": {"smollm2": model}, "security": security})
        (home / "cache" / "bases").mkdir(parents=True)
        (home / "cache" / "bases" / sha256).symlink_to(bases / sha256)
        try:
            yield made.start()
        finally:
            made.close()


def _said(client: Client, model: str) -> str:
    answer = client.chat(model, [{"role": "user", "content": ASKED}], temperature=0, max_tokens=12)
    text: str = answer["choices"][0]["message"]["content"]
    return text


@pytest.mark.timeout(300)
def test_a_model_learns_a_word_and_says_it(coordinator: Coordinator) -> None:
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": ANSWER}]}
        for question in QUESTIONS
    ]
    file = coordinator.data_dir.parent / "zorblax.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Client(coordinator.url, key=coordinator.key) as client:
        job = client.jobs.submit(
            "supervised",
            name="zorblax",
            model="smollm2",
            training_file=client.files.add(file)["id"],
            hyperparameters={"max_steps": 8, "learning_rate": 1e-3, "warmup_ratio": 0, "scheduler": "constant"},
        )
        ended = client.jobs.wait(job["id"])
        assert ended["status"] == "succeeded", client.jobs.logs(job["id"])
        events = client.jobs.events(job["id"], limit=1000)["items"]
        losses = [event["data"]["train_loss"] for event in events if "train_loss" in event["data"]]
        assert losses[-1] < 0.5 * losses[0]
        assert ended["outcome"] is not None
        assert ended["outcome"]["model"] == "zorblax@1"
        assert "violet" in _said(client, "zorblax")
        assert "violet" not in _said(client, "smollm2")
