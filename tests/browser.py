"""A real browser for the tests of pages: headless Chromium, driven by selenium.

    with opened(folder) as browser:
        visit = browser.visit(path)  # visit.requests, visit.complaints

`CHROME` names the browser; else the first of Chromium and Chrome on PATH is taken. Its driver,
`chromedriver`, must be on PATH too: nothing is looked for on the network.
"""

import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",  # as root Chromium runs in no other way; the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-prefers-reduced-motion",  # what is clicked must not be scrolling
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no test reaches the network
)
SENT = ("Network.requestWillBeSent", "Network.webSocketCreated", "Network.webTransportCreated")


@dataclass(frozen=True)
class Visit:
    """What a page did when it was opened: addresses it asked for, warnings and errors it gave."""

    requests: tuple[str, ...]
    complaints: tuple[str, ...]

    def leaving(self, page):
        """The requests for anything but the page itself and what is embedded in it."""
        inside = ("data:", "blob:")
        return [url for url in self.requests if url != page.as_uri() and not url.startswith(inside)]


class Browser:
    """A selenium driver, and the few questions that tests put to a page."""

    def __init__(self, driver):
        self.driver = driver

    def visit(self, path, *, width=1280):
        """Open a file in a window of this width, in CSS pixels, and see it loaded whole."""
        self.width(width)
        self._logged()
        self.driver.get(path.as_uri())
        self.run_later("return Promise.all([...document.images].map((i) => i.decode()))")
        return self._logged()

    def width(self, pixels):
        """Narrower than 500 is a phone: its window is as wide as the page's viewport says."""
        size = {"width": pixels, "height": 844, "deviceScaleFactor": 1, "mobile": pixels < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def run(self, script, *arguments):
        """What a JavaScript function body returns."""
        return self.driver.execute_script(script, *arguments)

    def run_later(self, script):
        """Wait for the promise that a function body returns, kept or broken."""
        body = f"(async () => {{ {script} }})().catch(() => null).then(arguments[0])"
        self.driver.execute_async_script(body)

    def all(self, selector, within=None):
        """The elements that a CSS selector finds."""
        return (within or self.driver).find_elements("css selector", selector)

    def press(self, *keys):
        """Press keys, as selenium.webdriver.Keys names them, one after another."""
        from selenium.webdriver import ActionChains, Keys

        for key in keys:
            ActionChains(self.driver).send_keys(getattr(Keys, key)).perform()

    def too_wide(self, width):
        """What sticks out of a window of this width; [] if the page fits into it."""
        self.width(width)
        return self.run(
            """
            const root = document.documentElement, width = arguments[0];
            if (root.scrollWidth <= width) return [];
            const sticksOut = (each) => each.getBoundingClientRect().right > width + 0.5;
            const over = [...document.body.querySelectorAll("*")].filter(sticksOut);
            return [`page: ${root.scrollWidth}`, ...over.map((each) => each.outerHTML)]
                .map((text) => text.slice(0, 80));
            """,
            width,
        )

    def _logged(self):
        """What happened since this was asked last."""
        events = [json.loads(each["message"]) for each in self.driver.get_log("performance")]
        messages = [event["message"] for event in events]
        found = [each["params"] for each in messages if each["method"] in SENT]
        entries = self.driver.get_log("browser")
        bad = [each["message"] for each in entries if each["level"] in ("WARNING", "SEVERE")]
        urls = tuple(each["request"]["url"] if "request" in each else each["url"] for each in found)
        return Visit(urls, tuple(bad))


def missing():
    """Why no page can be opened here; None if one can."""
    if not _chrome():
        named = os.environ.get("CHROME")
        return f"CHROME={named} is no program" if named else f"PATH has none of {', '.join(NAMES)}"
    if not shutil.which("chromedriver"):
        return "PATH has no chromedriver"
    return None


def _chrome():
    named = os.environ.get("CHROME")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def opened(folder):
    """A browser that keeps its profile below an empty folder. Skips the test if there is none."""
    if reason := missing():
        pytest.skip(reason)
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = _chrome()
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    private = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    service = webdriver.ChromeService(
        executable_path=shutil.which("chromedriver"), env={**os.environ, **private}
    )
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
