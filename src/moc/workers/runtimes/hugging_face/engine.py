"""A network with its tokenizer, asked from threads."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from jinja2 import TemplateError

from moc.inference.request import Info, Kind, Reply, Request, TensorSpec
from moc.kernel.errors import InvalidRequest, NoCapacity, Unimplemented
from moc.workers.runtimes.hugging_face.request import ChatRequest
from moc.workers.runtimes.tokenization import read_tokenize, tokenized


class Tokens:
    """A tokenizer. It changes itself while it works, so one thread at a time uses it."""

    def __init__(self, folder: Path, chat_template: str | None) -> None:
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        if chat_template is not None:
            self._tokenizer.chat_template = chat_template
        self._lock = threading.Lock()
        self.longest = int(self._tokenizer.model_max_length)
        self.padding = int(self._tokenizer.pad_token_id or 0)

    @property
    def can_chat(self) -> bool:
        """Whether there is a template that makes a prompt of messages."""
        return self._tokenizer.chat_template is not None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text, with those the model wants around it if `special`."""
        with self._lock:
            return list(self._tokenizer.encode(text, add_special_tokens=special))

    def encode_chat(self, messages: list[dict[str, str]], *, generate: bool = True) -> list[int]:
        """The tokens of a conversation, up to where the answer begins if `generate`.

        InvalidRequest when there is no template, or it objects.
        """
        if not self.can_chat:
            raise InvalidRequest("the model has no chat template; send a text as `prompt`")
        with self._lock:
            try:
                text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
            except TemplateError as error:
                raise InvalidRequest(f"the model's chat template refuses these messages: {error}") from None
            return list(self._tokenizer.encode(text, add_special_tokens=False))

    def encode_where(self, text: str, *, special: bool) -> tuple[list[int], list[int]]:
        """The tokens of a text, with those around it if `special`, and at which character each begins."""
        if not self._tokenizer.is_fast:
            raise Unimplemented("the tokenizer of this model does not tell which token stands where")
        with self._lock:
            found = self._tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        starts, at = [], 0
        for start, end in found["offset_mapping"]:
            starts.append(start if end > start else at)  # what is no part of the text is told to be at 0
            at = max(at, end)
        return list(found["input_ids"]), starts

    def name(self, tokens: Sequence[int]) -> str:
        """What tokens stand for, those that are no text too."""
        with self._lock:
            return str(self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without those that are no text."""
        with self._lock:
            text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            return text


class Engine:
    """A loaded network. `limit` is how many tokens one request may have."""

    def __init__(self, model: str, network: Any, tokens: Tokens, *, context: int, slots: int) -> None:
        self.model = model
        self.network = network
        self.tokens = tokens
        self.device: torch.device = network.device
        self.context = context
        self.slots = slots
        config = network.config.get_text_config()
        self.vocabulary = int(config.vocab_size)
        positions = int(getattr(config, "max_position_embeddings", None) or context)
        self.limit = min(context // slots, positions, tokens.longest)
        # one more for each slot: a cancelled request keeps its thread for one more step
        self.threads = ThreadPoolExecutor(2 * slots, "transformers")

    def info(
        self, kinds: tuple[Kind, ...], *, inputs: tuple[TensorSpec, ...] = (), outputs: tuple[TensorSpec, ...] = ()
    ) -> Info:
        """What this model does, with what torch and the driver say that it holds."""
        held = _held(self.device)
        return Info(
            kinds=kinds,
            engine=f"transformers {transformers.__version__} on torch {torch.__version__}",
            inputs=inputs,
            outputs=outputs,
            concurrency=self.slots,
            memory_bytes=held.get("driver_bytes") or held.get("torch_reserved_bytes", 0),
            details={
                "context": self.context,
                "context_per_request": self.limit,
                "device": str(self.device),
                "dtype": str(self.network.dtype).removeprefix("torch."),
                **held,
            },
        )

    async def tokenized(self, request: Request) -> Reply:
        """The tokens of a text or a conversation."""
        asked = read_tokenize(request.body)
        if asked.messages is None:
            work = partial(self.tokens.encode, asked.prompt or "", special=asked.add_special_tokens)
        else:
            said = ChatRequest(messages=asked.messages).conversation()
            work = partial(self.tokens.encode_chat, said, generate=asked.add_generation_prompt)
        return tokenized(await asyncio.get_running_loop().run_in_executor(self.threads, work), self.limit)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Compute in this thread; NoCapacity when the device's memory does not suffice for it."""
        try:
            with torch.inference_mode():
                yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            raise NoCapacity(
                f"{self.model} has no memory left for this request on {self.device}; "
                "send a shorter one, or load the model with less `context`"
            ) from None

    def checked(self, tokens: Sequence[int], what: str) -> list[int]:
        """`tokens`, which the model knows and has room for; InvalidRequest otherwise."""
        if not tokens:
            raise InvalidRequest(f"{what} is empty; the model needs at least one token")
        if len(tokens) > self.limit:
            raise InvalidRequest(
                f"{what} has {len(tokens)} tokens; one request has a context of {self.limit}: send less, "
                "or load the model with more"
            )
        if not all(0 <= token < self.vocabulary for token in tokens):
            raise InvalidRequest(f"{what} has a token that is not from 0 to {self.vocabulary - 1}")
        return list(tokens)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an allocator says, of main memory or of a GPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _held(device: torch.device) -> dict[str, int]:
    """Bytes on a GPU as torch counts them, and as the driver does if it tells; main memory is measured outside."""
    if device.type != "cuda":
        return {}
    torch.cuda.synchronize(device)
    held = {
        "torch_allocated_bytes": torch.cuda.memory_allocated(device),
        "torch_reserved_bytes": torch.cuda.memory_reserved(device),
    }
    driver = _driver_bytes(str(torch.cuda.get_device_properties(device).uuid))
    return held if driver is None else held | {"driver_bytes": driver}


def _driver_bytes(uuid: str) -> int | None:
    """What the driver books for this process; None where it does not know it, as in most containers."""
    import pynvml  # type: ignore[import-untyped]

    try:
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(device):
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                return int(process.usedGpuMemory)
    except pynvml.NVMLError:
        pass
    return None
