"""A real browser, offline, shows the report: every chart, no error, no request, in light and dark."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sweeps.ledger import Entry
from sweeps.report import write_report
from tests.sweeps.made_sweeps import free_sweep, grid_sweep, trial, write_ledger
from tests.sweeps.pages import Page
from tests.waiting import PATIENCE_S, free_port

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--enable-logging=stderr",
    "--v=0",
)
CHARTS = ("Heat map of", "Bars of parameter importance", "over optimizer steps", "Parallel coordinates of")
Browser = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def browser(chromium: str, tmp_path: Path) -> Browser:
    """Chromium with a fresh profile; a page's own messages come on stderr as CONSOLE lines."""

    def run(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [chromium, *FLAGS, profile, *flags, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_ledger(tmp_path_factory.mktemp("sweeps") / "grid", grid_sweep()))


def console(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_every_chart_is_there_and_the_console_is_silent(browser: Browser, report: Path) -> None:
    done = browser(report, "--dump-dom")
    assert console(done) == []
    for chart in CHARTS:
        assert re.search(rf'<svg[^>]*aria-label="[^"]*{chart}', done.stdout), chart
    assert "not distinguishable" in done.stdout


def test_the_script_runs_and_makes_the_table_sortable(browser: Browser, report: Path) -> None:
    assert "<button>" not in report.read_text()
    assert browser(report, "--dump-dom").stdout.count("<button>") == 10


def with_script(report: Path, folder: Path, script: str, extra: str = "") -> Path:
    """A copy of the page that allows everything and ends with one more script."""
    markup = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.read_text())
    page = folder / "copy.html"
    page.write_text(markup.replace("</body>", f"{extra}<script>{script}</script></body>"))
    return page


def test_clicking_a_heading_sorts_the_table(browser: Browser, report: Path, tmp_path: Path) -> None:
    page = with_script(report, tmp_path, "document.querySelectorAll('#trials th button')[0].click()")
    table = browser(page, "--dump-dom").stdout.partition('id="trials"')[2]
    assert re.findall(r"<tr><td>(\d+)</td>", table) == [str(number) for number in range(75)]
    assert 'aria-sort="ascending"' in table


def requests_of_the_page(browser: Browser, page: Path, folder: Path) -> set[str]:
    """Addresses that a page asked the network for; Chromium's own requests name no page as their origin."""
    log = folder / "net.json"
    browser(page, "--dump-dom", f"--log-net-log={log}")
    lines = [line for line in log.read_text().splitlines() if '"network_isolation_key":"file://' in line]
    return {json.loads(line.rstrip(","))["params"]["url"] for line in lines}


def test_the_page_makes_no_request(browser: Browser, report: Path, tmp_path: Path) -> None:
    assert requests_of_the_page(browser, report, tmp_path) == set()


def test_a_request_of_a_page_would_be_seen(browser: Browser, report: Path, tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}/pixel.png"
    page = with_script(report, tmp_path, "", f'<img src="{address}">')
    assert requests_of_the_page(browser, page, tmp_path) == {address}


@pytest.mark.parametrize(("scheme", "dark"), [("1", False), ("0", True)], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_is_drawn(
    browser: Browser, report: Path, tmp_path: Path, scheme: str, dark: bool, width: int
) -> None:
    shot = tmp_path / "shot.png"
    settings = f"--blink-settings=preferredColorScheme={scheme}"
    browser(report, f"--screenshot={shot}", f"--window-size={width},2200", settings)
    with Image.open(shot) as image:
        picture = image.convert("RGB")
    corner = picture.getpixel((1, 1))
    assert isinstance(corner, tuple)
    assert (sum(corner) < 3 * 64) == dark
    colours = picture.getcolors(maxcolors=1 << 24)
    assert colours is not None
    # A page without its charts has the shades of its text only, all of them grey or nearly so.
    vivid = {colour for _, colour in colours if isinstance(colour, tuple) and max(colour) - min(colour) > 90}
    assert len(vivid) > 200


def test_the_page_is_no_wider_than_a_phone(browser: Browser, report: Path, tmp_path: Path) -> None:
    measure = "document.title = 'width ' + document.documentElement.scrollWidth"
    page = with_script(report, tmp_path, measure)
    done = browser(page, "--dump-dom", "--window-size=500,900")
    width = re.search(r"<title>width (\d+)</title>", done.stdout)
    assert width is not None
    assert int(width[1]) <= 500


def test_a_script_in_a_name_does_not_run(browser: Browser, tmp_path: Path) -> None:
    evil = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
    first = next(iter(grid_sweep()))
    entries = [Entry("sweep", None, {**first.fields, "name": evil, "metric": evil, "git": evil})]
    entries += trial(0, {"optim.lr": 1e-3, evil: evil}, metric=evil, outcome="failed", reason=evil)
    done = browser(write_report(write_ledger(tmp_path / "sweep", iter(entries))), "--dump-dom")
    assert "<title>owned" not in done.stdout
    assert "<img" not in done.stdout
    assert console(done) == []


def test_the_content_policy_stops_what_escaping_would_miss(
    browser: Browser, report: Path, tmp_path: Path
) -> None:
    page = tmp_path / "injected.html"
    page.write_text(report.read_text().replace("</body>", "<script>document.title='owned'</script></body>"))
    done = browser(page, "--dump-dom")
    assert "<title>owned" not in done.stdout
    assert any("Content Security Policy" in line for line in console(done))


@pytest.mark.slow
def test_ten_thousand_trials_are_less_than_five_megabytes_and_open(browser: Browser, tmp_path: Path) -> None:
    file = write_report(write_ledger(tmp_path / "sweep", free_sweep(10_000)))
    assert file.stat().st_size < 5e6
    page = Page(file.read_text())
    assert len(page.of_class("curve")) <= 250
    for drawn in (r"250 of \d+ curves are drawn", "2000 of 10000 trials are drawn", r"400 of \d+ are drawn"):
        assert re.search(drawn, page.text)
    done = browser(file, "--dump-dom")
    assert console(done) == []
    assert done.stdout.count("<tr><td>") >= 10_000
