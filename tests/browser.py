"""A headless Chromium that opens a page and says what became of it. Tests skip where there is no such browser."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html import unescape

import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome is installed")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=3000",  # timers and events of 3 seconds, without waiting for them
    "--window-size=1000,1400",
]


def outcome(page, script, folder):
    """Open a page with a script at its end, and return what the script reports by `report(value)`, a plain value.

    If the page has a Content-Security-Policy, it allows this script beside its own.

    Args:
        page: the text of a page.
        script: JavaScript; runs after the page's own scripts, and may report later.
        folder: an empty folder.
    """
    report = """const report = (value) => {
      const node = document.body.appendChild(document.createElement("pre"));
      node.id = "outcome"; node.textContent = JSON.stringify(value);
    };"""
    text = f"{report}\n{script}"
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)  # the page's policy, should it have one
    path = folder / "page.html"
    path.write_text(page.replace("</html>", f"<script>{text}</script></html>"), encoding="utf-8")
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found = re.search(r'<pre id="outcome">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the script reported nothing: {done.stderr[-2000:]}"
    return json.loads(unescape(found[1]))
