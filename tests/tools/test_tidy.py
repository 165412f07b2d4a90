"""tools/tidy.py finds what it says it finds: each rule on a small tree that breaks it. Standard library only."""
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import tidy  # noqa: E402

GOOD = "/* x. Thread: any. */\n#ifndef QR_X_H\n#define QR_X_H\n\nint qr_x(void);\n\n#endif\n"


def function(name, lines):
    return f"int {name}(void)\n{{\n" + "    x();\n" * (lines - 3) + "}\n"


class TidyTest(unittest.TestCase):
    def findings(self, **files):
        """Findings on a tree of these files; __ in a name stands for a slash, the last _ for the dot."""
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                stem, _, suffix = name.replace("__", "/").rpartition("_")
                path = Path(folder) / f"{stem}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            checker = tidy.Tidy(folder)
            checker.run()
            checker.check_ratchet()
            self.functions = checker.functions
            return checker.findings

    def assert_one(self, part, **files):
        found = self.findings(**files)
        self.assertEqual(len(found), 1, found)
        self.assertIn(part, found[0])

    def test_a_clean_tree_has_no_findings(self):
        self.assertEqual(self.findings(src__base__x_h=GOOD, src__base__x_c='#include "base/x.h"\n'), [])

    def test_a_layer_looks_down_only(self):
        self.assert_one('layer base must not include "engine/x.h"', src__base__x_c='#include "engine/x.h"\n')
        self.assert_one('layer model must not include "backend/backend.h"',
                        src__model__arch__x_c='#include "backend/ops.h"\n#include "backend/backend.h"\n')
        self.assert_one('includes are spelled', src__base__x_c='#include "x.h"\n')
        self.assert_one('backend/cpu must not include', src__backend__cpu__x_c='#include "backend/sim/x.h"\n')
        self.assert_one('<jansson.h> belongs to', src__text__x_c='#include <jansson.h>\n')

    def test_banned_calls_have_one_home(self):
        self.assert_one("read by qr_env", src__text__x_c='const char *x = getenv("X");\n')
        self.assert_one("only the CLI prints", src__text__x_c='void f(void) { printf("x"); }\n')
        self.assert_one("only the CLI exits", src__text__x_c="void f(void) { exit(1); }\n")
        self.assert_one("memory comes from", src__text__x_c="void f(void) { free(x); }\n")
        self.assert_one("use QR_ASSERT", src__text__x_c="void f(void) { assert(x); }\n")
        self.assertEqual(self.findings(src__cli__x_c='void f(void) { printf("x"); }\n'), [])
        self.assertEqual(self.findings(src__text__x_c="void f(void) { qr_free(x); snprintf(a, 1, b); } // free(x)\n"
                                                      'const char *s = "exit(1)"; /* abort() */\n'), [])

    def test_long_functions_and_files_stop(self):
        self.assert_one("f: 101 lines", src__text__x_c=function("f", 101))
        self.assertEqual(self.findings(src__text__x_c=function("f", 100)), [])
        self.assertEqual(self.functions, [("src/text/x.c", "f", 100)])
        self.assert_one("1501 lines", src__text__x_c="int x;\n" * 1501)

    def test_an_exception_needs_a_reason_and_a_use(self):
        self.assertEqual(self.findings(src__text__x_c=function("f", 120),
                                       **{"tools__tidy-exceptions_txt": "src/text/x.c:f one big switch\n"}), [])
        self.assert_one("no longer needed", src__text__x_c=function("f", 12),
                        **{"tools__tidy-exceptions_txt": "src/text/x.c:f one big switch\n"})
        self.assert_one("no reason", src__text__x_c="", **{"tools__tidy-exceptions_txt": "src/text/x.c:f\n"})

    def test_functions_are_measured_from_their_signature(self):
        self.findings(src__text__x_c="/* why */\nstatic int f(int a,\n             int b)\n{\n    x();\n}\n\n"
                                     "static int g(void) { return 1; }\n")
        self.assertEqual(self.functions, [("src/text/x.c", "f", 5), ("src/text/x.c", "g", 1)])

    def test_shared_headers_state_their_thread(self):
        self.assert_one("`Thread:` line", src__text__x_h=GOOD.replace("Thread: any.", ""))

    def test_white_space_and_leftovers(self):
        self.assert_one("tab", src__text__x_c="\tint x;\n")
        self.assert_one("trailing", src__text__x_c="int x; \n")
        self.assert_one("no newline", src__text__x_c="int x;")
        self.assert_one("unfinished", src__text__x_c="/* TODO: x */\n")
        self.assert_one("registry", src__text__x_c="/* https://" + "pypi" + ".org */\n")

    def test_the_ratchet_only_tightens(self):
        bound = '{"files_over_900_lines": 0, "functions_over_70_lines": 0, "median_function_lines": 90}\n'
        self.assert_one("functions_over_70_lines: 1", src__text__x_c=function("f", 80),
                        **{"tools__tidy-ratchet_json": bound})
        self.assertEqual(self.findings(src__text__x_c=function("f", 60), **{"tools__tidy-ratchet_json": bound}), [])


if __name__ == "__main__":
    unittest.main()
