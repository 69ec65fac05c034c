"""The model that a community starts from: a published checkpoint that was verified first."""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tapestry.checkpoints.folder import STATEMENTS
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.data.chat import CHATML, PLAIN, TEMPLATE_FILE, TURN_END, has_turns
from tapestry.data.replay import read_replay
from tapestry.errors import ConfigError, UntrustedError
from tapestry.objectives.loading import load_model, load_text_tokenizer
from tapestry.objectives.training import choose_device, choose_threads

UNVERIFIED = (
    "--unverified takes it as it is: nobody can then say which institutions stand behind the "
    "model, or whether somebody changed it on the way"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseIdentity:
    """Which model it is, so that nothing made for it is laid on another."""

    manifest: str | None
    """Hex manifest digest of the consensus checkpoint; None: not a published checkpoint."""
    federation: str | None
    """Hex genesis digest."""
    round: int | None
    tensors: str
    """Hex SHA-256 over names, types, shapes and bytes of all tensors."""
    tokenizer: str
    """Hex SHA-256 of `tokenizer.json`."""
    architecture: str
    """Hex SHA-256 of names and shapes of all tensors."""
    licence: str

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON table."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """A base model on the disk."""

    folder: Path
    identity: BaseIdentity

    def tokenizer(self) -> Any:  # noqa: ANN401 - transformers is not typed
        """Return the tokenizer with the template that training, chat and export share."""
        return tokenizer_with(self.folder, self.template())

    def template(self) -> str:
        """Return the consensus' own template if it has one that marks what is learnt, else ours."""
        path = self.folder / TEMPLATE_FILE
        if path.is_file():
            own = path.read_text(encoding="utf-8")
            if re.search(r"{%-?\s*generation\s*-?%}", own):
                return own
        return CHATML if has_turns(load_text_tokenizer(self.folder).backend_tokenizer) else PLAIN

    def load(self, device: str = "auto") -> Any:  # noqa: ANN401 - transformers is not typed
        """Return the model in float32 on `device`, in evaluation mode."""
        module: Any = load_model(self.folder)
        choose_threads(sum(parameter.numel() for parameter in module.parameters()))
        return module.to(choose_device(device)).eval()

    def replay(self) -> list[str]:
        """Return the open text that the federation publishes for replay."""
        return read_replay(self.folder)

    def context_tokens(self) -> int:
        """Return the longest sequence that the model was made for."""
        table = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return int(table.get("max_position_embeddings", 2048))


def tokenizer_with(folder: Path, template: str) -> Any:  # noqa: ANN401 - transformers is not typed
    """Return the tokenizer in `folder` with a chat template, and a token to pad with.

    Raises:
        ConfigError: There is none, or it is damaged.
    """
    tokenizer = load_text_tokenizer(folder)
    tokenizer.chat_template = template
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def open_base(folder: Path, *, federation: str | None = None, unverified: bool = False) -> Base:
    """Verify the checkpoint in `folder` and tell which model it is.

    Args:
        folder: A published checkpoint; with `unverified` any folder that transformers loads.
        federation: Identity that the caller expects, at least 16 hex digits.
        unverified: Take the model whoever made it.

    Raises:
        UntrustedError: The checkpoint does not verify, or is none and `unverified` is not set.
        ConfigError: There is no model in `folder`.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give a published checkpoint's")
    manifest = genesis = number = None
    if not unverified:
        if not (folder / STATEMENTS).is_dir():
            raise UntrustedError(f"{folder}: not a published checkpoint. {UNVERIFIED}")
        verified = verify_checkpoint(folder, federation=federation)
        manifest, genesis = verified.manifest_digest, verified.genesis_digest
        number = verified.manifest.round
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(f"{folder}: no tokenizer.json here")
    tensors, architecture = _digests(folder)
    identity = BaseIdentity(
        manifest=manifest,
        federation=genesis,
        round=number,
        tensors=tensors,
        architecture=architecture,
        tokenizer=hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
        licence=_licence(folder),
    )
    return Base(folder=folder, identity=identity)


def describe(identity: BaseIdentity) -> str:
    """Return how people call it: its round and digest, or the digest of its tensors."""
    if identity.manifest is None:
        return f"unverified model {identity.tensors[:12]}"
    return f"consensus of round {identity.round} ({identity.manifest[:12]})"


def _digests(folder: Path) -> tuple[str, str]:
    """Return the hex digests of all tensors, and of their names and shapes."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{folder}: has no .safetensors file; other formats can run code")
    content, form = hashlib.sha256(), hashlib.sha256()
    for name, dtype, shape, data in _tensors(files):
        head = f"{name}\0{dtype}\0{shape}\0".encode()
        content.update(head)
        content.update(data)
        form.update(head)
    return content.hexdigest(), form.hexdigest()


def _tensors(files: list[Path]) -> Iterator[tuple[str, str, list[int], memoryview]]:
    """Yield name, type, shape and bytes of every tensor, by name."""
    import torch  # noqa: PLC0415 - after offline

    where: dict[str, Path] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                where |= dict.fromkeys(opened.keys(), file)
        except Exception as error:
            raise ConfigError(f"{file}: not a safetensors file: {error}") from error
    for name in sorted(where):
        with safe_open(where[name], framework="pt") as opened:
            tensor = opened.get_tensor(name).contiguous()
        raw = tensor.reshape(-1).view(torch.uint8).numpy()
        yield name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), memoryview(raw)


def _licence(folder: Path) -> str:
    """Return what the model card's head says of the licence, or `undeclared`."""
    path = folder / "README.md"
    if path.is_file():
        found = re.search(r"^license:\s*(\S+)\s*$", path.read_text("utf-8")[:4096], re.MULTILINE)
        if found:
            return found.group(1)
    return "undeclared"


def turn_end_ids(tokenizer: Any) -> list[int]:  # noqa: ANN401 - transformers is not typed
    """Return the ids that end an answer."""
    ids = {tokenizer.eos_token_id, tokenizer.backend_tokenizer.token_to_id(TURN_END)}
    return sorted(token for token in ids if token is not None)
