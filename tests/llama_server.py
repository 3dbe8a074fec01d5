"""llama.cpp's own HTTP server as a program: `python tests/llama_server.py PORT MODEL [ALIAS]`, until told to end.

A key in LLAMA_API_KEY is asked of every request but /health, as llama-server does.
"""

import os
import signal
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read by the import

import xllamacpp


def serve(port: int, model: str, alias: str) -> None:
    """Load a GGUF file and answer on loopback."""
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {alias}
    params.port = port
    params.n_ctx = 2048
    params.n_parallel = 2
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 2
    params.warmup = False
    params.verbosity = 1
    params.ui = False
    params.cache_ram_mib = 0
    if key := os.environ.get("LLAMA_API_KEY"):
        params.api_keys = [key]
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    signal.pause()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "llama")
