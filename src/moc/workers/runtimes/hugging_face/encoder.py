"""Embeddings and classification: texts through an encoder, several at a time."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch

from moc.inference.request import Reply, Request, TensorSpec
from moc.kernel.errors import Cancelled, InvalidRequest, Unimplemented
from moc.workers.runtimes.hugging_face.engine import Engine
from moc.workers.runtimes.hugging_face.folder import Pooling
from moc.workers.runtimes.hugging_face.request import EmbeddingsRequest, read
from moc.workers.tensors import chosen, inputs_of, reply_of, texts_of

T = TypeVar("T")
FORMATS = ("float", "base64")
_encode = msgspec.json.Encoder().encode


class _Work:
    """Texts on their way through a network; cancelling takes effect at the next batch."""

    def __init__(self) -> None:
        self.cancelled = False

    def run(self, engine: Engine, encoded: Sequence[list[int]], use: Callable[[Any, torch.Tensor], Any]) -> list[Any]:
        """What `use` makes of the network's output and the attention mask of each batch, a row for each text."""
        rows: list[Any] = [None] * len(encoded)
        for batch in _batches(encoded, engine.context // engine.slots):
            if self.cancelled:
                raise Cancelled("nobody waits for this answer any more")
            width = max(len(encoded[index]) for index in batch)
            padded = [encoded[index] + [engine.tokens.padding] * (width - len(encoded[index])) for index in batch]
            mask = [[1] * len(encoded[index]) + [0] * (width - len(encoded[index])) for index in batch]
            with engine.computing():
                attention = torch.tensor(mask, device=engine.device)
                output = engine.network(
                    input_ids=torch.tensor(padded, device=engine.device), attention_mask=attention, return_dict=True
                )
                for index, row in zip(batch, use(output, attention).float().cpu().numpy(), strict=True):
                    rows[index] = row
        return rows


async def _in_thread(engine: Engine, task: Callable[[_Work], T]) -> T:
    work = _Work()
    try:
        return await asyncio.get_running_loop().run_in_executor(engine.threads, task, work)
    except asyncio.CancelledError:
        work.cancelled = True
        raise


def _batches(encoded: Sequence[list[int]], tokens_max: int) -> Iterator[list[int]]:
    """The indices of texts of like length, as many as have `tokens_max` together when padded; at least one."""
    batch: list[int] = []
    for index in sorted(range(len(encoded)), key=lambda index: len(encoded[index])):
        if batch and (len(batch) + 1) * len(encoded[index]) > tokens_max:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


class Embedder:
    """An encoder that gives one vector for each text."""

    def __init__(self, engine: Engine, pooling: Pooling) -> None:
        self.info = engine.info(("embeddings", "tokenize"))
        self._engine = engine
        self._pooling = pooling
        self._size = int(engine.network.config.get_text_config().hidden_size)

    async def infer(self, request: Request) -> Reply:
        """An embedding of each input, in their order."""
        if request.kind == "tokenize":
            return await self._engine.tokenized(request)
        wish = read(request.body, EmbeddingsRequest)
        if wish.encoding_format not in FORMATS:
            raise InvalidRequest(f"encoding_format is {wish.encoding_format!r}; there are {' and '.join(FORMATS)}")
        if wish.dimensions not in (None, self._size):
            raise Unimplemented(f"this model gives embeddings of {self._size} dimensions and no others")
        texts = wish.texts()
        return await _in_thread(self._engine, lambda work: self._embed(texts, wish.encoding_format, work))

    def stream(self, request: Request) -> AsyncGenerator[bytes, None]:
        """Embeddings are not streamed: Unimplemented."""
        raise Unimplemented("embeddings are not streamed; ask for the whole answer")

    async def close(self) -> None:
        return

    def _embed(self, texts: Sequence[str | list[int]], encoding: str, work: _Work) -> Reply:
        engine = self._engine
        encoded = [
            engine.checked(engine.tokens.encode(text) if isinstance(text, str) else text, f"input {number}")
            for number, text in enumerate(texts)
        ]
        vectors = work.run(engine, encoded, lambda output, mask: self._pool(output.last_hidden_state, mask))
        count = sum(map(len, encoded))
        return Reply(
            _encode(
                {
                    "object": "list",
                    "data": [
                        {"object": "embedding", "index": index, "embedding": _shown(vector, encoding)}
                        for index, vector in enumerate(vectors)
                    ],
                    "model": engine.model,
                    "usage": {"prompt_tokens": count, "total_tokens": count},
                }
            )
        )

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = hidden.float()
        match self._pooling.how:
            case "cls":
                pooled = hidden[:, 0]
            case "last":
                pooled = hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
            case _:
                pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(pooled) if self._pooling.normalised else pooled


def _shown(vector: Any, encoding: str) -> Any:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()


class Classifier:
    """An encoder that gives each text its likeliest label, and how sure it is."""

    def __init__(self, engine: Engine) -> None:
        self.info = engine.info(
            ("tensors",),
            inputs=(TensorSpec("text", "BYTES", (-1,)),),
            outputs=(TensorSpec("label", "BYTES", (-1,)), TensorSpec("score", "FP32", (-1,))),
        )
        self._engine = engine
        config = engine.network.config
        self._labels = [str(config.id2label[index]) for index in range(config.num_labels)]
        self._kind = config.problem_type or ("single_label_classification" if config.num_labels > 1 else "regression")

    async def infer(self, request: Request) -> Reply:
        """A label and a score for each text; for a regression the score is the model's number."""
        texts = texts_of("text", inputs_of(request, self.info.inputs)["text"]).tolist()
        wanted = chosen(request, self.info.outputs)
        rows = await _in_thread(self._engine, lambda work: self._scores(texts, work))
        best = [int(np.argmax(row)) for row in rows]
        found = {
            "label": np.array([self._labels[index] for index in best], object),
            "score": np.array([row[index] for row, index in zip(rows, best, strict=True)], np.float32),
        }
        return reply_of(found, wanted)

    def stream(self, request: Request) -> AsyncGenerator[bytes, None]:
        """Tensors are not streamed: Unimplemented."""
        raise Unimplemented("a classifier does not stream; ask for the whole answer")

    async def close(self) -> None:
        return

    def _scores(self, texts: Sequence[str], work: _Work) -> list[Any]:
        engine = self._engine
        encoded = [engine.checked(engine.tokens.encode(text), f"text {number}") for number, text in enumerate(texts)]
        return work.run(engine, encoded, lambda output, _: self._probabilities(output.logits.float()))

    def _probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        match self._kind:
            case "single_label_classification":
                return logits.softmax(-1)
            case "multi_label_classification":
                return logits.sigmoid()
        return logits
