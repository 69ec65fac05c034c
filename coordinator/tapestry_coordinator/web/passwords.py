"""The operator's password: a salted scrypt digest in a file, and how often one may guess."""

import hashlib
import hmac
import json
import secrets
import threading
from collections import deque
from pathlib import Path

from tapestry.errors import ConfigError
from tapestry.storage.atomic import write_atomic
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.web.settings import PageSettings

FEWEST_CHARACTERS = 12
MOST_CHARACTERS = 1024

_N, _R, _P = 2**15, 8, 3
_MEMORY_BYTES = 2 * 128 * _N * _R

FAILURES_OF_ONE = 5
REMEMBERED = 10_000
WINDOW_SECONDS = 300.0


def password_file(home: CoordinatorHome) -> Path:
    """Return where the password's digest lies."""
    return home.page / "password.json"


def set_password(home: CoordinatorHome, password: str) -> None:
    """Replace the password; whoever is logged in has to log in again.

    Raises:
        ConfigError: It is too short to withstand guessing, or too long.
    """
    if not FEWEST_CHARACTERS <= len(password) <= MOST_CHARACTERS:
        raise ConfigError(
            f"the password has {len(password)} characters: take {FEWEST_CHARACTERS} to "
            f"{MOST_CHARACTERS}, four words for example"
        )
    home.page.mkdir(mode=0o700, exist_ok=True)
    salt = secrets.token_bytes(16)
    table = {"salt": salt.hex(), "n": _N, "r": _R, "p": _P}
    digest = _digest(password, salt, _N, _R, _P).hex()
    write_atomic(password_file(home), json.dumps({**table, "digest": digest}), mode=0o600)


class Password:
    """The stored digest."""

    def __init__(self, home: CoordinatorHome) -> None:
        """Of the coordinator in `home`; it may have none."""
        self._path = password_file(home)
        self._turn = threading.Lock()

    @property
    def is_set(self) -> bool:
        """Whether there is a password."""
        return self._path.is_file()

    @property
    def mark(self) -> str:
        """What a session remembers of the password, so that a new one ends it."""
        try:
            return hashlib.sha256(self._path.read_bytes()).hexdigest()[:32]
        except OSError:
            return ""

    def matches(self, password: str) -> bool:
        """Whether `password` is the one; takes a good part of a second, one caller at a time."""
        if len(password) > MOST_CHARACTERS:
            return False
        with self._turn:
            try:
                table = json.loads(self._path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return False
            salt = bytes.fromhex(table["salt"])
            found = _digest(password, salt, int(table["n"]), int(table["r"]), int(table["p"]))
        return hmac.compare_digest(found.hex(), str(table["digest"]))


class Guesses:
    """Counts wrong passwords by address."""

    def __init__(self) -> None:
        """Begin with none."""
        self._failures: deque[tuple[float, str]] = deque(maxlen=REMEMBERED)

    def wait_seconds(self, address: str, *, now: float) -> float:
        """Return how long `address` has to wait before it may guess again; 0 if it may now."""
        while self._failures and self._failures[0][0] <= now - WINDOW_SECONDS:
            self._failures.popleft()
        mine = [at for at, who in self._failures if who == address]
        if len(mine) >= FAILURES_OF_ONE:
            return mine[-FAILURES_OF_ONE] + WINDOW_SECONDS - now
        return 0.0

    def failed(self, address: str, *, now: float) -> None:
        """Count an attempt as wrong."""
        self._failures.append((now, address))

    def forgive(self, address: str) -> None:
        """Forget the wrong passwords of `address`, which has found the right one."""
        kept = [failure for failure in self._failures if failure[1] != address]
        self._failures = deque(kept, maxlen=REMEMBERED)


def require_safe(settings: PageSettings, password: Password) -> None:
    """Refuse to show the page to whoever reaches it.

    Raises:
        ConfigError: It is not for this machine alone, and has no password.
    """
    if settings.needs_password and not password.is_set:
        why = "behind_proxy = true" if settings.behind_proxy else f"listen = {settings.listen!r}"
        raise ConfigError(
            f"[page] {why}: others than this machine could see the page, and it has no password; "
            "set one with `tapestry coordinator page-password`, or listen on 127.0.0.1"
        )


def session_secret(home: CoordinatorHome) -> str:
    """Return the key that signs session cookies, made at first use."""
    path = home.page / "session.key"
    if not path.is_file():
        home.page.mkdir(mode=0o700, exist_ok=True)
        write_atomic(path, secrets.token_hex(32), mode=0o600)
    return path.read_text(encoding="utf-8").strip()


def _digest(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(
        password.encode(), salt=salt, n=n, r=r, p=p, maxmem=_MEMORY_BYTES, dklen=32
    )
