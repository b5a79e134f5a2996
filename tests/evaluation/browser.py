"""Pages in a real headless Chromium."""

from __future__ import annotations

import html.parser
import re
import subprocess
from pathlib import Path

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0",
]  # fmt: skip
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


class Page(html.parser.HTMLParser):
    """Headings, table cells by table, tags with their attributes, and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.tables, self.headings, self.words = [], [], [], []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "h2":
            self.headings.append("")
        if tag not in ("meta", "link", "img", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.tables and "table" in self.open and ("td" in self.open or "th" in self.open):
            self.tables[-1][-1][-1] += data
        if "h2" in self.open:
            self.headings[-1] += data
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def opened(path: Path, script: str) -> list[Page]:
    """The page as it opens, and as it is after ``script``, played by a copy whose policy admits one script more. Fails
    on any message in the console."""
    played = path.with_name(f"played-{path.name}")
    played.write_text(POLICY.sub("", path.read_text()).replace("</body>", f"<script>{script}</script></body>"))
    pages = []
    for file in (path, played):
        result = subprocess.run(
            ["chromium", *FLAGS, f"--user-data-dir={path.parent / file.stem}", "--dump-dom", file.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        assert not re.findall(r".*CONSOLE.*|.*Content Security Policy.*", result.stderr)
        pages.append(Page(result.stdout))
    return pages
