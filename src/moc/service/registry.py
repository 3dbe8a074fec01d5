"""The models, as learning sees them: what trainings start from and end in."""

import asyncio
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from moc import __version__
from moc.kernel.errors import Conflict, InvalidRequest
from moc.learning.architectures import Architecture
from moc.learning.job import ENDED, Job
from moc.learning.ports import Base, Trained
from moc.models.aliases import AliasBook
from moc.models.catalogue import Catalogue
from moc.models.catalogue import Trained as Made
from moc.models.footprint import DTYPE_BYTES
from moc.models.headers.gguf import read_gguf
from moc.models.headers.reader import BadHeader
from moc.models.headers.safetensors import read_safetensors
from moc.models.lineage import Lineage
from moc.models.manager import ModelManager
from moc.models.model import Artifact, ModelSpec, ModelVersion, parse_reference
from moc.models.results import Results
from moc.models.sources.background import in_thread
from moc.models.sources.content import hash_of
from moc.resilience.deadline import NEVER

LLAMA_CPP, TRANSFORMERS = "llama_cpp", "transformers"
ADAPTER, ADAPTER_FILE, PEFT = "adapter", "adapter.gguf", "peft"
_MERGED = {LLAMA_CPP: "model.gguf", TRANSFORMERS: "merged"}
_LICENCE = re.compile(r"^license:\s*(\S.*)$", re.MULTILINE)
_LICENCE_CHARACTERS_MAX = 100
_README_CHARACTERS = 4096


class ModelRegistry:
    """Implements `learning.ports.Registry`, and has models stay whose jobs have not ended."""

    def __init__(self, *, catalogue: Catalogue, aliases: AliasBook, manager: ModelManager, results: Results) -> None:
        self._catalogue = catalogue
        self._aliases = aliases
        self._manager = manager
        self._results = results
        self._jobs: Callable[[], Iterable[Job]] = tuple

    def join(self, jobs: Callable[[], Iterable[Job]]) -> None:
        """Keep the models of these jobs, once those have been read."""
        self._jobs = jobs
        self._catalogue.heed(self)

    # what a training starts from

    def pin(self, reference: str) -> str:
        """See `learning.ports.Registry`; of an alias it is the version of the greatest weight."""
        return self._trainable(reference).reference

    def check_name(self, name: str) -> None:
        """See `learning.ports.Registry`."""
        self._catalogue.check_name(name)

    async def base(self, reference: str) -> Base:
        """See `learning.ports.Registry`. Nothing is loaded."""
        version = self._trainable(reference)
        entry = await self._manager.pull(version.reference, NEVER)
        return await asyncio.to_thread(self._described, entry.version)

    def _trainable(self, reference: str) -> ModelVersion:
        alias = self._aliases.find(reference)
        version = self._catalogue.entry(alias.heaviest if alias else reference).version
        spec, options = version.spec, version.spec.options
        if spec.runtime not in _MERGED:
            raise InvalidRequest(
                f"{version.reference} runs on {spec.runtime}, which gives no way to its weights; "
                f"models of {' and '.join(_MERGED)} can be trained"
            )
        writes_none = options.get("embeddings") or options.get("pooling") == "rank"
        if writes_none or options.get("task") in ("embeddings", "classification"):
            raise InvalidRequest(f"{version.reference} writes no text; only models that do can be trained")
        return version

    def _described(self, version: ModelVersion) -> Base:
        """Blocks."""
        artifact = _files_of(version)
        try:
            path, parameters = _HEADERS[version.spec.runtime](Path(artifact.path))
        except (BadHeader, OSError, InvalidRequest) as error:
            raise InvalidRequest(f"{version.reference} cannot be trained: {error}") from None
        return Base(
            reference=version.reference,
            digest=version.digest,
            runtime=version.spec.runtime,
            path=path,
            sha256=artifact.sha256,
            size_bytes=artifact.size_bytes,
            adapters=tuple(self._adapters(version)),
            spec=msgspec.to_builtins(version.spec),
            parameters=parameters,
        )

    def _adapters(self, version: ModelVersion) -> Iterable[Mapping[str, Any]]:
        listed = version.spec.options.get("lora", [])
        for entry in listed if isinstance(listed, list) else [listed]:
            path = Path(str(entry.get("path"))) if isinstance(entry, dict) else Path()
            peft = path.parent / PEFT
            if not self._results.owns(peft) or not peft.is_dir():
                raise InvalidRequest(
                    f"{version.reference} is served with the adapter {path}, which was not trained here; "
                    "train on the model without it"
                )
            yield {"scale": 1.0, **entry, "peft": str(peft)}

    # what it ends in

    async def register(self, trained: Trained) -> str:
        """See `learning.ports.Registry`. Done again, it names the same version; of one job there may be several names.

        Conflict when the name is that of an alias.
        """
        job, name = trained.job, trained.job.spec.name
        base = self._catalogue.entry(trained.base.reference).version
        spec, artifact = await self._result(trained, base)
        made = Made(artifact, _lineage(trained, licence=await asyncio.to_thread(_licence, trained.base)))
        if name != base.name:  # it is one more to be loaded, and not the next of those that are
            spec = replace(spec, preload=False, pin=False)
        entry = await self._manager.add(name, spec, actor=job.created_by, trained=made)
        return entry.version.reference

    async def _result(self, trained: Trained, base: ModelVersion) -> tuple[ModelSpec, Artifact]:
        """How it is served, and from what."""
        spec, output = base.spec, trained.path
        if trained.kind == ADAPTER:
            files = {ADAPTER_FILE: output / ADAPTER_FILE, PEFT: output / ADAPTER}
            folder = await asyncio.to_thread(self._results.keep, trained.job.id, files)
            path = folder / ADAPTER_FILE
            sha256, _ = await in_thread(partial(hash_of, path))
            adapters = [*spec.options.get("lora", []), {"path": str(path), "scale": 1.0, "sha256": sha256}]
            return replace(spec, options={**spec.options, "lora": adapters}), _files_of(base)
        name = _MERGED[spec.runtime]
        folder = await asyncio.to_thread(self._results.keep, trained.job.id, {name: output / name})
        sha256, found = await in_thread(partial(hash_of, folder / name))
        artifact = Artifact(
            path=str(folder / name), sha256=sha256, size_bytes=found.size_bytes, modified_at=found.modified_at
        )
        options = {key: value for key, value in spec.options.items() if key != "lora"}
        # what the base was declared to need says nothing of weights of another size
        return replace(spec, source=f"file:{artifact.path}", sha256=None, options=options, memory_bytes=None), artifact

    # whose models stay

    def check_free(self, name: str) -> None:
        """Jobs take no names before they end."""

    def check_unused(self, name: str, going: Collection[int], *, last: bool) -> None:
        """Conflict when a job that has not ended is about one of these versions."""
        for job in self._jobs():
            if job.state in ENDED or not job.spec.model or self._aliases.find(job.spec.model):
                continue
            of, version = parse_reference(job.spec.model)
            if of == name and (last if version is None else version in going):
                raise Conflict(f"{job.spec.model} is used by the job {job.id}; wait for its end, or cancel it")


def _files_of(version: ModelVersion) -> Artifact:
    if version.artifact is None:
        raise Conflict(f"the files of {version.reference} are not here; pull it")
    return version.artifact


def _lineage(trained: Trained, *, licence: str) -> Lineage:
    spec = trained.job.spec
    return Lineage(
        base=trained.base.reference,
        base_digest=trained.base.digest,
        data_digest=trained.data_digest,
        job=trained.job.id,
        type=spec.type,
        method=str(trained.hyperparameters.get("method", "")),
        hyperparameters=dict(trained.hyperparameters),
        seed=spec.seed,
        code_version=__version__,
        metrics=dict(trained.metrics),
        trained_tokens=trained.trained_tokens,
        licence=licence,
    )


def _licence(base: Base) -> str:
    """What a GGUF header says, or the top of a folder's README; blocks."""
    if base.path.is_file():
        said = str(read_gguf(base.path).values.get("general.license", ""))
    else:
        readme = base.path / "README.md"
        text = readme.read_text(errors="replace")[:_README_CHARACTERS] if readme.is_file() else ""
        found = _LICENCE.search(text) if text.startswith("---") else None
        said = "" if found is None else found[1]
    return said[:_LICENCE_CHARACTERS_MAX]


def _gguf(path: Path) -> tuple[Path, int]:
    """The file to train on, and how many weights are in it."""
    files = sorted(path.glob("*.gguf")) if path.is_dir() else [path]
    if len(files) != 1:
        raise InvalidRequest(f"it is {len(files)} GGUF files; one is needed")
    header = read_gguf(files[0])
    Architecture.of(header.values, (tensor.name for tensor in header.tensors))
    return files[0], sum(math.prod(tensor.shape) for tensor in header.tensors)


def _safetensors(path: Path) -> tuple[Path, int]:
    files = sorted(path.glob("*.safetensors"))
    if not files or not (path / "config.json").is_file():
        raise InvalidRequest("it is no folder with config.json and *.safetensors")
    held = [read_safetensors(file) for file in files]
    return path, sum(size // DTYPE_BYTES.get(dtype, 1) for file in held for dtype, size in file.items())


_HEADERS: Mapping[str, Callable[[Path], tuple[Path, int]]] = {LLAMA_CPP: _gguf, TRANSFORMERS: _safetensors}
