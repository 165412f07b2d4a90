#!/usr/bin/env python3
"""Compares src/text/jinja with PyPI jinja2 on generated templates.

    python3 -m venv V && V/bin/pip install jinja2
    V/bin/python tools/jinja_diff.py BUILD/bench_template [--seed S] [--count N] [--show K]

jinja2 is set up as transformers' apply_chat_template does. Equal means: the same text, or an error on both sides.
What cannot be compared is counted apart: addresses in the output, integers beyond 64 bits, what we refuse by name.
Exits with 1 when a difference is found; a difference prints its template and context."""
import argparse
import datetime
import json
import random
import re
import subprocess
import sys
import warnings

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(lineno)

    def _render(self, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    now = datetime.datetime(2024, 7, 26, 12, 5, 9)
    env.globals["strftime_now"] = lambda fmt: now.strftime(fmt)
    return env


NOW = 1721995509
WORDS = ["a", "Hello", "wörld", "  pad ", "x\ny", "<b>", "it's", 'say "hi"', "ÀÉ", "straße", "ΣΑΣ", "日本", "1", "42",
         "-7", "3.5", "1e3", "a,b,,c", "foo bar  baz", "{x}", "%s", "", "\t", "🎉", "ǆ", "a-b c", "0x1f", "1_000", "\u2028z"]
NAMES = ["s", "t", "n", "f", "lst", "dct", "msgs", "none_v", "yes", "no", "undef", "deep", "words", "nums", "empty"]
STR_METHODS = ["upper()", "lower()", "strip()", "lstrip()", "rstrip()", "title()", "capitalize()", "split()", "split(' ')",
               "split(',', 1)", "rsplit(',', 1)", "rsplit(None, 1)", "split(None, 1)", "splitlines()", "splitlines(true)",
               "swapcase()", "startswith('a')", "endswith('z')", "startswith(('a', 'H'))", "find('a')", "rfind('o')",
               "count('a')", "replace('a', 'b')", "replace('', '-')", "replace('o', '0', 1)", "isdigit()", "isalpha()",
               "isupper()", "islower()", "isspace()", "isalnum()", "istitle()", "zfill(6)", "center(9)", "center(10, '*')",
               "ljust(6)", "rjust(6, '.')", "partition('a')", "rpartition('o')", "strip('a ')", "removeprefix('He')",
               "removesuffix('o')", "expandtabs(4)", "casefold()", "join(['x', 'y'])", "index('l')", "format(1, 'b', x=2)",
               "isidentifier()", "isnumeric()", "isdecimal()", "isascii()", "isprintable()", "lstrip('ab')", "encode"]
FILTERS = ["upper", "lower", "trim", "length", "string", "list", "first", "last", "join", "join(', ')", "tojson",
           "tojson(indent=2)", "tojson(sort_keys=true)", "tojson(ensure_ascii=true)", "tojson(separators=(',', ':'))",
           "default('d')", "default('d', true)", "int", "float", "abs", "round", "round(1)", "round(2, 'floor')",
           "round(0, 'ceil')", "sort", "sort(reverse=true)", "sort(case_sensitive=true)", "unique|list", "reverse|list",
           "reverse", "sum", "min", "max", "title", "capitalize", "replace('a', 'b')", "indent", "indent(2, true)",
           "indent(first=true, blank=true)", "dictsort", "dictsort(by='value')", "items|list", "batch(2)|list",
           "batch(3, 'f')|list", "slice(2)|list", "slice(3, 'f')|list", "wordcount", "truncate(5)", "truncate(6, true)",
           "truncate(8, false, '..', 0)", "center(12)", "escape", "e", "safe", "forceescape", "urlencode",
           "map('upper')|list", "map('string')|join('/')", "map('length')|list", "select|list", "reject|list",
           "select('string')|list", "select('odd')|list", "reject('none')|list", "selectattr('role')|list",
           "selectattr('role', 'equalto', 'user')|list", "rejectattr('role', 'in', ['user'])|list",
           "map(attribute='role')|list", "map(attribute='role', default='?')|join(',')", "groupby('role')|list",
           "count", "filesizeformat", "format(1)", "xmlattr", "striptags", "int(5)", "int(base=16)", "float(1.5)",
           "attr('upper')", "d(1)", "sum(attribute='n')", "sort(attribute='role')|map(attribute='role')|list", "nofilter"]
TESTS = ["defined", "undefined", "none", "string", "number", "mapping", "sequence", "iterable", "odd", "even",
         "divisibleby 3", "boolean", "integer", "float", "true", "false", "lower", "upper", "in [1, 'a', none]",
         "eq 1", "ne 'a'", "gt 2", "lt 5", "ge 3", "le 3", "equalto 'user'", "sameas none", "callable", "escaped",
         "greaterthan(1)", "filter", "test", "in dct"]
BINARY = ["+", "-", "*", "/", "//", "%", "**", "~", "~", "+", "+"]
COMPARE = ["==", "!=", "<", "<=", ">", ">=", "in", "not in"]


TEXT_FILTERS = ["upper", "lower", "trim", "title", "capitalize", "replace('a', 'b')", "indent", "indent(2, true)", "tojson",
                "truncate(5)", "truncate(8, false, '..', 0)", "center(12)", "e", "string", "urlencode", "default('d', true)",
                "reverse", "wordcount|string", "length|string", "striptags", "forceescape", "first|default('')", "trim('a ')"]
LIST_FILTERS = ["sort", "reverse|list", "unique|list", "list", "map('upper')|list", "map('length')|map('string')|list",
                "select('ne', 'a')|list", "reject('in', ['a', ''])|list", "batch(2)|map('join', '+')|list", "map('trim')|list",
                "slice(2)|map('join')|list", "sort(reverse=true, case_sensitive=true)", "map('default', 'x', true)|list",
                "map('replace', 'a', 'A')|list", "select|list", "map('first')|map('default', '-')|list"]
MESSAGE_FILTERS = ["map(attribute='role')", "selectattr('n', 'gt', 0)|map(attribute='content')",
                   "rejectattr('role', 'equalto', 'user')|map(attribute='role')", "sort(attribute='role,n')|map(attribute='content')",
                   "groupby('role')|map(attribute='grouper')", "map('tojson')", "map('string')", "map(attribute='zz', default='?')",
                   "sort(attribute='content', reverse=true)|map(attribute='role')"]


class Generator:
    def __init__(self, rng, sane=False):
        self.r = rng
        self.sane = sane  # expressions that mostly make sense, so that few templates are errors
        self.extra = []
        self.macros = []

    def pick(self, items):
        return self.r.choice(items)

    def literal(self):
        kind = self.r.randrange(10)
        if kind < 4:
            return self.string()
        if kind < 6:
            return self.pick(["0", "1", "2", "-3", "10", "7", "1.5", "0.1", "2.0", "1e20", "100", "255", "1e-7", "0x1f", "1_0"])
        if kind == 6:
            return self.pick(["true", "false", "none", "True", "None"])
        if kind == 7:
            return "[" + ", ".join(self.simple() for _ in range(self.r.randrange(4))) + "]"
        if kind == 8:
            return "{" + ", ".join(f"{self.string()}: {self.simple()}" for _ in range(self.r.randrange(3))) + "}"
        return "(" + "".join(self.simple() + ", " for _ in range(self.r.randrange(3))) + ")"

    def string(self):
        word = self.pick(WORDS)
        quote = self.pick("'\"")
        word = word.replace("\\", "\\\\").replace(quote, "\\" + quote)
        if self.r.random() < 0.5:
            word = word.replace("\n", "\\n")
        return quote + word + quote

    def simple(self):
        if self.r.random() < 0.55:
            return self.pick(NAMES + self.extra)
        return self.literal() if self.r.random() < 0.3 else self.pick([self.string(), "1", "2", "0.5", "none", "true"])

    def typed(self, kind, depth):
        """An expression of one type: "text", "int", "list" (of texts) or "bool"."""
        t, n, l, b = (lambda k=k: self.typed(k, depth - 1) for k in ("text", "int", "list", "bool"))
        if depth <= 0:
            return {"text": lambda: self.pick(["s", "t", "msgs[0].content", "msgs[-1]['role']", self.string(), "dct|tojson"]),
                    "int": lambda: self.pick(["n", "1", "2", "3", "10", "-1", "msgs|length", "lst|length", "nums[0]"]),
                    "list": lambda: self.pick(["words", "s.split()", "['b', s, 'A']", "[]", "msgs|map(attribute='content')|list",
                                               "dct|list", "t.splitlines()"]),
                    "bool": lambda: self.pick(["yes", "no", "true", "undef is defined", "s in t", "none_v is none"])}[kind]()
        options = {
            "text": [lambda: f"{t()} ~ {self.pick([t, n, l, b])()}", lambda: f"({t()})|{self.pick(TEXT_FILTERS)}",
                     lambda: f"({t()} + {t()})", lambda: f"({t()})[{self.pick(['1:', ':-1', '::2', '::-1', '1:3', '-2:'])}]",
                     lambda: f"({l()})|join({self.pick(['', chr(39) + ', ' + chr(39), 's'])})", lambda: f"({t()} if {b()} else {t()})",
                     lambda: f"({t()}).{self.pick(STR_METHODS[:11])}" + "|string", lambda: f"'%s|%r|%5d' % ({t()}, {t()}, {n()})",
                     lambda: f"'{{:>6}}|{{!r}}|{{:+}}'.format({t()}, {t()}, {n()})", lambda: f"({l()})|string",
                     lambda: f"({t()}).replace({t()}, {t()})", lambda: f"({t()}).strip({t()})",
                     lambda: f"({l()})|{self.pick(['first', 'last', 'min', 'max'])}|default('none')", lambda: f"({t()})[{n()}]|d('')",
                     lambda: f"msgs|{self.pick(MESSAGE_FILTERS)}|join('/')", lambda: f"({l()})|tojson(indent=1)",
                     lambda: f"{self.pick(self.macros)}({t()}, {t()})" if self.macros else "s", lambda: f"({t()})|safe + {t()}"],
            "int": [lambda: f"({n()} {self.pick(['+', '-', '*'])} {n()})", lambda: f"({n()} {self.pick(['//', '%'])} 3)",
                    lambda: f"({self.pick([t, l])()})|length", lambda: f"({n()} if {b()} else {n()})", lambda: f"(-{n()})",
                    lambda: f"({t()})|int(2)", lambda: f"({t()}).count('a')", lambda: f"({n()} / 4)|round|int", lambda: f"({n()})|abs",
                    lambda: f"({t()}).find({t()})", lambda: "nums|sum", lambda: f"[{n()}, {n()}]|max"],
            "list": [lambda: f"({l()})|{self.pick(LIST_FILTERS)}", lambda: f"({l()} + {l()})", lambda: f"[{t()}, {t()}]",
                     lambda: f"({t()}).split({self.pick(['', chr(39) + ',' + chr(39), chr(39) + 'a' + chr(39) + ', 1'])})",
                     lambda: f"({l()})[{self.pick(['1:', ':2', '::-1', ':-1', '::2'])}]", lambda: f"({l()} if {b()} else {l()})",
                     lambda: f"({t()})|list", lambda: f"msgs|{self.pick(MESSAGE_FILTERS)}|list", lambda: f"({t()}).rsplit(none, 1)"],
            "bool": [lambda: f"({n()} {self.pick(['==', '<', '>=', '!='])} {n()})", lambda: f"({t()} {self.pick(COMPARE)} {t()})",
                     lambda: f"({b()} {self.pick(['and', 'or'])} {b()})", lambda: f"(not {b()})", lambda: f"({t()} in {l()})",
                     lambda: f"({self.pick([t, n, l])()} is {self.pick(['string', 'number', 'iterable', 'defined', 'sequence'])})",
                     lambda: f"({n()} < {n()} <= {n()})", lambda: f"({n()} is {self.pick(['odd', 'even', 'divisibleby 2'])})",
                     lambda: f"({t()}).startswith({t()})", lambda: f"({t()}).{self.pick(['isdigit()', 'isupper()', 'isalpha()'])}",
                     lambda: f"({l()} == {l()})"]}
        return self.pick(options[kind])()

    def expr(self, depth=3):
        if self.sane and self.r.random() < 0.93:
            return self.typed(self.pick(["text", "text", "text", "int", "list", "bool"]), min(depth, 3))
        if depth <= 0:
            return self.simple()
        r = self.r.random()
        e = lambda: self.expr(depth - 1)
        if r < 0.12:
            return self.literal()
        if r < 0.22:
            return self.simple()
        if r < 0.36:
            return f"{e()} {self.pick(BINARY)} {e()}"
        if r < 0.44:
            ops = [f"{self.pick(COMPARE)} {e()}" for _ in range(1 if self.r.random() < 0.8 else 2)]
            return f"({e()} {' '.join(ops)})"
        if r < 0.50:
            return f"({e()} {self.pick(['and', 'or'])} {e()})"
        if r < 0.54:
            return f"(not {e()})"
        if r < 0.60:
            other = f" else {e()}" if self.r.random() < 0.8 else ""
            return f"({e()} if {e()}{other})"
        if r < 0.72:
            return f"({e()})|{self.pick(FILTERS)}"
        if r < 0.80:
            return f"({e()} is {self.pick(['', 'not '])}{self.pick(TESTS)})"
        if r < 0.88:
            method = self.pick(STR_METHODS) if self.r.random() < 0.7 else self.pick(
                ["get('role')", "get('zz', 1)", "items()", "keys()|list", "values()|list", "append(1)", "pop()", "index(1)",
                 "count(1)", "role", "content", "n", "x.y", "copy()", "0", "nope", "update({})", "__class__", "real"])
            return f"({e()}).{method}"
        if r < 0.95:  # jinja2 folds slices of constants by other rules than those of values: keep them variable
            return f"({e()} if yes)[{self.subscript(depth)}]"
        if r < 0.97 and self.macros:
            return f"{self.pick(self.macros)}({self.arguments(depth)})"
        return self.pick([f"range({self.pick(['3', '1, 4', '5, 0, -2', '0'])})", "namespace(a=1).a", f"dict(a={e()}, b=2)",
                          f"-({e()})", f"+({e()})", "strftime_now('%Y-%m-%d %H:%M')", f"{e()} % ({e()},)",
                          "'%s|%5d|%-5s|%05.1f|%x' % (s, n, t, f, n)", "'{:>8}|{:<4}|{:^5}|{:+d}|{:.2f}'.format(s, t, n, n, f)",
                          "'{0} {1!r} {k[role]} {k.role}'.format(n, s, k=msgs[0])", f"'%s' % {e()}", f"'%r %%' % {e()}"])

    def subscript(self, depth):
        part = lambda: self.pick(["", "1", "-1", "2", "n", "0", "-2"])
        kind = self.r.randrange(4)
        if kind == 0:
            return f"{part()}:{part()}"
        if kind == 1:
            return f"{part()}:{part()}:{self.pick(['', '2', '-1', '1', '-2'])}"
        return self.pick(["0", "-1", "1", "'role'", "'content'", "'k'", "'upper'", "'items'", "'zz'", self.expr(depth - 2)])

    def arguments(self, depth):
        args = [self.expr(depth - 2) for _ in range(self.r.randrange(3))]
        if self.r.random() < 0.3:
            args.append(f"{self.pick(['p', 'q', 'zz'])}={self.expr(depth - 2)}")
        if self.r.random() < 0.08:
            args.append(self.pick(["*lst", "**dct"]))
        return ", ".join(args)

    def tag(self, body):
        left, right = self.pick(["", "", "", "-", "+"]), self.pick(["", "", "", "-", "+"])
        return "{%" + left + " " + body + " " + right + "%}"

    def space(self):
        return self.pick(["", "", "\n", "  ", "\n  ", " x ", "text\n", "\n\n\t"])

    def body(self, depth, loop=False):
        return "".join(self.space() + self.statement(depth, loop) for _ in range(self.r.randrange(1, 4))) + self.space()

    def statement(self, depth, loop):
        r = self.r.random()
        if depth <= 0 or r < 0.38:
            return "{{" + self.pick(["", "", "-"]) + " " + self.expr(3) + " " + self.pick(["", "", "-"]) + "}}"
        inner = lambda more=loop: self.body(depth - 1, more)
        if r < 0.52:
            out = self.tag(f"if {self.expr(2)}") + inner()
            if self.r.random() < 0.4:
                out += self.tag(f"elif {self.expr(2)}") + inner()
            if self.r.random() < 0.5:
                out += self.tag("else") + inner()
            return out + self.tag("endif")
        if r < 0.70:
            return self.loop(depth)
        if r < 0.82:
            name = self.pick(["v", "w", "s", "n"])
            self.extra = sorted(set(self.extra) | {name})
            if self.r.random() < 0.2:
                return self.tag(f"set {name}") + inner() + self.tag("endset")
            if self.r.random() < 0.2:
                return self.tag(f"set {name}, w = {self.expr(2)}, {self.expr(2)}")
            return self.tag(f"set {name} = {self.expr(3)}")
        if r < 0.87:
            return (self.tag(f"set ns = namespace(c={self.expr(1)})") + self.tag(f"set ns.c = {self.expr(2)}") +
                    "{{ ns.c }}{{ ns.zz }}")
        if r < 0.93:
            return self.macro(depth)
        return self.pick([
            "{# c #}", "{#- c -#}", self.tag(f"with v = {self.expr(2)}, w = v") + inner(False) + self.tag("endwith"),
            self.tag("filter upper") + inner(False) + self.tag("endfilter"),
            self.tag("raw") + " {{ x }} {% y %} " + self.tag("endraw"),
            self.tag("generation") + inner(False) + self.tag("endgeneration"),
            self.tag("break") if loop else "", self.tag("continue") if loop else "",
            self.tag(f"if {self.expr(1)}") + (self.tag("break") if loop else "") + self.tag("endif")])

    def loop(self, depth):
        names = self.pick(["i", "i", "m"] if self.sane else ["i", "i", "m", "k, v"])
        source = self.pick([self.typed("list", 2) if self.sane else self.expr(2), "msgs", "lst", "dct.items()", "words", "range(4)", "dct|dictsort", "deep"])
        test = f" if {self.expr(2)}" if self.r.random() < 0.25 else ""
        test = test.replace(" if (", " if (") if "if" in source else test
        saved, self.extra = self.extra, sorted(set(self.extra) | set(names.split(", ")) | (
            {"loop.index", "loop.last", "loop.first", "loop.length", "loop.previtem", "loop.nextitem", "loop.revindex0",
             "loop.cycle('a', 'b')", "loop.changed(i)"} if self.r.random() < 0.5 else set()))
        recursive = " recursive" if self.r.random() < 0.06 else ""
        out = self.tag(f"for {names} in {source}{test}{recursive}") + self.body(depth - 1, True)
        if recursive:
            out += "{{ loop(i) if i is iterable and i is not string and loop.depth < 3 }}" if names == "i" else ""
        self.extra = saved
        if self.r.random() < 0.25:
            out += self.tag("else") + self.body(depth - 1, False)
        return out + self.tag("endfor")

    def macro(self, depth):
        name = "m%d" % len(self.macros)
        params = self.pick(["", "p", "p, q=1", "p='d', q=p"])
        saved, self.extra = self.extra, sorted(set(self.extra) | {"p", "q"} | set(self.pick(
            [[], [], ["varargs"], ["kwargs"], ["caller()"], ["caller is defined"]])))
        out = self.tag(f"macro {name}({params})") + self.body(depth - 1) + self.tag("endmacro")
        self.extra = saved
        self.macros.append(name)
        if self.r.random() < 0.3:
            return out + self.tag(f"call {name}({self.arguments(2)})") + self.body(depth - 1) + self.tag("endcall")
        return out + "{{ %s(%s) }}" % (name, self.arguments(2))


def context(rng):
    word = lambda: rng.choice(WORDS)
    return {"s": word(), "t": word(), "n": rng.choice([0, 1, 3, 7, -2, 12]), "f": rng.choice([0.5, 2.0, -1.25, 3.14159, 1e16]),
            "lst": [rng.choice([1, 2, 3, "a", None, True, 2.5, word()]) for _ in range(rng.randrange(4))],
            "dct": {rng.choice(["k", "b", "role", "Z", "items"]): rng.choice([1, "v", None, [1], word()]) for _ in range(3)},
            "msgs": [{"role": rng.choice(["user", "assistant", "system"]), "content": word(), "n": i}
                     for i in range(rng.randrange(1, 4))],
            "none_v": None, "yes": True, "no": False, "deep": [[1, [2, 3]], [4]], "words": [word() for _ in range(3)],
            "nums": [3, 1, 2], "empty": rng.choice([[], {}, ""])}


def expected(env, case):
    try:
        return {"output": env.from_string(case["template"]).render(**case["context"])}
    except RecursionError:
        return {"skip": "recursion"}
    except Exception as e:  # any error there must be an error here
        return {"error": f"{type(e).__name__}: {e}"}


# Addresses, and the names of iterators that only CPython has; numbers that do not fit; what we say we do not do.
FOREIGN = re.compile(r" at 0x|<built-in|<bound method|<function|iterator|Undefined|<class |LoopContext|object of type", re.IGNORECASE)
REFUSED = re.compile(r"beyond 64 bits|not supported|complex numbers")


def verdict(want, got):
    if "skip" in want:
        return "skipped"
    if "error" in got and REFUSED.search(got["error"]) and "supported between" not in got["error"]:
        return "equal" if "error" in want else "refused"
    if "output" in want and "No filter named 'nofilter'." in got.get("error", ""):
        return "stricter"  # jinja2 folded a constant `or` and never looked at its other side
    if "output" in want:
        if want["output"] == got.get("output"):
            return "equal"
        return "foreign" if FOREIGN.search(want["output"]) else "different"
    return "equal" if "error" in got else "different"


def utf8(text):
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--show", type=int, default=10)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    env, cases, wants = environment(), [], []
    for index in range(args.count):
        rng = random.Random(args.seed * 1000003 + index)
        generator = Generator(rng, sane=rng.random() < 0.6)
        small = rng.random() < 0.5
        template = "{{ " + generator.expr(3) + " }}" if small else generator.body(3)
        case = {"template": template, "context": context(rng), "now": NOW, "index": index}
        want = expected(env, case)
        if utf8(want.get("output", "")):
            cases.append(case)
            wants.append(want)
    lines = "\n".join(json.dumps(c) for c in cases) + "\n"
    run = subprocess.run([args.program, "cases"], input=lines.encode(), capture_output=True, check=False)
    gots = [json.loads(line) for line in run.stdout.decode().split("\n") if line]
    if run.returncode != 0 or len(gots) != len(cases):
        print(f"crashed after {len(gots)} of {len(cases)}: {run.stderr.decode()[-2000:]}")
        if len(gots) < len(cases):
            print(json.dumps(cases[len(gots)]))
        return 1
    tally = {}
    for case, want, got in zip(cases, wants, gots):
        result = verdict(want, got)
        tally[result] = tally.get(result, 0) + 1
        if result == "different" and tally[result] <= args.show:
            print(f"-- case {case['index']}\n{case['template']}\n   {json.dumps(case['context'], ensure_ascii=False)}"
                  f"\n   jinja2: {str(want)[-600:]}\n   ours:   {str(got)[-600:]}")
    errors = sum("error" in w for w in wants)
    print(f"seed {args.seed}: {len(cases)} templates, {errors} of them errors: {tally}")
    return 1 if tally.get("different") else 0


if __name__ == "__main__":
    sys.exit(main())
