"""Takes the screenshots of reports in docs/figures, of two real runs.

    python scripts/report_screenshots.py [--into docs/figures] [--all]

One run is broken on purpose (``experiment=broken/dying_relu``). The other is killed twice and resumes. ``--all`` writes
screenshots of the whole pages at three widths, light and dark, for visual inspection. Requires Debian's chromium.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Browser, sync_playwright

from stormproof_train.run.metrics_rows import read_rows

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = (360, 768, 1280)
SCHEMES = ("light", "dark")
HEIGHT = 1180
"""Height of a screenshot in pixels, from the top of the page."""
RESUMED = (
    "activation=gelu",
    "model.dropout=0.2",
    "trainer.max_epochs=60",
    "callbacks.recovery.every_n_train_steps=100",
)
KILLED_AT = (380, 820)
"""Steps."""


def train(folder: Path, name: str, *overrides: str, kill_at: int | None = None) -> Path:
    """Trains in a subprocess and returns the run folder. Kills the subprocess at step ``kill_at``, if given."""
    command = [sys.executable, str(ROOT / "train.py"), *overrides, "logger=none", f"runs_dir={folder}", f"name={name}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    metrics = folder / name / "metrics.csv"
    while kill_at is not None and process.poll() is None:
        time.sleep(0.02)
        if metrics.exists() and max((row.step for row in read_rows(metrics)), default=0) >= kill_at:
            process.send_signal(signal.SIGKILL)
            break
    code = process.wait()
    assert code == (0 if kill_at is None else -signal.SIGKILL), f"{name} ended with {code}"
    return folder / name


def take_screenshot(
    browser: Browser, run: Path, file: Path, width: int, scheme: str, height: int | None = None
) -> None:
    """Writes a screenshot of a report: the top ``height`` pixels, or the whole page if None."""
    page = browser.new_context(viewport={"width": width, "height": height or 900}, color_scheme=scheme).new_page()  # pyright: ignore[reportArgumentType]
    page.goto((run / "report.html").as_uri())
    page.wait_for_selector("body[data-drawn]")
    page.screenshot(path=file, full_page=height is None)
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "figures")
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium")
    assert chromium, "chromium is not installed. Run `apt-get install chromium`."
    with TemporaryDirectory() as directory, sync_playwright() as playwright:
        folder = Path(directory)
        broken = train(folder, "dying-relu", "experiment=broken/dying_relu")
        for step in (*KILLED_AT, None):
            resumed = train(folder, "killed-twice", *RESUMED, kill_at=step)
        browser = playwright.chromium.launch(executable_path=chromium)
        if arguments.all:
            for run, width, scheme in itertools.product((broken, resumed), WIDTHS, SCHEMES):
                take_screenshot(browser, run, arguments.into / f"report_{run.name}_{width}_{scheme}.png", width, scheme)
        else:
            for (name, run), scheme in itertools.product((("findings", broken), ("restarts", resumed)), SCHEMES):
                take_screenshot(browser, run, arguments.into / f"report_{name}_{scheme}.png", 1280, scheme, HEIGHT)
        browser.close()


if __name__ == "__main__":
    main()
