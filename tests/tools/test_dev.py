"""./dev with stand-ins for apt, dpkg, make and Python: what it installs, when, and what it hands to make."""
import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

DEV = Path(__file__).resolve().parents[2] / "dev"


class DevTest(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name)
        shutil.copy(DEV, self.folder / "dev")
        self.bin = self.folder / "bin"
        (self.folder / ".venv/bin").mkdir(parents=True)
        (self.folder / "tests").mkdir()
        (self.folder / "tests/requirements.txt").write_text("x==1\n")
        self.bin.mkdir()
        self.calls = self.folder / "calls"
        self.calls.write_text("")
        for tool in ("sh", "sed", "cmp", "cp", "dirname", "mktemp", "rm", "tail", "cat"):
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.stub("dpkg-query", "echo installed")
        self.stub("python3", "exit 0")
        self.stub("id", "echo 0")
        self.stub("make", 'for word; do echo "make <$word>"; done')
        self.stub("apt-get", "exit 0")
        self.stub("../.venv/bin/python", "exit 0")

    def stub(self, name, body):
        path = self.bin / name
        path.write_text(f'#!/bin/sh\necho "{path.name} $*" >> {self.calls}\n{body}\n')
        path.chmod(0o755)

    def run_dev(self, *words):
        return subprocess.run([str(self.folder / "dev"), *words], capture_output=True, text=True, check=False,
                              env={"PATH": str(self.bin), "HOME": str(self.folder)})

    def called(self, name):
        return [line for line in self.calls.read_text().splitlines() if line.startswith(name + " ")]

    def test_with_all_there_it_is_quiet_and_installs_nothing(self):
        result = self.run_dev("serve")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stderr, "")
        self.assertEqual(self.called("apt-get"), [])
        self.assertEqual(result.stdout, "make <--no-print-directory>\nmake <serve>\nmake <ARGS=>\n")

    def test_words_reach_make_and_then_the_shell_whole(self):
        result = self.run_dev("serve", "m.gguf", "PORT=9000", "--api-key", "it's a $KEY; x", "--no-x")
        self.assertIn("make <MODEL=m.gguf>\n", result.stdout)
        self.assertIn("make <PORT=9000>\n", result.stdout)
        (self.folder / "Makefile").write_text("show:\n\t@for word in $(ARGS); do echo \"<$$word>\"; done\n")
        arguments = next(line for line in result.stdout.split("make <") if line.startswith("ARGS="))[:-2]
        shown = subprocess.run(["make", "-s", "-C", str(self.folder), "show", arguments], capture_output=True,
                               text=True, check=True).stdout
        self.assertEqual(shown.splitlines(), ["<--api-key>", "<it's a $KEY; x>", "<--no-x>"])

    def test_missing_packages_are_installed_once(self):
        self.stub("dpkg-query", 'case "$*" in *cmocka*) exit 1;; esac; echo installed')
        result = self.run_dev("serve")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stderr, "installing: libcmocka-dev\n")
        self.assertEqual(len(self.called("apt-get")), 1)
        self.assertTrue(self.called("apt-get")[0].endswith(" libcmocka-dev"))

    def test_old_package_lists_are_fetched_when_needed(self):
        self.stub("dpkg-query", "exit 1")
        self.stub("apt-get", f'case "$1" in update) touch {self.folder}/fresh;; esac; '
                             f'test -e {self.folder}/fresh || {{ echo Unable to locate; exit 100; }}')
        (self.bin / "touch").symlink_to(shutil.which("touch"))
        (self.bin / "test").symlink_to(shutil.which("test"))
        result = self.run_dev("install", "clang")
        self.assertEqual(result.returncode, 0, result.stderr)
        calls = self.called("apt-get")
        self.assertEqual([call.split()[1] for call in calls], ["install", "update", "install"])
        self.assertTrue(calls[2].endswith(" clang"))

    def test_a_failed_installation_says_what_apt_said(self):
        self.stub("dpkg-query", "exit 1")
        self.stub("apt-get", "echo Could not resolve the mirror; exit 100")
        result = self.run_dev("serve")
        self.assertEqual(result.returncode, 1)
        self.assertIn("Could not resolve the mirror", result.stderr)
        self.assertIn("could not install: build-essential", result.stderr)
        self.assertEqual(self.called("make"), [])

    def test_a_user_without_sudo_is_told_what_to_install(self):
        self.stub("dpkg-query", "exit 1")
        self.stub("id", "echo 1000")
        result = self.run_dev("test")
        self.assertEqual(result.returncode, 1)
        self.assertIn("as root: apt-get install build-essential", result.stderr)
        self.stub("sudo", 'exec "$@"')
        self.assertEqual(self.run_dev("test").returncode, 0)
        self.assertEqual(len(self.called("sudo")), 1)

    def test_test_requirements_are_installed_when_they_change(self):
        self.assertEqual(self.run_dev("test").returncode, 0)
        self.assertEqual(self.run_dev("test").stderr, "")
        self.assertEqual(len([call for call in self.called("python") if "-r tests/requirements.txt" in call]), 1)
        (self.folder / "tests/requirements.txt").write_text("x==2\n")
        self.stub("../.venv/bin/python", 'case "$*" in *install*) exit 1;; esac')
        result = self.run_dev("test")
        self.assertEqual(result.returncode, 0)  # the rest of the tests still run
        self.assertIn("end-to-end tests are skipped", result.stderr)

    def test_an_unknown_verb_shows_the_usage(self):
        result = self.run_dev("dance")
        self.assertEqual(result.returncode, 2)
        self.assertIn("./dev serve", result.stderr)


if __name__ == "__main__":
    unittest.main()
