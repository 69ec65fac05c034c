"""What rounds were made from, kept so that they can be made once more.

```
contributions/round-000012/fr-bnf.contribution   encoded fragments, one after the other
contributions/round-000012/fr-bnf.json           their codec and digests
outer/round-000011.f32                           the outer optimizer's state before the round
published/round-000011/                          the checkpoint before the round
```
A coordinator's home is laid out so, and so is what it exports for auditors. Nothing in an archive
is trusted: the manifest and what members signed say what must be in it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from tapestry.checkpoints.folder import folder_name
from tapestry.checkpoints.manifest import Participation
from tapestry.errors import ConfigError, RejectedError, UntrustedError
from tapestry.params.codecs import Codec, codec_named
from tapestry.params.fragments import fragment_digest, fragments_root
from tapestry.params.layout import ParameterLayout

CONTRIBUTIONS = "contributions"
OUTER = "outer"
PUBLISHED = "published"
_MAX_TABLE_BYTES = 2**28


class MissingError(ConfigError):
    """Something is not in the archive: nothing can be said, neither good nor bad."""


@dataclass(frozen=True, slots=True)
class Archive:
    """A folder laid out as above."""

    folder: Path

    def contribution(self, round_number: int, member_id: str) -> Path:
        """Where the fragments of a contribution lie."""
        name = f"{member_id}.contribution"
        return self.folder / CONTRIBUTIONS / folder_name(round_number) / name

    def announcement(self, round_number: int, member_id: str) -> Path:
        """Where its codec and digests lie."""
        return self.contribution(round_number, member_id).with_suffix(".json")

    def outer_state(self, round_number: int) -> Path:
        """Where the outer state after a round lies."""
        return self.folder / OUTER / f"{folder_name(round_number)}.f32"

    def checkpoint(self, round_number: int) -> Path:
        """Where the checkpoint of a round lies."""
        return self.folder / PUBLISHED / folder_name(round_number)

    def open_contribution(
        self, round_number: int, part: Participation, layout: ParameterLayout
    ) -> "ArchivedContribution":
        """Return a contribution whose digests are those that its member signed.

        Args:
            round_number: Whose plan it answers.
            part: What the manifest says of it.
            layout: Of the vector.

        Raises:
            MissingError: It is not in the archive.
            UntrustedError: What is there is another one, or damaged.
        """
        path = self.contribution(round_number, part.member_id)
        codec, digests = _announced(self.announcement(round_number, part.member_id))
        if len(digests) != layout.fragments or fragments_root(digests).hex() != part.root:
            raise UntrustedError(
                f"{path}: its digests are not those that {part.member_id} signed: root "
                f"{fragments_root(digests).hex()[:16]}, signed {part.root[:16]}"
            )
        bounds = map(layout.bounds, range(layout.fragments))
        sizes = [codec.encoded_bytes(stop - start) for start, stop in bounds]
        if not path.is_file():
            raise MissingError(f"{path}: not in the archive")
        if path.stat().st_size != sum(sizes):
            raise UntrustedError(
                f"{path}: {path.stat().st_size:,} bytes, a contribution has {sum(sizes):,}"
            )
        return ArchivedContribution(path, codec, digests, list(accumulate(sizes, initial=0)))


@dataclass(frozen=True, slots=True)
class ArchivedContribution:
    """A contribution as its member sent it."""

    path: Path
    codec: Codec
    digests: Sequence[bytes]
    """SHA-256 of the fragments, as signed."""
    offsets: Sequence[int]

    def read(self, index: int) -> bytes:
        """Return an encoded fragment.

        Raises:
            UntrustedError: It is damaged.
        """
        begin, end = self.offsets[index], self.offsets[index + 1]
        try:
            with self.path.open("rb") as file:
                file.seek(begin)
                data = file.read(end - begin)
        except OSError as error:
            raise UntrustedError(f"{self.path}: cannot be read: {error.strerror}") from error
        if fragment_digest(data) != self.digests[index]:
            raise UntrustedError(f"{self.path}: fragment {index} is not the one that was signed")
        return data


def _announced(path: Path) -> tuple[Codec, tuple[bytes, ...]]:
    if not path.is_file():
        raise MissingError(f"{path}: not in the archive")
    try:
        if path.stat().st_size > _MAX_TABLE_BYTES:
            raise UntrustedError(f"{path}: longer than {_MAX_TABLE_BYTES:,} bytes")
        match json.loads(path.read_text(encoding="utf-8")):
            case {"codec": str(codec), "digests": [*digests]}:
                return codec_named(codec), tuple(bytes.fromhex(digest) for digest in digests)
    except (OSError, ValueError, TypeError, RecursionError, RejectedError) as error:
        raise UntrustedError(f"{path}: cannot be read: {error}") from error
    raise UntrustedError(f"{path}: names no codec and digests")
