"""Trainings of a tiny model in processes of their own: killed and gone on with, ended early, and gone wrong."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from moc.learning.job import JobType, Reason
from moc.workers.trainers.base_cache import held
from moc.workers.trainers.base_model import first_token
from moc.workers.trainers.watcher import forget_peak, memory_bytes
from tests.gguf_models import tiny_gguf
from tests.memory import MIB
from tests.trainings import CHATS, PREFERENCES, Trial

LONG: dict[str, Any] = {
    "max_steps": 11,
    "batch_size": 2,
    "gradient_accumulation": 2,
    "lora_rank": 4,
    "lora_dropout": 0.1,
    "learning_rate": 1e-2,
    "validation_split": 0.2,
    "checkpoint_steps": 3,
    "eval_steps": 4,
}
"""Several epochs of which none ends with a checkpoint, with steps of more than one batch, and chance in each."""

SHORT: dict[str, Any] = {"max_steps": 3, "batch_size": 4, "lora_rank": 4, "warmup_ratio": 0, "learning_rate": 1e-2}
KILLS_MAX = 3
KINDS: dict[JobType, list[dict[str, Any]]] = {JobType.SUPERVISED: CHATS, JobType.DPO: PREFERENCES}
PATIENCE_S = 250
pytestmark = pytest.mark.timeout(300)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a peak is for ever")
def test_a_peak_of_before_the_training_is_forgotten() -> None:
    ballast = bytearray(b"x") * (256 * MIB)
    peak = memory_bytes()
    del ballast
    forget_peak()
    assert memory_bytes() < peak - 200 * MIB


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trainings")


@pytest.fixture(scope="module")
def base(home: Path) -> dict[str, Any]:
    """A GGUF file; what is dequantised of it is shared by all."""
    return {"runtime": "llama_cpp", "path": str(tiny_gguf(home / "tiny")), "sha256": "tiny", "adapters": []}


@pytest.fixture(scope="module")
def folder_base(home: Path, base: dict[str, Any]) -> dict[str, Any]:
    """The same as safetensors."""
    return {**base, "runtime": "transformers", "path": str(home / "tiny" / "transformers")}


@pytest.fixture(scope="module")
def whole(home: Path, base: dict[str, Any]) -> Callable[[JobType], Trial]:
    """A training that nothing interrupted, of each type."""
    done: dict[JobType, Trial] = {}

    def find(type: JobType) -> Trial:
        if type not in done:
            done[type] = Trial(folder=home / f"{type}", base=base, rows=KINDS[type], type=type, hyperparameters=LONG)
            assert done[type].run() == 0, done[type].messages()
        return done[type]

    return find


def _sha256(trial: Trial) -> str:
    return hashlib.sha256((trial.folder / "output/adapter/adapter_model.safetensors").read_bytes()).hexdigest()


def _run_with_kills(trial: Trial, chance: random.Random, signals: list[int]) -> list[int | None]:
    """Run attempts until one is done, the first ones ended by a signal some steps on; their statuses."""
    statuses: list[int | None] = []
    while len(statuses) < KILLS_MAX and statuses[-1:] != [0]:
        before = max(trial.losses(), default=0)
        wanted, delay_s = before + chance.randint(1, 5), chance.random() * 0.1
        process = trial.start(len(statuses) + 1)
        deadline = time.monotonic() + PATIENCE_S
        while process.is_alive() and max(trial.losses(), default=0) < wanted:
            assert time.monotonic() < deadline, trial.messages()
            time.sleep(0.01)
        process.join(delay_s)
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, chance.choice(signals))
        process.join(PATIENCE_S)
        statuses.append(process.exitcode)
        assert process.exitcode in (0, 75, -signal.SIGKILL), trial.messages()
    return statuses if statuses[-1] == 0 else [*statuses, trial.run(len(statuses) + 1)]


@pytest.mark.parametrize(("type", "seed"), [(JobType.SUPERVISED, 1), (JobType.SUPERVISED, 2), (JobType.DPO, 3)])
def test_killed_at_any_step_it_goes_on_as_if_it_had_not_been(
    seed: int, type: JobType, whole: Callable[[JobType], Trial], base: dict[str, Any], home: Path
) -> None:
    undisturbed = whole(type)
    trial = Trial(folder=home / f"{type}-{seed}", base=base, rows=KINDS[type], type=type, hyperparameters=LONG)
    statuses = _run_with_kills(trial, random.Random(seed), [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    assert len(statuses) > 1, "nothing was killed"
    for name in ("train_loss", "valid_loss", "train_mean_token_accuracy", "grad_norm"):
        assert trial.losses(name) == undisturbed.losses(name), statuses
    assert _sha256(trial) == _sha256(undisturbed)
    assert trial.told()[-1] == undisturbed.told()[-1]


def test_a_stop_loses_no_step(base: dict[str, Any], tmp_path: Path) -> None:
    trial = Trial(folder=tmp_path / "job", base=base, rows=CHATS, hyperparameters={**LONG, "checkpoint_steps": 100})
    assert 75 in _run_with_kills(trial, random.Random(0), [signal.SIGTERM])
    told = [line for line in trial.told() if line["type"] == "metrics" and "train_loss" in line["metrics"]]
    assert [line["step"] for line in told] == list(range(1, 12)), "a step was lost, or done twice"


def test_a_torn_checkpoint_is_refused_and_the_one_before_it_gone_on_from(
    whole: Callable[[JobType], Trial], base: dict[str, Any], tmp_path: Path
) -> None:
    trial = Trial(folder=tmp_path / "job", base=base, rows=CHATS, hyperparameters=LONG)
    assert trial.run() == 0
    (tmp_path / "job/checkpoints/checkpoint-11/optimizer.pt").write_bytes(b"torn")
    assert trial.run(2) == 0
    assert "checkpoint-11 is not what was saved and cannot be used: optimizer.pt has changed" in trial.messages()
    assert "goes on after step 9" in trial.messages()
    assert _sha256(trial) == _sha256(whole(JobType.SUPERVISED))


def test_what_ended_is_not_trained_on(base: dict[str, Any], tmp_path: Path) -> None:
    trial = Trial(folder=tmp_path / "job", base=base, rows=CHATS, hyperparameters=SHORT)
    assert trial.run() == 0
    before = _sha256(trial)
    assert trial.run(2) == 0
    assert _sha256(trial) == before
    assert [line["step"] for line in trial.told() if line["type"] == "metrics"] == [1, 2, 3]
    assert trial.told()[-1]["type"] == "result"


def test_the_loss_falls_and_progress_is_told(base: dict[str, Any], tmp_path: Path) -> None:
    trial = Trial(folder=tmp_path / "job", base=base, rows=CHATS, hyperparameters={**SHORT, "max_steps": 12})
    assert trial.run() == 0
    told = [line for line in trial.told() if line["type"] == "metrics"]
    assert told[-1]["metrics"]["train_loss"] < 0.7 * told[0]["metrics"]["train_loss"]
    assert all(line["total_steps"] == 12 and line["eta_s"] >= 0 for line in told)
    assert all(line["metrics"]["tokens_per_s"] > 0 and line["metrics"]["memory_bytes"] > 2**20 for line in told)
    assert told[-1]["eta_s"] == 0
    assert trial.told()[-1]["trained_tokens"] > 12 * 4 * 10


def test_it_ends_early_when_validation_gets_no_better_and_keeps_the_best(base: dict[str, Any], tmp_path: Path) -> None:
    other = [{"messages": [CHATS[0]["messages"][0], {"role": "assistant", "content": "Nobody knows, really."}]}]
    hyperparameters = {**SHORT, "max_steps": 40, "learning_rate": 3e-2, "eval_steps": 1, "early_stopping_patience": 3}
    trial = Trial(folder=tmp_path / "job", base=base, rows=CHATS, validation=other, hyperparameters=hyperparameters)
    assert trial.run() == 0
    losses = {step: min(found) for step, found in trial.losses("valid_loss").items()}
    best = min(losses, key=lambda step: losses[step])
    result = trial.told()[-1]
    assert "weights on 13 examples, validates on 1" in trial.messages()
    assert max(losses) == best + 3
    assert "was not better in the last 3 validations" in trial.messages()
    assert (result["data"]["step"], result["metrics"]["full_valid_loss"]) == (best, losses[best])
    assert result["metrics"]["valid_loss"] == losses[best]
    assert {result["metrics"]["train_loss"]} == trial.losses()[best]
    kept = tmp_path / f"job/checkpoints/checkpoint-{best}/adapter_model.safetensors"
    assert _sha256(trial) == hashlib.sha256(kept.read_bytes()).hexdigest()


def test_a_preference_is_learned_against_what_the_model_was(whole: Callable[[JobType], Trial]) -> None:
    trial = whole(JobType.DPO)
    margins = trial.losses("rewards/margins")
    assert margins[1] == {0.0}, "the model is not what it was before the first step"
    assert min(margins[11]) > 0
    assert trial.losses("rewards/accuracies")[11] == {1.0}
    assert min(trial.losses("valid_rewards/margins")[11]) > 0


def test_what_was_tuned_is_tuned_on(whole: Callable[[JobType], Trial], base: dict[str, Any], tmp_path: Path) -> None:
    earlier = whole(JobType.SUPERVISED).folder / "output/adapter"
    tuned = {**base, "adapters": [{"path": "a.gguf", "peft": str(earlier), "scale": 1.0}]}
    trial = Trial(folder=tmp_path / "job", base=tuned, rows=PREFERENCES, type=JobType.DPO, hyperparameters=SHORT)
    assert trial.run() == 0, trial.messages()
    assert trial.losses("rewards/margins")[1] == {0.0}, "the reference is not the tuned model"
    once = {**SHORT, "max_steps": 1}
    first = [
        Trial(folder=tmp_path / name, base=each, rows=CHATS, hyperparameters=once)
        for name, each in (("tuned", tuned), ("plain", base))
    ]
    assert [each.run() for each in first] == [0, 0]
    assert min(first[0].losses()[1]) < 0.8 * min(first[1].losses()[1]), "what it had learned is lost"


@pytest.mark.parametrize("type", sorted(KINDS))
def test_all_weights_can_be_trained(type: JobType, folder_base: dict[str, Any], tmp_path: Path, home: Path) -> None:
    given = {**SHORT, "method": "full", "max_steps": 4, "checkpoint_steps": 2}
    trials = [
        Trial(folder=tmp_path / name, base=folder_base, rows=KINDS[type], type=type, hyperparameters=given)
        for name in ("whole", "resumed")
    ]
    assert trials[0].run() == 0, trials[0].messages()
    _run_with_kills(trials[1], random.Random(3), [signal.SIGKILL])
    written = [(trial.folder / "output/model/model.safetensors").read_bytes() for trial in trials]
    assert written[0] == written[1]
    trained, before = (
        load_file(tmp_path / "whole/output/model/model.safetensors"),
        load_file(home / "tiny/transformers/model.safetensors"),
    )
    assert trained.keys() == before.keys()
    assert any(not torch.equal(trained[name], before[name]) for name in before)


def test_a_broken_base_ends_in_a_loss_that_is_no_number_and_a_word_of_advice(
    folder_base: dict[str, Any], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    source = Path(folder_base["path"])
    broken.mkdir()
    for file in source.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(source / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    trial = Trial(folder=tmp_path / "job", base={**folder_base, "path": str(broken)}, rows=CHATS, hyperparameters=SHORT)
    assert trial.run() == 1
    error = trial.told()[-1]
    assert (error["type"], error["reason"]) == ("error", Reason.PROGRAM_FAILED)
    assert "train_loss is nan at step 1" in error["message"]
    assert "learning_rate" in error["message"]


def test_out_of_memory_is_told_with_what_to_change(base: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"text": "The sea is wide. " * 400}] * 32
    given = {**SHORT, "batch_size": 32, "max_length": 2048}
    trial = Trial(folder=tmp_path / "job", base=base, rows=rows, hyperparameters=given, memory_bytes=256 * 2**20)
    assert trial.run() == 1
    error = trial.told()[-1]
    assert error["reason"] == Reason.OUT_OF_MEMORY
    assert "batch_size" in error["message"]
    assert "gradient_checkpointing" in error["message"]


def test_what_becomes_of_rows_is_told(base: dict[str, Any], tmp_path: Path) -> None:
    texts = [{"text": "sea " * 50}] * 4
    trial = Trial(folder=tmp_path / "a", base=base, rows=texts, hyperparameters={**SHORT, "max_length": 32})
    assert trial.run() == 0
    assert "4 of 4 texts are longer than max_length=32, and learned in parts" in trial.messages()
    long = {"messages": [CHATS[0]["messages"][0], {"role": "assistant", "content": "sea " * 300}]}
    trial = Trial(folder=tmp_path / "b", base=base, rows=[*CHATS, long], hyperparameters={**SHORT, "max_length": 256})
    assert trial.run() == 0
    assert "1 of 14 examples are cut to max_length=256" in trial.messages()
    forgetful = (
        "{% for each in messages %}{% if each.role == 'user' or loop.last %}{{ each.content }}{% endif %}{% endfor %}"
    )
    talk = {"messages": CHATS[0]["messages"] + CHATS[1]["messages"]}
    given = {**base, "chat_template": forgetful}
    trial = Trial(folder=tmp_path / "c", base=given, rows=[*CHATS, talk], hyperparameters=SHORT)
    assert trial.run() == 0
    assert "1 of 14 conversations are learned as several examples" in trial.messages()
    assert "weights on 15 examples" in trial.messages()


def test_what_the_template_leaves_out_is_refused_with_its_line(base: dict[str, Any], tmp_path: Path) -> None:
    calling: dict[str, Any] = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
    }
    rows = [*CHATS, {"messages": [CHATS[0]["messages"][0], calling]}]
    trial = Trial(folder=tmp_path / "job", base=base, rows=CHATS, validation=rows, hyperparameters=SHORT)
    assert trial.run() == 1
    assert trial.told()[-1]["reason"] == Reason.INVALID
    assert "line 14 of the validation rows has `tool_calls`" in trial.messages()
    assert "chat_template" in trial.messages()


def test_the_loss_of_a_validation_does_not_depend_on_the_batch_size(base: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"text": "The sea is wide. " * count} for count in (1, 40, 2, 30)]
    found = []
    for size in (1, 4):
        given = {**SHORT, "max_steps": 1, "eval_steps": 1, "batch_size": size, "learning_rate": 1e-9}
        trial = Trial(folder=tmp_path / f"{size}", base=base, rows=rows, validation=rows, hyperparameters=given)
        assert trial.run() == 0, trial.messages()
        found.append(min(trial.losses("valid_loss")[1]))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_no_progress_bar_is_in_the_log(base: dict[str, Any], tmp_path: Path) -> None:
    given = {**SHORT, "method": "full", "max_steps": 1, "validation_split": 0.2}
    trial = Trial(folder=tmp_path / "job", base=base, rows=PREFERENCES, type=JobType.DPO, hyperparameters=given)
    program = (sys.executable, "-m", "moc.workers.trainers.training")  # the libraries are told before they are read in
    done = subprocess.run(program, env=os.environ | trial.environment(), capture_output=True, check=False)
    assert done.returncode == 0, trial.messages()
    assert b"it/s" not in done.stderr + done.stdout


def test_preferences_that_are_cut_are_told_of(base: dict[str, Any], tmp_path: Path) -> None:
    long = [{**row, "prompt": [{"role": "user", "content": "sea " * 300}]} for row in PREFERENCES]
    given = {**SHORT, "max_length": 256}
    trial = Trial(folder=tmp_path / "a", base=base, rows=PREFERENCES + long, type=JobType.DPO, hyperparameters=given)
    assert trial.run() == 0, trial.messages()
    assert "8 of 16 examples are cut to max_length=256" in trial.messages()
    assert "8 of 16 examples have nothing to learn" in trial.messages()
    assert "weights on 8 examples" in trial.messages()
    unvalidated = Trial(
        folder=tmp_path / "b",
        base=base,
        rows=PREFERENCES,
        validation=long,
        type=JobType.DPO,
        hyperparameters=given,
    )
    assert unvalidated.run() == 1
    assert unvalidated.told()[-1]["reason"] == Reason.INVALID


def test_preferences_with_and_without_tools_are_learned_together(base: dict[str, Any], tmp_path: Path) -> None:
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"a": value}}} for value in (1, "x")]
    rows = [
        {**PREFERENCES[0], "chosen": [{"role": "assistant", "content": "", "tool_calls": [call]}]} for call in calls
    ]
    template = (
        "{% for each in messages %}<|im_start|>{{ each.content }}{{ each.tool_calls or '' }}<|im_end|>{% endfor %}"
    )
    calling = {**base, "chat_template": template}
    trial = Trial(
        folder=tmp_path / "job", base=calling, rows=rows + PREFERENCES, type=JobType.DPO, hyperparameters=SHORT
    )
    assert trial.run() == 0, trial.messages()


def test_the_only_step_of_a_training_teaches(base: dict[str, Any], tmp_path: Path) -> None:
    given = {**SHORT, "max_steps": 1, "warmup_ratio": 0.03}
    trial = Trial(folder=tmp_path / "job", base=base, rows=CHATS, hyperparameters=given)
    assert trial.run() == 0
    assert trial.losses("learning_rate")[1] == {SHORT["learning_rate"]}
    trained = load_file(trial.folder / "output/adapter/adapter_model.safetensors")
    assert any(bool(weights.any()) for name, weights in trained.items() if "lora_B" in name)


def test_a_training_begins_as_the_engine_does(base: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "first.gguf"
    path.write_bytes(Path(base["path"]).read_bytes())
    for name, value in (("add_bos_token", 1), ("bos_token_id", 0)):
        field = gguf.GGUFReader(path, "r+").fields[f"tokenizer.ggml.{name}"]
        field.parts[field.data[0]][0] = value
    adding = {**base, "path": str(path), "sha256": "first"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert (first_token(adding, tokenizer), first_token(base, tokenizer)) == (0, None)
    once = {**SHORT, "max_steps": 1, "batch_size": 16}
    trials = [
        Trial(folder=tmp_path / name, base=each, rows=CHATS, hyperparameters=once)
        for name, each in (("adding", adding), ("plain", base))
    ]
    assert [trial.run() for trial in trials] == [0, 0], trials[0].messages()
    tokens = [trial.told()[-1]["trained_tokens"] for trial in trials]
    assert tokens[0] == tokens[1] + len(CHATS)


@pytest.mark.parametrize(
    ("runtime", "target", "told"),
    [
        ("llama_cpp", "nope", "there are down_proj, gate_proj"),
        ("llama_cpp", "embed_tokens", "no adapter can be trained for"),
        ("transformers", "lm_head", "no adapter can be trained for"),
    ],
)
def test_layers_that_can_have_no_adapter_are_refused(
    runtime: str, target: str, told: str, base: dict[str, Any], folder_base: dict[str, Any], tmp_path: Path
) -> None:
    given = {**SHORT, "lora_targets": ["q_proj", target]}
    chosen = base if runtime == "llama_cpp" else folder_base
    trial = Trial(folder=tmp_path / "job", base=chosen, rows=CHATS, hyperparameters=given)
    assert trial.run() == 1
    assert trial.told()[-1]["reason"] == Reason.INVALID
    assert told in trial.messages()
    assert "lora_targets" in trial.messages()
    assert trial.losses() == {}


def test_packed_weights_are_refused(folder_base: dict[str, Any], tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    shutil.copytree(folder_base["path"], packed)
    config = json.loads((packed / "config.json").read_bytes())
    (packed / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    trial = Trial(folder=tmp_path / "job", base={**folder_base, "path": str(packed)}, rows=CHATS, hyperparameters=SHORT)
    assert trial.run() == 1
    assert trial.told()[-1]["reason"] == Reason.INVALID
    assert "packed weights (gptq)" in trial.messages()


def test_what_could_not_be_served_is_not_trained(base: dict[str, Any], tmp_path: Path) -> None:
    other = tiny_gguf(tmp_path / "other", intermediate_size=192)
    with held(base, tmp_path / "cache"):
        pass  # so that what is trained is not what is to serve
    trial = Trial(folder=tmp_path / "job", base={**base, "path": str(other)}, rows=CHATS, hyperparameters=SHORT)
    assert trial.run() == 1
    assert trial.told()[-1]["reason"] == Reason.INVALID
    assert "could not be served: the update of model.layers.0.mlp" in trial.messages()
    assert trial.losses() == {}


def test_a_share_that_leaves_nothing_to_validate_with_is_told_of(base: dict[str, Any], tmp_path: Path) -> None:
    trial = Trial(
        folder=tmp_path / "job", base=base, rows=CHATS[:1] * 4, hyperparameters={**SHORT, "validation_split": 0.5}
    )
    assert trial.run() == 0
    assert "all rows have the same prompt" in trial.messages()


def test_validations_that_would_come_after_the_end_are_told_of(base: dict[str, Any], tmp_path: Path) -> None:
    given = {**SHORT, "validation_split": 0.2, "eval_steps": 4}
    trial = Trial(folder=tmp_path / "job", base=base, rows=CHATS, hyperparameters=given)
    assert trial.run() == 0
    assert "nothing is validated: eval_steps is 4, and there are 3 steps" in trial.messages()


@pytest.mark.parametrize("type", sorted(KINDS))
def test_examples_of_which_nothing_is_left_are_refused(type: JobType, base: dict[str, Any], tmp_path: Path) -> None:
    given = {**SHORT, "max_length": 8}
    trial = Trial(folder=tmp_path / "job", base=base, rows=KINDS[type], type=type, hyperparameters=given)
    assert trial.run() == 1
    assert trial.told()[-1]["reason"] == Reason.INVALID
    assert "max_length cuts off all" in trial.messages()


def test_two_that_start_at_once_dequantise_the_base_once(base: dict[str, Any], tmp_path: Path) -> None:
    fresh = {**base, "sha256": "fresh"}
    trials = [Trial(folder=tmp_path / name, base=fresh, rows=CHATS, hyperparameters=SHORT) for name in ("a", "b")]
    processes = [trial.start() for trial in trials]
    for process in processes:
        process.join(PATIENCE_S)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["fresh", "fresh.lock"]
    assert _sha256(trials[0]) == _sha256(trials[1])
