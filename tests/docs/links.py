#!/usr/bin/env python3
"""Checks every link of the documentation without a network, after `cargo doc --all-features`:
`python3 tests/docs/links.py target/doc`

Relative links and those to docs.rs/noxrunner must lead to a file, and to an element if they have a fragment. Links to the
standard library are looked up in the toolchain's own copy of its documentation, if that is installed. Prints the other
links, which nobody has followed.
"""

import html.parser
import pathlib
import re
import subprocess
import sys
import urllib.parse

ROOT = pathlib.Path(__file__).parents[2]
OURS = "https://docs.rs/noxrunner/latest/"
STD = re.compile(r"https://doc\.rust-lang\.org/(?:1\.\d+\.\d+|stable|nightly|beta)/")


class Page(html.parser.HTMLParser):
    """The links and the ids of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if "id" in attributes:
            self.ids.add(attributes["id"])
        link = attributes.get("href" if tag == "a" else "src")
        if link:
            self.links.append(link)


class Checker:
    def __init__(self, docs, std):
        self.docs, self.std = docs, std
        self.pages, self.checked, self.outside, self.broken = {}, 0, set(), []

    def page(self, path):
        if path not in self.pages:
            self.pages[path] = Page(path.read_text(encoding="utf-8"))
        return self.pages[path]

    def check(self, source, link, base):
        """Checks a link of a source. Relative links start at the directory `base`."""
        url, _, fragment = link.partition("#")
        if url.startswith(OURS):
            path = self.docs / url.removeprefix(OURS)
        elif STD.match(url) and self.std.is_dir():
            path = self.std / STD.sub("", url)
        elif urllib.parse.urlparse(url).scheme:
            self.outside.add(url)
            return
        else:
            path = base / urllib.parse.unquote(url) if url else source
        if path.is_dir() and path.is_relative_to(self.docs):
            path /= "index.html"
        self.checked += 1
        if not path.exists():
            self.broken.append(f"{source}: {link}")
        elif fragment and path.is_relative_to(self.docs) and not self.has_id(path, fragment):
            self.broken.append(f"{source}: {link} (no such element)")

    def has_id(self, path, fragment):
        # Lines of source code get their ids in the browser.
        is_line = re.fullmatch(r"\d+(-\d+)?", fragment)
        ids = self.page(path).ids
        return bool(is_line) or fragment in ids or urllib.parse.unquote(fragment) in ids


def links_of_markdown(text):
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    inline = re.findall(r"\]\(([^)\s]+)\)", text)
    return inline + re.findall(r'(?:href|src)="([^"]+)"', text)


def main():
    docs = pathlib.Path(sys.argv[1]).resolve()
    toolchain = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True)
    checker = Checker(docs, pathlib.Path(toolchain.stdout.strip()) / "share/doc/rust/html")
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md"):
        for link in links_of_markdown(path.read_text(encoding="utf-8")):
            checker.check(path, link, path.parent)
    for path in sorted((docs / "noxrunner").rglob("*.html")):
        for link in checker.page(path).links:
            checker.check(path, link, path.parent)
    print(f"{checker.checked} links checked, {len(checker.outside)} lead elsewhere:", *sorted(checker.outside))
    if checker.broken:
        sys.exit("\n".join(["broken links:", *checker.broken]))


main()
