"""Causal language modelling on transformers' models.

Shapes: B sequences in a micro-batch, T tokens predicted in a sequence, V vocabulary.
"""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import Qwen3Config, Qwen3ForCausalLM

from tapestry.data.batches import TrainingBatches, evaluation_windows
from tapestry.data.chat import CHATML, TEMPLATE_FILE, TURN_END, has_turns
from tapestry.data.corpus import Corpus, prepare_corpus
from tapestry.data.counting import use_of
from tapestry.data.reading import read_documents
from tapestry.data.sources import CorpusSpec
from tapestry.data.tokenizer import (
    byte_tokenizer,
    end_of_text_id,
    load_tokenizer,
    tokenizer_files,
    train_tokenizer,
)
from tapestry.data.usage import RoundUse
from tapestry.errors import ConfigError
from tapestry.objectives.loading import build_model, load_model
from tapestry.objectives.objective import Batches, Created, OnPreparing, Statistics
from tapestry.objectives.reports import Evaluation
from tapestry.objectives.sizes import size_named

_ADOPTED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_ORIGIN_KEYS = frozenset({"_name_or_path", "auto_map", "name_or_path"})
"""Where the founder keeps the model, and whose code would load it: neither is published."""
_EVALUATION_SEQUENCES = 16


class CausalLM:
    """Next-token prediction: from scratch by a named size, or from an existing model."""

    name = "causal-lm"

    def create(self, settings: Mapping[str, Any], *, seed: int) -> Created:
        """Return the model of genesis.

        Args:
            settings: `model`, a folder in transformers' format to adopt; or `size` with
                optionally `tokenizer` (a `tokenizer.json`), `text` (paths to train one on) and
                `vocabulary` (its size).
            seed: Of the initial weights.

        Raises:
            ConfigError: A path or a name cannot be used.
        """
        if settings.get("model"):
            return _adopt(Path(settings["model"]))
        size = size_named(settings["size"])
        tokenizer = _tokenizer_for(settings, default_vocabulary=size.vocabulary)
        vocabulary = tokenizer.get_vocab_size()
        files = tokenizer_files(tokenizer, model_max_length=max(2048, size.sequence_tokens))
        end_id = end_of_text_id(tokenizer, json.loads(files["tokenizer_config.json"]))
        config = Qwen3Config(
            **size.model_config(vocabulary=vocabulary),
            bos_token_id=None,
            eos_token_id=end_id,
            pad_token_id=tokenizer.token_to_id("<|padding|>"),
            dtype="float32",
        )
        torch.manual_seed(seed)
        module = Qwen3ForCausalLM(config)
        files["config.json"] = _config_json(config, module)
        if has_turns(tokenizer):
            ends = [end_id, tokenizer.token_to_id(TURN_END)]
            table = {"eos_token_id": ends, "pad_token_id": config.pad_token_id}
            files["generation_config.json"] = (json.dumps(table) + "\n").encode()
        return Created(
            module=module,
            files=files,
            settings={"size": settings["size"], "vocabulary": vocabulary},
        )

    def build(self, folder: Path) -> torch.nn.Module:
        """Return the model described by `config.json` in `folder`; its weights are unset."""
        return build_model(folder)

    def prepare(
        self,
        text: CorpusSpec | Sequence[Path],
        checkpoint: Path,
        *,
        cache: Path,
        sequence_tokens: int,
        held_out_fraction: float,
        held_out_bytes: int,
        on_progress: OnPreparing | None = None,
    ) -> Corpus:
        """Tokenize and pack `text` with the tokenizer of `checkpoint`, once."""
        tokenizer = load_tokenizer(checkpoint)
        return prepare_corpus(
            text,
            tokenizer,
            end_of_text_id=_end_id(tokenizer, checkpoint),
            cache_folder=cache,
            held_out_fraction=held_out_fraction,
            held_out_max_bytes=held_out_bytes,
            sequence_tokens=sequence_tokens,
            on_read=partial(on_progress, "reading the text") if on_progress else None,
            on_progress=partial(on_progress, "packing the text") if on_progress else None,
        )

    def batches(
        self,
        own: Corpus,
        shared: Corpus | None,
        *,
        sequences: int,
        sequence_tokens: int,
        shared_fraction: float,
        seed: int,
    ) -> Batches:
        """Return batches [B, T+1] of token ids."""
        return TrainingBatches(
            own.train,
            shared.train if shared is not None else None,
            sequences=sequences,
            sequence_tokens=sequence_tokens,
            shared_fraction=shared_fraction,
            seed=seed,
            streams=own.streams,
        )

    def used(
        self, corpus: Corpus, batches: TrainingBatches, *, first_batch: int, batches_taken: int
    ) -> RoundUse:
        """Return what of `corpus` some of its batches held, source by source."""
        return use_of(corpus, batches, first_batch=first_batch, batches_taken=batches_taken)

    def loss(self, module: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy of `batch` [B, T+1], in nats per token."""
        logits = module(input_ids=batch[:, :-1], use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())

    def begin_round(self, module: torch.nn.Module, statistics: Statistics) -> None:
        """Do nothing: a language model shares no statistics."""

    def round_statistics(self, module: torch.nn.Module, batches: Batches) -> Statistics:  # noqa: ARG002
        """Return nothing: a language model shares no statistics."""
        return {}

    def monitors(self, module: torch.nn.Module) -> dict[str, float]:
        """Return the norm of the parameters."""
        squares = [float(p.detach().float().square().sum()) for p in module.parameters()]
        return {"parameter_norm": math.sqrt(math.fsum(squares))}

    def non_averageable(self, module: torch.nn.Module) -> frozenset[str]:  # noqa: ARG002
        """Return nothing: every trainable parameter of a language model can be averaged."""
        return frozenset()

    def evaluate(self, module: torch.nn.Module, corpus: Corpus) -> Evaluation:
        """Return bits over the held-out text; every token of it is predicted exactly once."""
        device = next(module.parameters()).device
        module.eval()
        nats = 0.0
        with torch.no_grad():  # a sharded module would not train after inference mode
            for inputs_BT, targets_BT in evaluation_windows(
                corpus.held_out,
                sequence_tokens=corpus.sequence_tokens,
                end_of_text_id=corpus.end_of_text_id,
                batch=_EVALUATION_SEQUENCES,
            ):
                nats += _summed_nats(module, inputs_BT, targets_BT, device)
        return Evaluation(bits=nats / math.log(2), text_bytes=corpus.held_out_bytes)


def _summed_nats(
    module: torch.nn.Module, inputs_BT: np.ndarray, targets_BT: np.ndarray, device: torch.device
) -> float:
    logits_BTV = module(input_ids=torch.from_numpy(inputs_BT).to(device), use_cache=False).logits
    targets = torch.from_numpy(targets_BT).to(device)
    summed = cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum"
    )
    return float(summed)


def _adopt(folder: Path) -> Created:
    """Take an existing model in transformers' format as the model of genesis."""
    module: Any = load_model(folder)
    tokenizer = load_tokenizer(folder)
    _end_id(tokenizer, folder)
    embeddings = module.get_input_embeddings().num_embeddings
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= embeddings:
        raise ConfigError(
            f"{folder}: its tokenizer has {highest + 1:,} tokens, the model embeds {embeddings:,}: "
            "they do not belong together"
        )
    files = {
        name: (folder / name).read_bytes()
        for name in _ADOPTED_FILES
        if (folder / name).is_file() and name != "config.json"
    }
    files["config.json"] = _config_json(module.config, module)
    if has_turns(tokenizer):
        files[TEMPLATE_FILE] = CHATML.encode()
    if "tokenizer_config.json" in files:
        files["tokenizer_config.json"] = _without_origin(files["tokenizer_config.json"])
    return Created(module=module, files=files, settings={"model": folder.name})


def _config_json(config: Any, module: torch.nn.Module) -> bytes:  # noqa: ANN401
    """Return `config.json` with the class that loads it and the type that we publish."""
    table = {key: value for key, value in config.to_dict().items() if key not in _ORIGIN_KEYS}
    table["architectures"] = [type(module).__name__]
    table["dtype"] = "float32"
    return (json.dumps(table, indent=2, sort_keys=True) + "\n").encode()


def _without_origin(content: bytes) -> bytes:
    """Return a JSON table without the founder's paths and without pointers to code."""
    table = {k: v for k, v in json.loads(content).items() if k not in _ORIGIN_KEYS}
    return (json.dumps(table, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _tokenizer_for(settings: Mapping[str, Any], *, default_vocabulary: int) -> Tokenizer:
    if settings.get("tokenizer"):
        return load_tokenizer(Path(settings["tokenizer"]))
    paths = [Path(path) for path in settings.get("text") or ()]
    if not paths:
        return byte_tokenizer()
    texts: Iterable[str] = (document.text for document in read_documents(paths))
    return train_tokenizer(texts, vocabulary_size=settings.get("vocabulary") or default_vocabulary)


def _end_id(tokenizer: Tokenizer, folder: Path) -> int:
    path = folder / "tokenizer_config.json"
    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return end_of_text_id(tokenizer, table)
