"""How long the operator's page takes until it can be read, with a long history and with none.

python benchmarks/page_load.py [--rounds 1000] [--members 100] [--runs 5]

A headless Chromium with an empty cache opens the page over loopback; times are the browser's own,
from the start of the navigation: `readable` is when the sentence at the top, the members' table and
the checkpoints' are there, `charts` when all charts are drawn too. Needs playwright, and Chromium.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filled_history import fill, found_bench
from playwright.sync_api import Browser, sync_playwright
from running import median, save

from tapestry_coordinator import settings as settings_module
from tapestry_coordinator.home import CoordinatorHome
from tapestry_coordinator.web.settings import PageSettings
from tapestry_demo.federation import free_port_pair

WATCH = """
(() => {
  const seen = {}; window.tapestrySeen = seen;
  const ready = {
    readable: () => document.querySelector('.hero h1')?.innerText &&
      document.querySelector('#round')?.innerText && document.querySelector('.chain tbody tr'),
    charts: () => seen.readable && document.querySelectorAll('.chart svg').length === 3,
  };
  const look = () => {
    for (const name in ready) if (!(name in seen) && ready[name]()) seen[name] = performance.now();
    if (!('charts' in seen)) requestAnimationFrame(look);
  };
  look();
})();
"""
_WAIT_SECONDS = 120.0


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    arguments = parser.parse_args()
    results: dict[str, Any] = {
        "rounds": arguments.rounds, "members": arguments.members, "runs": arguments.runs,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=arguments.chromium, args=["--no-sandbox"]
        )
        results["browser"] = browser.version
        for name, rounds, members in (
            ("empty", 0, 0), ("filled", arguments.rounds, arguments.members),
        ):  # fmt: skip
            home = prepared(Path(folder) / name, rounds=rounds, members=members)
            results[name] = measure(browser, home, rounds=rounds, runs=arguments.runs)
        browser.close()
    for key in ("readable_seconds", "charts_seconds"):
        ratio = results["filled"][key] / results["empty"][key]
        results[f"ratio_{key}"] = ratio
        print(
            f"{key}: {results['filled'][key]:.2f} with {arguments.rounds} rounds of "
            f"{arguments.members} members, {results['empty'][key]:.2f} with none: {ratio:.2f} times"
        )
    print(f"history read after {results['filled']['reading_seconds']:.1f} s, once at start")
    save("page_load", results)


def prepared(folder: Path, *, rounds: int, members: int) -> CoordinatorHome:
    """Found a federation, fill its history, and choose a port for the page."""
    home = found_bench(folder)
    now = time.time()  # noqa: TID251
    fill(home, rounds=rounds, members_count=members, now=now)
    page = PageSettings(listen=f"127.0.0.1:{free_port_pair()}")
    settings = home.load_settings()
    settings_module.save(home.folder, settings.model_copy(update={"page": page}))
    return home


@contextmanager
def serving(home: CoordinatorHome) -> Iterator[str]:
    """Run the page's process; yield its address."""
    command = [sys.executable, "-m", "tapestry.cli.main", "coordinator", "page", str(home.folder)]
    with subprocess.Popen(command) as process:
        try:
            yield f"http://{home.load_settings().page.listen}"
        finally:
            process.terminate()


def measure(browser: Browser, home: CoordinatorHome, *, rounds: int, runs: int) -> dict[str, Any]:
    """Open the page `runs` times; return the medians."""
    with serving(home) as url:
        began = time.monotonic()
        wait(lambda: metric(url, "tapestry_history_rounds_read") >= rounds)
        reading = time.monotonic() - began
        loads = [load(browser, url) for _ in range(runs + 1)][1:]  # the first warms the server
    table = {f"{key}_seconds": median([load[key] for load in loads]) for key in loads[0]}
    return {**table, "reading_seconds": reading, "all": loads}


def load(browser: Browser, url: str) -> dict[str, float]:
    """Open the page with an empty cache; return seconds."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.add_init_script(WATCH)
    page.goto(url)
    page.wait_for_function("'charts' in window.tapestrySeen", timeout=_WAIT_SECONDS * 1e3)
    seen: dict[str, float] = page.evaluate("window.tapestrySeen")
    document = page.evaluate("performance.getEntriesByType('navigation')[0].responseEnd")
    context.close()
    return {"document": document / 1e3, **{name: at / 1e3 for name, at in seen.items()}}


def metric(url: str, name: str) -> float:
    """Return one of the page's metrics; -1 while there is none."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:  # noqa: S310
            lines = answer.read().decode().splitlines()
    except (urllib.error.URLError, OSError):
        return -1.0
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), -1.0)


def wait(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(json.dumps({"waited_seconds": _WAIT_SECONDS}))
        time.sleep(0.1)


if __name__ == "__main__":
    main()
