"""ONNX models on onnxruntime's CPU provider.

Options: `threads` for one request (default: half the cores), `concurrency` requests at once (default 2).
A model is a `.onnx` file; weights in files beside it are found.
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf

from moc.inference.request import Info, Reply, Request, TensorSpec
from moc.kernel.errors import InvalidRequest, LoadFailed, Unimplemented
from moc.workers.runtimes.options import Options
from moc.workers.runtimes.runtime import Run, file_in
from moc.workers.tensors import chosen, inputs_of, reply_of, texts_of

DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


def load(*, model: str, path: str, options: dict[str, Any], run: Run) -> "Onnx":
    """Open a session; see `Load`."""
    cores = os.cpu_count() or 1
    given = Options("onnx", options)
    threads = given.integer("threads", max(1, cores // 2), low=1, high=1024)
    concurrency = given.integer("concurrency", 2, low=1, high=256)
    given.done()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    # a waiting thread that spins takes its core from the other models
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(file_in(path, ".onnx"), settings, providers=["CPUExecutionProvider"])
    except (InvalidProtobuf, InvalidGraph, InvalidArgument, Fail) as error:
        raise LoadFailed(
            f"{model} is not a model onnxruntime can run: {_plain(error, path)}", reason="load_failed"
        ) from None
    return Onnx(model, session, concurrency)


class Onnx:
    """A session; each request runs in a thread."""

    def __init__(self, model: str, session: ort.InferenceSession, concurrency: int) -> None:
        inputs = tuple(_spec(model, node) for node in session.get_inputs())
        # a sequence or a map, which some classifiers give beside their tensors, has no form in the protocol
        outputs = tuple(_spec(model, node) for node in session.get_outputs() if node.type in DATATYPES)
        self.info = Info(
            kinds=("tensors",),
            engine=f"onnxruntime {ort.__version__}",
            inputs=inputs,
            outputs=outputs,
            concurrency=concurrency,
        )
        self._session = session
        self._texts = frozenset(spec.name for spec in inputs if spec.datatype == "BYTES")
        self._threads = ThreadPoolExecutor(concurrency, "onnx")

    async def infer(self, request: Request) -> Reply:
        """Run the model; cancelling stops it at the next operator."""
        arrays = inputs_of(request, self.info.inputs)
        wanted = chosen(request, self.info.outputs)
        for name in self._texts:
            arrays[name] = texts_of(name, arrays[name])
        settings = ort.RunOptions()
        running = asyncio.get_running_loop().run_in_executor(
            self._threads, self._session.run, [spec.name for spec in wanted], arrays, settings
        )
        try:
            results = await running
        except asyncio.CancelledError:
            settings.terminate = True
            raise
        except InvalidArgument as error:
            raise InvalidRequest(f"the model does not take this input: {error}") from None
        return reply_of({spec.name: result for spec, result in zip(wanted, results, strict=True)}, wanted)

    def stream(self, request: Request) -> AsyncGenerator[bytes, None]:
        """Tensors are not streamed: Unimplemented."""
        raise Unimplemented("an ONNX model does not stream; ask for the whole answer")

    async def close(self) -> None:
        return


def _spec(model: str, node: Any) -> TensorSpec:
    datatype = DATATYPES.get(node.type)
    if datatype is None:
        raise LoadFailed(
            f"{model} takes {node.name!r} as {node.type}, which cannot be sent to it", reason="invalid_spec"
        )
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return TensorSpec(node.name, datatype, shape)


def _plain(error: Exception, path: str) -> str:
    return str(error).replace(path, os.path.basename(path))
