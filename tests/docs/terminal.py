#!/usr/bin/env python3
"""Draws the README's terminal session: `python3 tests/docs/terminal.py > src/guide/images/terminal.svg`

Runs the commands in a terminal, in an empty directory, and draws what they print. `noxrc` must be on PATH.
"""

import os
import pty
import re
import subprocess
import tempfile
from xml.sax.saxutils import escape

FILES = {
    "count.py": "import collections, sys\n"
    "words = collections.Counter(sys.stdin.read().split())\n"
    "for word, times in words.most_common(2):\n"
    "    print(times, word)\n",
    "hamlet.txt": "to be or not to be\n",
}

SESSION = [
    "noxrc --local run -- python3 -c 'print(6 * 7)'",
    "noxrc --local run -i --upload count.py -- python3 count.py < hamlet.txt",
    "noxrc --local run -- sh -c 'curl -sS https://example.com; ls /home'",
    "noxrc --local run --mem 64Mi -- python3 -c 'b\"x\" * 10**9'; echo $?",
    "noxrc --local run --timeout-seconds 1 -- sleep 60; echo $?",
    "noxrc --base-url http://127.0.0.1:9 exec demo true; echo $?",
]

CHARACTER, LINE, MARGIN = 8.43, 20, 18
COLOURS = {"31": "#ff7b72", "32": "#7ee787", "33": "#e3b341", "34": "#79c0ff", "36": "#76e3ea"}
TEXT, DIM = "#e6edf3", "#a9b4c0"


def run(command, directory):
    """Returns the output of a command in a terminal."""
    terminal, end = pty.openpty()
    # Without these variables the commands are the same on every machine.
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "XDG_STATE_HOME") if name in os.environ}
    environment = {**keep, "TERM": "xterm-256color", "LANG": "C.UTF-8"}
    process = subprocess.Popen(
        ["bash", "-c", command], cwd=directory, env=environment, stdin=end, stdout=end, stderr=end
    )
    os.close(end)
    output = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # Linux reports the end of a terminal as an error.
            break
        if not piece:
            break
        output += piece
    process.wait()
    os.close(terminal)
    return output.decode().replace("\r\n", "\n")


def spans(line):
    """Splits a line with colour codes into pairs of colour and text."""
    colour = DIM
    for piece in re.split(r"(\x1b\[[0-9;]*[A-Za-z])", line):
        if piece.startswith("\x1b"):
            codes = piece[2:-1].split(";")
            colour = next((COLOURS[code] for code in codes if code in COLOURS), DIM)
        elif piece:
            yield colour, piece


def main():
    lines = []
    with tempfile.TemporaryDirectory() as directory:
        for name, content in FILES.items():
            with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
                file.write(content)
        for command in SESSION:
            lines.append([(COLOURS["32"], "$ "), (TEXT, command)])
            lines += [list(spans(line)) for line in run(command, directory).splitlines()]
    columns = max(sum(len(text) for _, text in line) for line in lines)
    width, height = round(columns * CHARACTER + 2 * MARGIN), len(lines) * LINE + 2 * MARGIN
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"\n'
        f'  font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="14">\n'
        f"<title>A terminal session with noxrc</title>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>'
    )
    for row, line in enumerate(lines):
        column = 0
        for colour, text in line:
            x, y = MARGIN + column * CHARACTER, MARGIN + row * LINE + 15
            print(
                f'<text x="{x:.1f}" y="{y}" fill="{colour}" textLength="{len(text) * CHARACTER:.1f}" '
                f'xml:space="preserve">{escape(text)}</text>'
            )
            column += len(text)
    print("</svg>")


main()
