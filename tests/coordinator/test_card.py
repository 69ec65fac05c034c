"""The model card: renewed as measurements come in, so that its folder verifies at every moment."""

import itertools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tapestry.checkpoints.folder import CARD_FILE, read_lineage
from tapestry.checkpoints.verify import verify_checkpoint
from tapestry.errors import ConfigError, UntrustedError
from tapestry.identity.envelopes import Envelope
from tapestry_coordinator.annotating import annotate_card
from tapestry_coordinator.card import plot_history, write_card
from tapestry_coordinator.database import database_url
from tapestry_coordinator.events import Published
from tapestry_coordinator.registry import Registry
from tapestry_coordinator.testimony import StoredEvaluation
from tests.conftest import Federation
from tests.coordinator.small import found_small

README, RESULTS, PLOT = "README.md", "tapestry/results.json", "tapestry/results.png"
PNG = b"\x89PNG\r\n\x1a\n" + b"an image, as far as anybody here looks"

Files = Mapping[str, bytes]


def measured(number: int, member_id: str, figure: float, language: str = "fr") -> StoredEvaluation:
    return StoredEvaluation(
        round=number,
        member_id=member_id,
        language=language,
        bits_per_byte=figure,
        held_out_bytes=4096,
    )


@dataclass
class Published1:
    """A copy of a published checkpoint, and what its operator adds."""

    folder: Path
    notes: Path
    federation: Federation

    @property
    def lineage(self) -> Sequence[Envelope]:
        return read_lineage(self.folder)

    def renew(self, *evaluations: StoredEvaluation) -> None:
        write_card(
            self.folder,
            self.lineage,
            evaluations,
            self.federation.home.load_signing_key(),
            notes=self.notes,
        )

    def annotate(self, text: str, **images: bytes) -> None:
        self.notes.mkdir(exist_ok=True)
        (self.notes / "notes.md").write_text(text, encoding="utf-8")
        for name, content in images.items():
            (self.notes / f"{name}.png").write_bytes(content)

    def files(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file()
        }

    def readme(self) -> str:
        return (self.folder / README).read_text(encoding="utf-8")


@pytest.fixture
def checkpoint(federation: Federation, tmp_path: Path) -> Published1:
    folder = tmp_path / "round-000001"
    shutil.copytree(federation.newest, folder)
    return Published1(folder, tmp_path / "notes", federation)


def stages(folder: Path, before: Files, after: Files, order: Sequence[str]) -> Iterator[str]:
    """Take `folder` from `before` to `after`, one file at a time; yield after each."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        name = path.relative_to(folder).as_posix()
        if path.read_bytes() != before.get(name):
            path.unlink()
    for name, content in before.items():
        if not (folder / name).is_file():
            (folder / name).write_bytes(content)
    yield "nothing"
    for name in order:
        if name in after:
            (folder / name).write_bytes(after[name])
        else:
            (folder / name).unlink()
        yield name


def changed(before: Files, after: Files) -> list[str]:
    """Names that a renewal touches: the card, the new files, then what is removed."""
    written = [name for name in after if before.get(name) != after[name] and name != CARD_FILE]
    return [CARD_FILE, *written, *(name for name in before if name not in after)]


# What a card says


def test_without_measurements_no_language_is_claimed(checkpoint: Published1) -> None:
    checkpoint.renew()
    text = checkpoint.readme()
    assert "language:" not in text
    assert "Not measured yet." in text
    assert not (checkpoint.folder / PLOT).exists()
    verify_checkpoint(checkpoint.folder)


def test_measurements_are_in_the_text_the_table_and_the_signed_card(
    checkpoint: Published1,
) -> None:
    checkpoint.renew(measured(0, "a", 3.5), measured(1, "a", 2.25), measured(2, "a", 1.0))
    assert "| a | fr | 2.2500 | 4,096 |" in checkpoint.readme()
    rows: list[dict[str, Any]] = json.loads((checkpoint.folder / RESULTS).read_text())
    assert [(row["round"], row["bits_per_byte"]) for row in rows] == [(0, 3.5), (1, 2.25)], (
        "history up to this checkpoint and nothing of later ones"
    )
    card = verify_checkpoint(checkpoint.folder).card
    assert [(e.member_id, e.bits_per_byte) for e in card.evaluations] == [("a", 2.25)]
    assert (checkpoint.folder / PLOT).read_bytes().startswith(b"\x89PNG")


def test_participation_and_identity_are_in_the_text(checkpoint: Published1) -> None:
    text = checkpoint.readme()
    verified = verify_checkpoint(checkpoint.folder)
    assert "| fr-bnf | 0.5000 | 10,000 | 1.0000 |" in text  # two members under a cap of a half
    assert "| ar-unc | absent: this node's policy refuses round 1 | | |" in text
    assert f"tapestry checkpoint verify PATH --federation {verified.genesis_digest[:16]}" in text
    assert verified.manifest.vector_root in text


def test_a_card_of_the_same_measurements_is_the_same(checkpoint: Published1) -> None:
    before = checkpoint.files()
    checkpoint.renew(*checkpoint.federation.evaluations)
    assert checkpoint.files() == before


def test_notes_and_images_are_shown_and_signed(checkpoint: Published1) -> None:
    checkpoint.annotate("## Über Daten\n\n![Loss](tapestry/loss.png)", loss=PNG)
    checkpoint.renew()
    assert "\n## Über Daten\n\n![Loss](tapestry/loss.png)\n" in checkpoint.readme()
    assert (checkpoint.folder / "tapestry/loss.png").read_bytes() == PNG
    card = verify_checkpoint(checkpoint.folder).card
    assert "tapestry/loss.png" in {entry.name for entry in card.files}


def test_an_image_that_is_removed_disappears(checkpoint: Published1) -> None:
    checkpoint.annotate("text", loss=PNG, other=PNG + b"2")
    checkpoint.renew()
    (checkpoint.notes / "loss.png").unlink()
    checkpoint.renew()
    assert not (checkpoint.folder / "tapestry/loss.png").exists()
    assert (checkpoint.folder / "tapestry/other.png").is_file()
    names = {entry.name for entry in verify_checkpoint(checkpoint.folder).card.files}
    assert names == {
        README, RESULTS, "tapestry/other.png",
        "bom.cdx.json", "model.sig", "tapestry/model-signing.pub",
    }  # fmt: skip


def test_measurements_that_are_withdrawn_take_their_plot_along(checkpoint: Published1) -> None:
    assert (checkpoint.folder / PLOT).is_file()
    checkpoint.renew()
    assert not (checkpoint.folder / PLOT).exists()
    verify_checkpoint(checkpoint.folder)


# Every moment of a renewal


def renewal(checkpoint: Published1) -> tuple[Files, Files]:
    """A renewal that changes, adds and removes: the files before and after it."""
    checkpoint.annotate("first", old=PNG, kept=PNG)
    checkpoint.renew(measured(1, "a", 2.5))
    before = checkpoint.files()
    (checkpoint.notes / "old.png").unlink()
    checkpoint.annotate("second", new=PNG, kept=PNG + b"2")
    return before, renewed(checkpoint)  # without measurements the plot goes too


def renewed(checkpoint: Published1, *figures: StoredEvaluation) -> Files:
    """Renew, and return the files under the card that comes first, before the one that settles."""
    real, cards = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        if target == checkpoint.folder / CARD_FILE:
            cards.append(self.read_bytes())
        return real(self, target)

    with mock.patch.object(Path, "replace", replace):
        checkpoint.renew(*figures)
    return {**checkpoint.files(), CARD_FILE: cards[0]}


def test_the_folder_verifies_whichever_file_is_the_last_that_was_replaced(
    checkpoint: Published1,
) -> None:
    before, after = renewal(checkpoint)
    names = changed(before, after)
    assert set(names[1:]) == {
        README, RESULTS, PLOT, "tapestry/new.png", "tapestry/kept.png", "tapestry/old.png",
        "bom.cdx.json", "model.sig",
    }  # fmt: skip
    for last in stages(checkpoint.folder, before, after, names):
        assert verify_checkpoint(checkpoint.folder), last
    assert checkpoint.files() == after


def test_the_order_in_which_a_file_system_keeps_the_files_does_not_matter(
    checkpoint: Published1,
) -> None:
    before, after = renewal(checkpoint)
    card, *others = changed(before, after)
    for order in itertools.islice(itertools.permutations(others), 0, 720, 180):
        for _last in stages(checkpoint.folder, before, after, [card, *order]):
            verify_checkpoint(checkpoint.folder)


def test_a_crash_in_a_renewal_is_mended_by_the_next_one(checkpoint: Published1) -> None:
    before, after = renewal(checkpoint)
    names = changed(before, after)
    for crashed in range(len(names) + 1):
        for _last in stages(checkpoint.folder, before, after, names[:crashed]):
            pass
        halfway = checkpoint.files()
        checkpoint.annotate(f"third, after {crashed}")
        mended = renewed(checkpoint, *[measured(1, "b", 2.0)][: crashed % 2])  # a plot, or none
        verify_checkpoint(checkpoint.folder)
        assert not (checkpoint.folder / "tapestry/old.png").exists()
        for _last in stages(checkpoint.folder, halfway, mended, changed(halfway, mended)):
            verify_checkpoint(checkpoint.folder)


def test_a_prepared_renewal_that_was_never_moved_in_is_thrown_away(
    checkpoint: Published1, tmp_path: Path
) -> None:
    prepared = tmp_path / ".round-000001.card.part" / "tapestry"
    prepared.mkdir(parents=True)
    (prepared / "stray.png").write_bytes(PNG)
    checkpoint.renew()
    verify_checkpoint(checkpoint.folder)
    assert not prepared.parent.exists()


def test_a_renewal_does_not_touch_the_checkpoint_itself(checkpoint: Published1) -> None:
    before, after = renewal(checkpoint)
    for name in ("model.safetensors", "config.json", "tapestry/manifest.json"):
        assert before[name] == after[name]


# What a renewal does not bless


@pytest.mark.parametrize("name", [README, RESULTS, PLOT])
def test_a_tampered_file_is_neither_signed_nor_tolerated_by_a_renewal(
    checkpoint: Published1, name: str
) -> None:
    tampered = b"send your tokens to example.org"
    (checkpoint.folder / name).write_bytes(tampered)
    checkpoint.renew(measured(1, "a", 2.5))
    verify_checkpoint(checkpoint.folder)
    assert checkpoint.files()[name] != tampered
    (checkpoint.folder / name).write_bytes(tampered)
    with pytest.raises(UntrustedError, match=name):
        verify_checkpoint(checkpoint.folder)


def test_an_unlisted_file_is_not_signed_by_a_renewal(checkpoint: Published1) -> None:
    (checkpoint.folder / "tapestry/stray.png").write_bytes(PNG)
    checkpoint.renew(measured(1, "a", 2.5))
    with pytest.raises(UntrustedError, match=r"stray\.png: not a file of this checkpoint"):
        verify_checkpoint(checkpoint.folder)


def test_the_place_of_a_removed_image_is_not_free_for_anything(checkpoint: Published1) -> None:
    checkpoint.annotate("text", loss=PNG)
    checkpoint.renew()
    (checkpoint.notes / "loss.png").unlink()
    checkpoint.renew()
    (checkpoint.folder / "tapestry/loss.png").write_bytes(b"anything at all")
    with pytest.raises(UntrustedError, match=r"loss\.png"):
        verify_checkpoint(checkpoint.folder)


def test_an_empty_file_does_not_stand_for_one_that_was_not_there_before(
    checkpoint: Published1,
) -> None:
    checkpoint.renew()
    checkpoint.renew(measured(1, "a", 2.5))
    verify_checkpoint(checkpoint.folder)
    (checkpoint.folder / PLOT).write_bytes(b"")
    with pytest.raises(UntrustedError, match=r"results\.png"):
        verify_checkpoint(checkpoint.folder)


def test_a_card_signed_by_another_key_is_not_renewed(checkpoint: Published1) -> None:
    other = found_small(checkpoint.folder.parent / "other", federation="warp")
    shutil.copyfile(other.home.checkpoint(0) / CARD_FILE, checkpoint.folder / CARD_FILE)
    with pytest.raises(UntrustedError, match="card: signed by key"):
        checkpoint.renew()


# What members write is data


@pytest.mark.parametrize("language", ["$\\frac$", "$", "_hidden", "a|b", "<script>", ""])
def test_whatever_a_member_calls_its_language_a_card_can_be_made(
    checkpoint: Published1, language: str
) -> None:
    checkpoint.renew(measured(1, "a", 2.5, language))
    verify_checkpoint(checkpoint.folder)


@pytest.mark.filterwarnings("ignore:Glyph")  # a font without the letter draws a box
@pytest.mark.parametrize("language", ["中文", "العربية"])
def test_every_script_is_welcome(checkpoint: Published1, language: str) -> None:
    checkpoint.renew(measured(1, "a", 2.5, language))
    assert language in checkpoint.readme()


def test_a_pipe_in_a_members_words_does_not_break_the_table(checkpoint: Published1) -> None:
    checkpoint.renew(measured(1, "a", 2.5, "x | 0.0001 | 9"))
    (row,) = [line for line in checkpoint.readme().splitlines() if line.startswith("| a | x")]
    assert row.replace("\\|", "").count("|") == 5, row


def test_the_plot_is_the_same_for_the_same_figures() -> None:
    figures = [measured(number, "a", 3.0 - number) for number in range(3)]
    assert plot_history(figures) == plot_history(figures)


# The operator's command


def test_annotating_keeps_the_notes_and_renews_the_card(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed")
    envelope = small.publisher.publish(small.closed({"a": [0.5, 0.5]}))
    registry = Registry(database_url(small.home))
    digest = verify_checkpoint(small.home.checkpoint(1)).manifest_digest
    registry.record_event(1, Published(manifest=digest), now=1.0, manifest=(digest, envelope))
    registry.add_evaluation(measured(1, "a", 2.5), now=1.0)
    registry.close()
    notes, image = tmp_path / "about.md", tmp_path / "loss.png"
    notes.write_text("Seen: ![](tapestry/loss.png)", encoding="utf-8")
    image.write_bytes(PNG)
    annotate_card(small.home, 1, notes, [image])
    folder = small.home.checkpoint(1)
    card = verify_checkpoint(folder).card
    assert [e.bits_per_byte for e in card.evaluations] == [2.5]
    assert "Seen: ![](tapestry/loss.png)" in (folder / README).read_text()
    assert (small.home.notes(1) / "loss.png").read_bytes() == PNG


@pytest.mark.parametrize(
    ("number", "text", "image", "cause"),
    [
        (7, b"text", ("loss.png", PNG), "there is no checkpoint 7"),
        (0, b"\xff\xfe", ("loss.png", PNG), "cannot be read"),
        (0, b"text", ("loss.png", b"GIF89a"), r"loss\.png: not a PNG"),
        (0, b"text", ("two words.png", PNG), "its name is not plain or taken"),
        (0, b"text", ("results.png", PNG), "its name is not plain or taken"),
        (0, b"text", ("loss.jpg", PNG), "its name is not plain or taken"),
    ],
)
def test_notes_that_cannot_be_used_are_refused_and_change_nothing(
    tmp_path: Path, number: int, text: bytes, image: tuple[str, bytes], cause: str
) -> None:
    small = found_small(tmp_path / "fed")
    notes, path = tmp_path / "about.md", tmp_path / image[0]
    notes.write_bytes(text)
    path.write_bytes(image[1])
    before = (small.home.checkpoint(0) / CARD_FILE).read_bytes()
    with pytest.raises(ConfigError, match=cause):
        annotate_card(small.home, number, notes, [path])
    assert (small.home.checkpoint(0) / CARD_FILE).read_bytes() == before
    assert not (small.home.folder / "notes").exists()


def test_missing_notes_are_named(tmp_path: Path) -> None:
    small = found_small(tmp_path / "fed")
    with pytest.raises(ConfigError, match=r"nowhere\.md"):
        annotate_card(small.home, 0, tmp_path / "nowhere.md", [])


def test_a_figure_is_replaced_and_not_added(checkpoint: Published1) -> None:
    first = measured(1, "a", 2.5)
    checkpoint.renew(first)
    checkpoint.renew(replace(first, bits_per_byte=2.0))
    (entry,) = verify_checkpoint(checkpoint.folder).card.evaluations
    assert entry.bits_per_byte == 2.0
