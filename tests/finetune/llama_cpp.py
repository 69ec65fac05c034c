"""llama.cpp, where its build can be had from the package index: an engine that is not ours."""

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class LlamaCpp:
    """A server of llama.cpp with one model."""

    def __init__(self, address: str) -> None:
        self._address = address.removeprefix("http://")

    def call(self, path: str, **body: Any) -> Any:
        connection = http.client.HTTPConnection(self._address, timeout=120)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def tokens(self, text: str) -> list[int]:
        return list(self.call("/tokenize", content=text, add_special=True)["tokens"])

    def greedy(self, prompt: list[int], most: int) -> list[int]:
        done = self.call(
            "/completion",
            prompt=prompt,
            n_predict=most,
            temperature=0,
            top_k=1,
            ignore_eos=False,
            return_tokens=True,
            cache_prompt=False,
        )
        return list(done["tokens"])

    def templated(self, messages: list[dict[str, str]]) -> str:
        return str(self.call("/apply-template", messages=messages)["prompt"])


@contextmanager
def llama_cpp(model: Path, *, adapter: Path | None = None) -> Iterator[LlamaCpp]:
    """Run `model`, perhaps with an adapter, on one core."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="no build of llama.cpp for this machine")
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_batch, params.n_parallel = 256, 256, 1
    params.n_gpu_layers, params.cpuparams.n_threads, params.port = 0, 1, 0
    params.warmup = params.fit_params = False
    wide = xllamacpp.ggml_type.GGML_TYPE_F32  # its cache is of 16 bits unless told otherwise
    params.cache_type_k = params.cache_type_v = wide
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.use_jinja, params.verbosity = True, -1
    if adapter is not None:
        info = xllamacpp.CommonAdapterLoraInfo()
        info.path, info.scale = str(adapter), 1.0
        params.lora_adapters = [info]
    server = xllamacpp.Server(params)
    try:
        yield LlamaCpp(server.listening_address)
    finally:
        del server
