"""The report in a real browser: no request leaves the page, nothing is logged, nothing runs over the edge."""

import functools
import re
import shutil
import subprocess

import pytest

from mlflow_green.reports.html import write_report
from tests.testkit.report_samples import START, ToldBooks, pipeline_books
from tests.testkit.services import lacks

pytestmark = pytest.mark.browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
)


@pytest.fixture
def browse(tmp_path):
    if CHROMIUM is None:
        lacks("Chromium is not installed")
    return functools.partial(visit, tmp_path)


def visit(folder, page, *flags):
    """What the browser made of the page, and the addresses that it asked for."""
    log = folder / "net.json"
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", f"--log-net-log={log}",
         "--net-log-capture-mode=Everything", "--dump-dom", *flags, page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, done.stderr, log.read_text()


def test_the_page_renders_its_text_and_asks_the_network_for_nothing(browse, tmp_path):
    page = write_report(pipeline_books(), tmp_path / "report.html", now=START)
    dom, errors, net = browse(page)
    for words in ("Energy report: load-forecast", "380 mWh", "halted: used at least"):
        assert words in dom
    assert dom.count("<circle") == 16
    assert "CONSOLE" not in errors
    own = {address for address in re.findall(r'"url":"([a-z]+://[^"]+)"', net) if not from_browser_itself(address)}
    assert own <= {page.as_uri()}


def from_browser_itself(address):
    """What Chromium asks its maker for at every start, whatever the page."""
    return bool(re.search(r"//[^/]*\.?(google|googleapis|gvt1|gstatic)\.com", address))


def test_the_empty_page_renders(browse, tmp_path):
    dom, errors, _ = browse(write_report(ToldBooks(), tmp_path / "report.html", now=START))
    assert "Nothing has been recorded yet" in dom
    assert "CONSOLE" not in errors
