"""Chat and completion by a causal language model."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from moc.inference.request import Reply, Request
from moc.kernel.errors import Unimplemented
from moc.workers.runtimes.feed import Feed
from moc.workers.runtimes.hugging_face.answer import Answer, Outcome
from moc.workers.runtimes.hugging_face.engine import Engine
from moc.workers.runtimes.hugging_face.request import ChatRequest, CompletionRequest, Settings, read
from moc.workers.runtimes.hugging_face.scores import Scorer
from moc.workers.runtimes.hugging_face.text import Text
from moc.workers.runtimes.scores import answer, read_echo

Wish = ChatRequest | CompletionRequest
Take = Callable[[str], bool]
"""Takes the next piece of an answer, which may be empty; False when no more is wanted."""

KEPT = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "repetition_penalty", "no_repeat_ngram_size"),
    *("bad_words_ids", "suppress_tokens", "begin_suppress_tokens"),
)
"""What of a model's own generation configuration holds for every answer."""


class Generator:
    """A language model. Each request runs in a thread, and leaves it at the next token when it is cancelled.

    It cannot be stopped while the model reads its prompt.
    """

    def __init__(self, engine: Engine, *, chats: bool) -> None:
        self.info = engine.info(("chat", "completion", "tokenize") if chats else ("completion", "tokenize"))
        self._engine = engine
        own = engine.network.generation_config
        self._defaults = _Defaults.of(own)
        engine.network.generation_config = self._config = _greedy(own)

    async def infer(self, request: Request) -> Reply:
        """The whole answer."""
        if request.kind == "tokenize":
            return await self._engine.tokenized(request)
        whole = _Whole()
        work = self._scored if _is_echo(request) else self._answered
        running = asyncio.get_running_loop().run_in_executor(self._engine.threads, work, request, whole)
        try:
            return Reply(await running)
        except asyncio.CancelledError:
            whole.cancelled = True
            raise

    async def stream(self, request: Request) -> AsyncGenerator[bytes, None]:
        """The answer token by token; an error met midway is raised after what came before it."""
        if request.kind == "tokenize":
            raise Unimplemented("tokenize is not streamed; ask for the whole answer")
        wish, feed = _read(request), Feed()
        self._engine.threads.submit(self._pour, wish, feed)
        async with contextlib.aclosing(feed.chunks()) as chunks:
            async for chunk in chunks:
                yield chunk

    async def close(self) -> None:
        return

    def _answered(self, request: Request, whole: "_Whole") -> bytes:
        wish = _read(request)
        outcome = self._generate(wish, whole.take)
        return self._document(wish).whole("".join(whole.pieces), outcome)

    def _scored(self, request: Request, whole: "_Whole") -> bytes:
        asked = read_echo(request.body)
        scorer = Scorer(self._engine, asked, lambda: not whole.cancelled)
        return answer(self._engine.model, [scorer.of(prompt) for prompt in asked.prompts()])

    def _pour(self, wish: Wish, feed: Feed) -> None:
        document = self._document(wish)
        try:
            outcome = self._generate(wish, lambda text: feed.put(document.piece(text)) if text else feed.wanted)
            for chunk in document.last(outcome, with_usage=wish.stream_options.include_usage):
                feed.put(chunk)
        except BaseException as error:
            feed.end(error)
        else:
            feed.end()

    def _document(self, wish: Wish) -> Answer:
        return Answer(self._engine.model, chat=isinstance(wish, ChatRequest))

    def _generate(self, wish: Wish, take: Take) -> Outcome:
        prompt = self._engine.checked(self._tokens(wish), "the prompt")
        room = self._engine.limit - len(prompt)
        watch = _Watch(Text(self._engine.tokens.decode, wish.stops), self._defaults.ends, take)
        if room:
            with self._engine.computing():
                tokens = torch.tensor([prompt], device=self._engine.device)
                self._engine.network.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    generation_config=self._config,
                    max_new_tokens=min(wish.length or room, room),
                    logits_processor=self._sampling(wish),
                    stopping_criteria=StoppingCriteriaList([watch]),
                )
        watch.end()
        return Outcome("stop" if watch.stopped else "length", len(prompt), watch.count)

    def _tokens(self, wish: Wish) -> list[int]:
        if isinstance(wish, ChatRequest):
            return self._engine.tokens.encode_chat(wish.conversation())
        text = wish.text()
        return self._engine.tokens.encode(text) if isinstance(text, str) else text

    def _sampling(self, settings: Settings) -> LogitsProcessorList:
        """What chooses a token at random: nothing at temperature 0, when the likeliest is taken."""
        own = self._defaults
        temperature = own.temperature if settings.temperature is None else settings.temperature
        top_k = own.top_k if settings.top_k is None else settings.top_k
        top_p = own.top_p if settings.top_p is None else settings.top_p
        steps = LogitsProcessorList()
        if temperature > 0:
            steps.append(TemperatureLogitsWarper(float(temperature)))
            if top_k:
                steps.append(TopKLogitsWarper(top_k))
            if top_p < 1:
                steps.append(TopPLogitsWarper(float(top_p)))
            steps.append(_Dice(settings.seed, self._engine.device))
        return steps


@dataclass(frozen=True, slots=True)
class _Defaults:
    """How a model answers when the request does not say, and the tokens that end its answers."""

    temperature: float
    top_k: int
    top_p: float
    ends: frozenset[int]

    @classmethod
    def of(cls, config: GenerationConfig) -> "_Defaults":
        """As the model's configuration has it, if that samples; as the API has it otherwise."""
        ends = config.eos_token_id
        listed = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
        if not config.do_sample:
            return cls(1.0, 0, 1.0, listed)
        temperature = 1.0 if config.temperature is None else float(config.temperature)
        return cls(temperature, config.top_k or 0, float(config.top_p or 1.0), listed)


def _greedy(own: GenerationConfig) -> GenerationConfig:
    """A configuration that takes the likeliest token, after whatever `_sampling` made of the scores."""
    kept: dict[str, Any] = {name: getattr(own, name, None) for name in KEPT}
    if kept["pad_token_id"] is None:
        kept["pad_token_id"] = 0  # one sequence at a time has no padding, but the library insists
    return GenerationConfig(do_sample=False, **kept)  # type: ignore[no-untyped-call]


class _Echoed(msgspec.Struct):
    echo: Any = None


class _Whole:
    """The pieces of an answer that is wanted in one."""

    def __init__(self) -> None:
        self.cancelled = False
        self.pieces: list[str] = []

    def take(self, text: str) -> bool:
        self.pieces.append(text)
        return not self.cancelled


class _Watch(StoppingCriteria):
    """Sees each token when it is made, hands its text on, and says when it is enough."""

    def __init__(self, text: Text, ends: frozenset[int], take: Take) -> None:
        self.count = 0
        self.stopped = False
        self._text = text
        self._ends = ends
        self._take = take
        self._done = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if not self._done:
            self._see(int(input_ids[0, -1]))
        return torch.full((1,), self._done, dtype=torch.bool, device=input_ids.device)

    def end(self) -> None:
        """Hand on what was held back."""
        rest = self._text.end()
        self.stopped = self.stopped or self._text.stopped
        if rest:
            self._take(rest)

    def _see(self, token: int) -> None:
        self.count += 1
        if token in self._ends:
            self._done = self.stopped = True
            return
        wanted = self._take(self._text.push(token))
        self.stopped = self._text.stopped
        self._done = self.stopped or not wanted


class _Dice(LogitsProcessor):
    """Makes the likeliest token one drawn at random by its probability (the Gumbel-max trick).

    With a source of randomness of its own, so that a seed gives the same answer whatever else runs.
    """

    def __init__(self, seed: int | None, device: torch.device) -> None:
        self._source = torch.Generator(device)
        if seed is None:
            self._source.seed()
        else:
            self._source.manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty_like(scores).exponential_(generator=self._source)
        return scores - noise.log_()


def _read(request: Request) -> Wish:
    return read(request.body, ChatRequest) if request.kind == "chat" else read(request.body, CompletionRequest)


def _is_echo(request: Request) -> bool:
    """Whether the scores of a text are asked for; what is no JSON is told where it is read."""
    try:
        return request.kind == "completion" and msgspec.json.decode(request.body, type=_Echoed).echo is True
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
