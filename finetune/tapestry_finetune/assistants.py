"""Models in memory: one base, and any number of bundles on it."""

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from peft import PeftModel

from tapestry.errors import ConfigError
from tapestry_finetune.adapting import quiet
from tapestry_finetune.base import Base
from tapestry_finetune.bundle import Bundle, require_base
from tapestry_finetune.deltas import NOTHING, Deltas, applied
from tapestry_finetune.voices import Voice as Voice  # noqa: PLC0414 - who imports it here may


class Assistant:
    """A base that speaks as itself or as one of its bundles, one at a time."""

    def __init__(self, base: Base, bundles: Mapping[str, Bundle], module: Any) -> None:  # noqa: ANN401
        """Take a loaded base; see `load_assistant`."""
        self.base = base
        self.bundles = dict(bundles)
        self._plain = module
        self._module: Any = module
        self._base_tokenizer = base.tokenizer()
        self._tokenizers = {name: bundle.tokenizer(base) for name, bundle in bundles.items()}
        self._deltas: dict[str, Deltas] = {n: bundle.deltas() for n, bundle in bundles.items()}
        self._adapters: dict[str, str] = {}
        self._lock = threading.RLock()
        for number, (name, bundle) in enumerate(bundles.items()):
            if bundle.has_adapter():
                self._load(name, f"bundle_{number}", bundle)  # peft refuses names like "values"
        self._module.eval()

    @property
    def names(self) -> list[str]:
        """The bundles that can speak."""
        return list(self.bundles)

    @contextmanager
    def speaking_as(self, name: str | None) -> Iterator[Voice]:
        """Yield the voice of a bundle, or with None that of the untouched base.

        Others wait until the block has ended.

        Raises:
            ConfigError: There is no such bundle.
        """
        if name is not None and name not in self.bundles:
            raise ConfigError(f"no model {name!r} here; there are: {', '.join(self.names)}")
        tokenizer = self._base_tokenizer if name is None else self._tokenizers[name]
        deltas = NOTHING if name is None else self._deltas[name]
        with self._lock, applied(self._plain, deltas), self._adapter(name):
            yield Voice(module=self._module, tokenizer=tokenizer)

    @contextmanager
    def _adapter(self, name: str | None) -> Iterator[None]:
        adapter = self._adapters.get(name) if name is not None else None
        if not isinstance(self._module, PeftModel):
            yield
        elif adapter is None:
            with self._module.disable_adapter():
                yield
        else:
            self._module.set_adapter(adapter)
            self._module.requires_grad_(requires_grad=False)
            yield

    def _load(self, name: str, adapter: str, bundle: Bundle) -> None:
        with quiet():
            if isinstance(self._module, PeftModel):
                self._module.load_adapter(str(bundle.folder), adapter_name=adapter)
            else:
                self._module = PeftModel.from_pretrained(
                    self._plain, str(bundle.folder), adapter_name=adapter
                )
        self._adapters[name] = adapter


def load_assistant(
    base: Base, bundles: Mapping[str, Bundle] | None = None, *, device: str = "auto"
) -> Assistant:
    """Load a base, and bundles that were made for it.

    Args:
        base: Verified, or taken as it is.
        bundles: By the name they are called here.
        device: `auto`, `cpu`, `cuda`, ...

    Raises:
        UntrustedError: A bundle was made for another base.
        ConfigError: The device is not there.
    """
    for bundle in (bundles or {}).values():
        require_base(bundle, base)
    return Assistant(base, bundles or {}, base.load(device))
