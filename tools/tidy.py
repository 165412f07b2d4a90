#!/usr/bin/env python3
"""Checks what a compiler does not: layers, lengths, banned calls, contracts, white space.

    tools/tidy.py              check the tree (part of the tests); ends with 1 and one line per finding
    tools/tidy.py --ratchet    write today's tail of long files and functions to tools/tidy-ratchet.json,
                               which later runs hold as an upper bound
    tools/tidy.py --root DIR   another tree (its own tests use this)

Standard library only.
"""
import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

# Who may include whom (ARCHITECTURE.md). An entry with a slash allows that one header. Everybody may include
# quire.h and his own layer.
LAYERS = {
    "base": [],
    "tensor": ["base"],
    "quant": ["base", "tensor"],
    "loader": ["base", "tensor", "quant"],
    "text": ["base"],
    "kv": ["base"],
    "grammar": ["base", "text"],
    "backend": ["base", "tensor", "quant", "loader/config.h"],
    "model": ["base", "tensor", "quant", "loader", "backend/ops.h"],
    "sample": ["base", "tensor", "backend/ops.h", "grammar"],
    "engine": ["base", "tensor", "quant", "loader", "text", "kv", "grammar", "backend", "model", "sample"],
    "server": ["base"],
    "cli": ["base", "server/server.h"],
}
# Folders of one layer that never include each other.
SEPARATE = {"backend": ("cpu", "cuda", "sim")}

# System headers that have one home.
HEADER_HOMES = {
    "jansson.h": ("src/base/json.c", "src/base/json_write.c"),
    "event2/": ("src/server/",),
    "llhttp.h": ("src/server/",),
    "pcre2.h": ("src/text/",),
    "utf8proc.h": ("src/text/", "tools/unicode"),
    "curl/": ("src/loader/",),
    "cuda": ("src/backend/cuda/",),
    "nccl": ("src/backend/cuda/",),
}

# Calls that are banned outside their homes, and why.
BANNED = [
    (r"\bgetenv\b|\bsecure_getenv\b", ("src/base/file.c",), "the environment is read by qr_env"),
    (r"\b_?exit\s*\(|\bquick_exit\s*\(", ("src/cli/",), "only the CLI exits"),
    (r"\babort\s*\(", ("src/base/assert.c", "src/base/mem.c"), "use QR_ASSERT for bugs, qr_fail for the rest"),
    (r"\bassert\s*\(", (), "use QR_ASSERT"),
    (r"\bv?printf\s*\(|\bputs\s*\(|\bputchar\s*\(|\bperror\s*\(", ("src/cli/",), "only the CLI prints"),
    (r"\bfprintf\s*\(\s*std|\bfputs\s*\([^;]*\bstd(out|err)\b", ("src/cli/", "src/base/assert.c", "src/base/mem.c"),
     "only the CLI prints"),
    (r"\b(strcpy|strcat|sprintf|vsprintf|gets|strtok|alloca|atoi|atol|atof|tmpnam|system|popen)\s*\(", (),
     "unbounded or unchecked"),
    (r"\b(malloc|calloc|realloc|strdup|strndup|free|aligned_alloc|posix_memalign)\s*\(",
     ("src/base/mem.c",), "memory comes from base/mem.h or an arena"),
    (r"\bpthread_yield\s*\(|\busleep\s*\(", (), "obsolete"),
]

FILE_LINES_NORMAL, FILE_LINES_MAX = 900, 1500
FUNCTION_LINES_LONG, FUNCTION_LINES_MAX = 70, 100
LINE_WIDTH = 140  # the formatter holds code to 110; comments and strings may pass that

REGISTRIES = re.compile(r"pypi\.org|pythonhosted\.org|npmjs\.(com|org)|crates\.io")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
TEXT_SUFFIXES = {".c", ".h", ".inc", ".cu", ".cuh", ".py", ".sh", ".cmake", ".md", ".html", ".css", ".js", ".def"}
FREE_TEXT = ("tests/golden/", "tests/fuzz/corpus/", "docs/")  # data and prose: white space may mean something
GENERATED = re.compile(r"\A/\* (Made|Generated) by ")


class Tidy:
    def __init__(self, root):
        self.root = Path(root)
        self.findings = []
        self.exceptions = self.read_exceptions()
        self.used_exceptions = set()
        self.functions = []  # (path, name, lines)
        self.files = []      # (path, lines)

    def read_exceptions(self):
        """tools/tidy-exceptions.txt: `path[:function] reason`, one a line."""
        path = self.root / "tools/tidy-exceptions.txt"
        rows = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            if line.strip() and not line.startswith("#"):
                what, _, reason = line.partition(" ")
                if reason.strip():
                    rows[what] = reason.strip()
                else:
                    self.findings.append(f"tools/tidy-exceptions.txt: {what}: no reason given")
        return rows

    def finding(self, path, line, text):
        self.findings.append(f"{path}:{line}: {text}")

    def excepted(self, what):
        if what in self.exceptions:
            self.used_exceptions.add(what)
        return what in self.exceptions

    def tracked(self):
        """What git knows or would add; every file where there is no git."""
        listing = subprocess.run(["git", "-C", str(self.root), "ls-files", "-z", "--cached", "--others",
                                  "--exclude-standard"], capture_output=True, check=False)
        if listing.returncode == 0:
            names = listing.stdout.decode().split("\0")
        else:
            names = [str(path.relative_to(self.root)) for path in self.root.rglob("*")]
        return sorted(name for name in names if name and (self.root / name).is_file())

    def run(self):
        for name in self.tracked():
            suffix = Path(name).suffix
            if suffix not in TEXT_SUFFIXES and name not in ("dev", "Makefile", ".ci/run"):
                continue
            text = (self.root / name).read_bytes().decode("utf-8", errors="replace")
            self.check_text(name, text)
            if suffix in (".c", ".h", ".cu", ".cuh"):
                self.check_c(name, text)
        self.check_exceptions()
        return self.findings

    # ---- every text file

    def check_text(self, name, text):
        if name.startswith(FREE_TEXT):
            return
        if text and not text.endswith("\n"):
            self.finding(name, text.count("\n") + 1, "no newline at the end of the file")
        for number, line in enumerate(text.split("\n"), 1):
            if "\t" in line and name != "Makefile":
                self.finding(name, number, "tab")
            if line != line.rstrip():
                self.finding(name, number, "trailing white space")
            if REGISTRIES.search(line) and name != "tools/tidy.py":
                self.finding(name, number, "host name of a package registry")

    # ---- C

    def check_c(self, name, text):
        code = strip(text)
        lines = code.split("\n")
        if not GENERATED.match(text):
            self.check_lengths(name, lines)
        if name.startswith(("src/", "include/")):
            self.check_source(name, text, lines)
        if name.startswith("docs/examples/"):
            for number, line in enumerate(text.split("\n"), 1):
                if line.startswith('#include "') and line != '#include "quire.h"':
                    self.finding(name, number, "an example includes quire.h alone")

    def check_lengths(self, name, lines):
        self.files.append((name, len(lines) - 1))
        if len(lines) - 1 > FILE_LINES_MAX and not self.excepted(name):
            self.finding(name, 1, f"{len(lines) - 1} lines, the hard stop is {FILE_LINES_MAX}")
        for start, end, function in functions(lines):
            length = end - start + 1
            self.functions.append((name, function, length))
            if length > FUNCTION_LINES_MAX and not self.excepted(f"{name}:{function}"):
                self.finding(name, start, f"{function}: {length} lines, the hard stop is {FUNCTION_LINES_MAX}")

    def check_source(self, name, text, lines):
        for number, raw in enumerate(text.split("\n"), 1):
            self.check_include(name, number, raw)
            if len(raw) > LINE_WIDTH and not GENERATED.match(text):
                self.finding(name, number, f"{len(raw)} columns, more than {LINE_WIDTH}")
            if UNFINISHED.search(raw):
                self.finding(name, number, "unfinished: " + UNFINISHED.search(raw).group(0))
        for number, line in enumerate(lines, 1):
            if re.match(r"\s*#\s*(if|ifdef|ifndef|elif)\b.*\bQR_CUDA\b", line) and name != "src/backend/backend.c":
                self.finding(name, number, "#if for a backend outside backend/backend.c")
            if not name.startswith("src/") or line.lstrip().startswith("#"):
                continue
            for pattern, homes, why in BANNED:
                hit = re.search(pattern, line)
                if hit and not name.startswith(homes) and not self.excepted(f"{name}:{hit.group(0).strip('( ')}"):
                    self.finding(name, number, f"{hit.group(0).strip('( ')}: {why}")
        if re.fullmatch(r"src/\w+/\w+\.h", name) and not re.search(r"\bThreads?:", text):
            self.finding(name, 1, "a shared header says in a `Thread:` line who may call it")

    def check_include(self, name, number, line):
        match = re.match(r'\s*#\s*include\s*([<"])([^">]+)[">]', line)
        if not match:
            return
        quote, target = match.groups()
        if quote == "<":
            for prefix, homes in HEADER_HOMES.items():
                if target.startswith(prefix) and not name.startswith(homes):
                    self.finding(name, number, f"<{target}> belongs to {' '.join(homes)}")
            return
        if target == "quire.h" or not name.startswith("src/"):
            return
        mine, theirs = name.split("/")[1:], target.split("/")
        if len(theirs) < 2 or theirs[0] not in LAYERS:
            self.finding(name, number, f'"{target}": includes are spelled "layer/name.h" from src/')
        elif theirs[0] != mine[0]:
            allowed = LAYERS.get(mine[0], [])
            if theirs[0] not in allowed and target not in allowed:
                self.finding(name, number, f'layer {mine[0]} must not include "{target}"')
        elif mine[0] in SEPARATE and len(theirs) == 3 and len(mine) == 3 and theirs[1] != mine[1]:
            self.finding(name, number, f'{mine[0]}/{mine[1]} must not include "{target}"')

    # ---- the whole tree

    def check_exceptions(self):
        for what in sorted(set(self.exceptions) - self.used_exceptions):
            self.findings.append(f"tools/tidy-exceptions.txt: {what}: no longer needed, remove the line")

    def tail(self):
        """The tail that the ratchet holds: how many are long, and the typical length."""
        lengths = sorted(length for path, _, length in self.functions if path.startswith("src/"))
        return {
            "files_over_900_lines": sum(lines > FILE_LINES_NORMAL for path, lines in self.files
                                        if path.startswith("src/")),
            "functions_over_70_lines": sum(length > FUNCTION_LINES_LONG for length in lengths),
            "median_function_lines": lengths[len(lengths) // 2] if lengths else 0,
        }

    def check_ratchet(self):
        path = self.root / "tools/tidy-ratchet.json"
        if not path.exists():
            return
        today = self.tail()
        for key, bound in json.loads(path.read_text()).items():
            if today[key] > bound:
                self.findings.append(f"{key}: {today[key]}, more than the {bound} that were reached before "
                                     "(tools/tidy-ratchet.json); split what you added")


def strip(text):
    """The text with comments and the contents of strings blanked, line for line."""
    def blank(match):
        token = match.group(0)
        if token.startswith("/"):
            return re.sub(r"[^\n]", " ", token)
        return token[0] + " " * (len(token) - 2) + token[-1]
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, text, flags=re.S)


def functions(lines):
    """(first line, last line, name) of each function: from its signature to the closing brace."""
    start = None
    for index, line in enumerate(lines):
        if line == "{":
            start = index
            while start > 0 and lines[start - 1].strip() and not re.match(r"[}#]|.*;\s*$", lines[start - 1]):
                start -= 1
        elif line.startswith("}") and start is not None:
            signature = " ".join(lines[start:index])
            match = re.search(r"(\w+)\s*\(", re.sub(r"__attribute__\s*\(\(.*?\)\)\)?", "", signature))
            yield start + 1, index + 1, match.group(1) if match else "?"
            start = None
        elif match := re.match(r"\w[^;={}(]*?(\w+)\s*\([^;={}]*\)\s*\{.*\}\s*$", line):
            yield index + 1, index + 1, match.group(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--ratchet", action="store_true", help="record today's tail")
    arguments = parser.parse_args()
    tidy = Tidy(arguments.root)
    tidy.run()
    if arguments.ratchet:
        path = tidy.root / "tools/tidy-ratchet.json"
        path.write_text(json.dumps(tidy.tail(), indent=4) + "\n")
        print(f"{path}: {tidy.tail()}")
    else:
        tidy.check_ratchet()
    for finding in tidy.findings:
        print(finding)
    print(f"tidy: {len(tidy.files)} C files, {len(tidy.functions)} functions, {tidy.tail()}, "
          f"{len(tidy.findings)} findings")
    return 1 if tidy.findings else 0


if __name__ == "__main__":
    sys.exit(main())
