"""The tokenizers and the template engine against the packages that define them, on random input.

QUIRE_DIFFERENTIAL=10 goes through ten times as much as CI does, QUIRE_DIFFERENTIAL_SEED through something else.
Skipped, with a word, where the packages or the built programs are not there.
"""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("QUIRE_BINARY", ROOT / "build" / "quire")).parent
SHARED = Path(os.environ.get("QR_SHARED_DIR", ROOT.parent / "shared"))
TIMES = float(os.environ.get("QUIRE_DIFFERENTIAL", "1"))
SEED = os.environ.get("QUIRE_DIFFERENTIAL_SEED", "1")


def run(capsys, package, program, *command):
    """Shows what the script prints; it exits with 1 when something differs."""
    pytest.importorskip(package, reason=f"the package {package} is not installed (./dev test does it)")
    if not program.exists():
        pytest.skip(f"no {program}: run make")
    with capsys.disabled():
        print()
        assert subprocess.run([sys.executable, *map(str, command)], check=False).returncode == 0


def test_tokenizers_agree_with_hugging_faces(capsys):
    library = BUILD / "libquire.so"
    run(capsys, "tokenizers", library, ROOT / "tests/golden/tokenizer/differential.py", library, "--count", int(100000 * TIMES),
        "--parts", int(2000 * TIMES), "--shared", SHARED, "--seed", SEED)


def test_templates_agree_with_jinja2(capsys):
    program = BUILD / "bench_template"
    run(capsys, "jinja2", program, ROOT / "tools/jinja_diff.py", program, "--count", int(3000 * TIMES), "--seed", SEED)
