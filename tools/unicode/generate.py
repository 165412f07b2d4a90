#!/usr/bin/env python3
"""Writes src/text/unicode_tables.c: what the reference tokenizers know of Unicode, asked of the reference.

Each component of the reference carries its own Unicode version (expressions, Rust's char methods, the
normal forms, the script list), so nothing here reads a Unicode file: every code point is put through the
installed PyPI package `tokenizers` and the answers are tabulated.  Run with that package installed:

    pip install tokenizers==0.23.3 && python3 tools/unicode/generate.py src/text/unicode_tables.c

Grapheme break classes cannot be asked for directly; they come from the PyPI package `regex`
(2026.11.19), which knows a later Unicode: LATER_MARKS stand alone in the reference, as its Precompiled normalizer
shows when each character below U+10000 is put behind one that it maps (beyond, clusters are too long to matter).
"""
import sys
import unicodedata
import regex
import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CHUNK = 4096
GENERAL = ["Cn", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe",
           "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Co", "Cs"]
BREAKS = ["Other", "CR", "LF", "Control", "Extend", "ZWJ", "Regional_Indicator", "Prepend", "SpacingMark",
          "L", "V", "T", "LV", "LVT", "Extended_Pictographic"]

LATER_MARKS = {0x5C8, 0x5C9, 0xB53, 0xB54, 0x1ADE, 0x1ADF, *range(0x1AEC, 0x1AF1)}


def chunks():
    for i in range(0, len(CODE_POINTS), CHUNK):
        yield "".join(map(chr, CODE_POINTS[i:i + CHUNK]))


def removed_by(pre_tokenizer):
    """Code points that a pre-tokenizer with behaviour "removed" takes out."""
    out = set()
    for text in chunks():
        out.update(map(ord, text))
        for piece, _ in pre_tokenizer.pre_tokenize_str(text):
            out.difference_update(map(ord, piece))
    return out


def matching(expression):
    return removed_by(pre_tokenizers.Split(Regex(expression), "removed"))


def isolated_by(pre_tokenizer, neighbour):
    """Code points that a pre-tokenizer cuts off from a neighbour that it leaves alone."""
    out = set()
    for text in chunks():
        pieces = pre_tokenizer.pre_tokenize_str("".join(c + neighbour for c in text))
        joined = {p for p, _ in pieces}
        out.update(ord(c) for c in text if c in joined)
    out.discard(ord(neighbour))
    return out


def mapped_by(normalizer, separator):
    """{code point: text} of what a normalizer changes, each taken alone between separators."""
    out = {}
    for text in chunks():
        text = text.replace(separator, "")
        result = normalizer.normalize_str(separator + separator.join(text) + separator)
        parts = result.split(separator)[1:-1]
        assert len(parts) == len(text), (len(parts), len(text))
        out.update({ord(c): p for c, p in zip(text, parts) if c != p})
    return out


def general_categories():
    out = dict.fromkeys(CODE_POINTS, 0)
    for index, name in enumerate(GENERAL):
        if name not in ("Cn", "Cs"):
            for c in matching(r"\p{%s}" % name):
                out[c] = index
    return out


def combining_classes(decomposed):
    """By how NFD orders a pair of marks; values are ranks in that order, 0 for starters."""
    nfd = normalizers.NFD()

    def swaps(first, second):
        text = "a" + chr(first) + chr(second)
        return nfd.normalize_str(text) != text

    def moving(mark, before):
        found = set()
        for text in chunks():
            text = "".join(c for c in text if ord(c) not in decomposed and not 0xAC00 <= ord(c) < 0xD7A4)
            pairs = "".join("a" + (c + mark if before else mark + c) for c in text)
            result = nfd.normalize_str(pairs)
            assert len(result) == len(pairs)
            for i, c in enumerate(text):
                if result[3 * i:3 * i + 3] != pairs[3 * i:3 * i + 3]:
                    found.add(ord(c))
        return found
    # U+0334 has class 1, the least: all above move before it; what is below 230 moves before U+0301.
    marks = moving("\u0334", True) | moving("\u0301", False) | {0x334, 0x301}
    order = []  # lists of marks of one class, ascending

    def place(mark):
        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            other = order[middle][0]
            if swaps(mark, other):
                low = middle + 1
            elif swaps(other, mark):
                high = middle
            else:
                order[middle].append(mark)
                return
        order.insert(low, [mark])
    for mark in sorted(marks):
        if mark not in decomposed:
            place(mark)
    return {m: i + 1 for i, group in enumerate(order) for m in group}


def scripts():
    """Numbers of equal script, by what UnicodeScripts leaves together; 0 joins anything."""
    split = pre_tokenizers.UnicodeScripts()

    def together(a, b):
        return len(split.pre_tokenize_str(chr(a) + chr(b))) == 1
    out, groups = {}, []
    last = 0
    for c in CODE_POINTS:
        if together(ord("a"), c) and together(0x3B1, c):
            out[c] = 0
            continue
        if last and together(groups[last - 1], c):
            out[c] = last
            continue
        for number, probe in enumerate(groups):
            if together(probe, c):
                break
        else:
            number = len(groups)
            groups.append(c)
        out[c] = last = number + 1
    return out


def compositions(nfd):
    nfc = normalizers.NFC()
    out = {}
    for c, text in nfd.items():
        if 0xAC00 <= c < 0xD7A4 or len(text) < 2 or nfc.normalize_str(chr(c)) != chr(c):
            continue
        first = nfc.normalize_str(text[:-1])
        if len(first) == 1 and nfc.normalize_str(first + text[-1]) == chr(c):
            out[(ord(first), ord(text[-1]))] = c
    return out


def stand_ins(general, space, word, han):
    """Up to four old characters of each category, Han or not, and UTF-8 length: their category is the same in
    every Unicode version, so a regular expression library of another version can be given them instead.  Where
    Unicode 3.2 has none, those of this Python's (14 or older suits Debian 12's PCRE2) are taken."""
    out, counts = [], {}
    for version in (unicodedata.ucd_3_2_0, unicodedata):
        before = dict(counts)
        for c in CODE_POINTS:
            if c < 0x80 or c in space or c == 0x180E or 0x1E00 <= c < 0x2000:
                continue
            name = GENERAL[general[c]]
            stable = version.category(chr(c)) == name and unicodedata.category(chr(c)) == name
            if name == "Cn":
                stable = c & 0xFFFE == 0xFFFE or 0xFDD0 <= c < 0xFDF0 or 0x380 <= c < 0x384
            if not stable or (name in ("No", "So") and c in word) or (name in ("Lu", "Ll") and c < 0x100):
                continue
            key = (general[c], int(c in han), len(chr(c).encode()))
            counts[key] = counts.get(key, 0) + 1
            if key not in before and counts[key] <= 4:
                out.append((*key, c))
    return out


def emit_numbers(out, name, kind, values, per_line=24):
    out.append("const %s %s[%d] = {" % (kind, name, len(values)))
    for i in range(0, len(values), per_line):
        out.append("    " + ",".join(map(str, values[i:i + per_line])) + ",")
    out.append("};")


def emit_trie(out, values):
    """Two stages over blocks of 128 code points."""
    blocks, index, stage1, stage2 = {}, 0, [], []
    for start in range(0, 0x110000, 128):
        block = tuple(values[start:start + 128])
        if block not in blocks:
            blocks[block] = len(blocks)
            stage2.extend(block)
        stage1.append(blocks[block])
    emit_numbers(out, "qr_unicode_stage1", "uint16_t", stage1)
    emit_numbers(out, "qr_unicode_stage2", "uint16_t", stage2, 48)


def emit_mappings(out, name, table):
    """Sorted code points with offset and length into a pool of code points."""
    keys = sorted(table)
    pool, rows = [], []
    seen = {}
    for c in keys:
        text = tuple(map(ord, table[c]))
        if text not in seen:
            seen[text] = len(pool)
            pool.extend(text)
        rows.append("{%d,%d,%d}" % (c, seen[text], len(text)))
    out.append("const qr_unicode_mapping %s[%d] = {" % (name, len(rows)))
    for i in range(0, len(rows), 8):
        out.append("    " + ",".join(rows[i:i + 8]) + ",")
    out.append("};")
    out.append("const uint32_t %s_count = %d;" % (name, len(rows)))
    emit_numbers(out, name + "_pool", "uint32_t", pool)


def main():
    flags = [  # order of the bits in unicode.h
        matching(r"\s"), matching(r"\w"), matching(r"\p{Han}"),
        removed_by(pre_tokenizers.WhitespaceSplit()),
        isolated_by(pre_tokenizers.Digits(individual_digits=True), "x"),
        isolated_by(pre_tokenizers.Punctuation("isolated"), "x"),
        {c for c, t in mapped_by(normalizers.BertNormalizer(True, False, False, False), "|").items() if t == ""},
        {c for c, t in mapped_by(normalizers.BertNormalizer(False, False, True, False), "|").items() if t == ""},
        {c for c, t in mapped_by(normalizers.StripAccents(), "|").items() if t == ""},
    ]
    word = removed_by(pre_tokenizers.Sequence([]))  # nothing: keeps the helper honest
    assert not word
    # The pre-tokenizer Whitespace takes \w+ or [^\w\s]+: a character is a word one if it stays with "x".
    joined = set()
    whitespace = pre_tokenizers.Whitespace()
    for text in chunks():
        pieces = whitespace.pre_tokenize_str("\n".join("x" + c for c in text if c != "\n"))
        joined.update(ord(p[1]) for p, _ in pieces if len(p) == 2 and p[0] == "x")
    flags.append(joined)
    general = general_categories()
    script = scripts()
    breaks = {}
    for index, name in enumerate(BREAKS):
        if index == 0:
            continue
        expression = r"\p{%s}" % name if name == "Extended_Pictographic" else r"\p{GCB=%s}" % name
        for text in chunks():
            for match in regex.finditer(expression, text):
                if ord(match.group()) not in LATER_MARKS:
                    breaks.setdefault(ord(match.group()), index)
    nfd, nfkd = mapped_by(normalizers.NFD(), "\n"), mapped_by(normalizers.NFKD(), "\n")
    nfd = {c: t for c, t in nfd.items() if not 0xAC00 <= c < 0xD7A4}
    nfkd = {c: t for c, t in nfkd.items() if not 0xAC00 <= c < 0xD7A4}
    ccc = combining_classes(set(nfd))
    lower = mapped_by(normalizers.Lowercase(), "\n")
    composed = compositions(nfd)

    records, numbers, values = {}, [], [0] * 0x110000
    for c in range(0x110000):
        if 0xD800 <= c < 0xE000:
            key = (GENERAL.index("Cs"), 0, 0, 0, 0)
        else:
            bits = sum(1 << i for i, members in enumerate(flags) if c in members)
            key = (general[c], script.get(c, 0), ccc.get(c, 0), breaks.get(c, 0), bits)
        if key not in records:
            records[key] = len(records)
            numbers.append(key)
        values[c] = records[key]

    out = ["/* Made by tools/unicode/generate.py from tokenizers %s and regex %s. Do not edit." %
           (tokenizers.__version__, regex.__version__),
           " * A Unicode class, script, normal form or case mapping as the reference tokenizers have it. */",
           '#include "text/unicode.h"', "", "/* clang-format off */"]
    out.append("const qr_unicode_record qr_unicode_records[%d] = {" % len(numbers))
    for i in range(0, len(numbers), 6):
        out.append("    " + ",".join("{%d,%d,%d,%d,%d}" % n for n in numbers[i:i + 6]) + ",")
    out.append("};")
    emit_trie(out, values)
    emit_mappings(out, "qr_unicode_nfd", nfd)
    # Only where it differs from the canonical form.
    emit_mappings(out, "qr_unicode_nfkd", {c: t for c, t in nfkd.items() if nfd.get(c) != t})
    emit_mappings(out, "qr_unicode_lower", lower)
    rows = ["{%d,%d,%d}" % (a, b, c) for (a, b), c in sorted(composed.items())]
    out.append("const qr_unicode_composition qr_unicode_compositions[%d] = {" % len(rows))
    for i in range(0, len(rows), 8):
        out.append("    " + ",".join(rows[i:i + 8]) + ",")
    out.append("};")
    out.append("const uint32_t qr_unicode_composition_count = %d;" % len(rows))
    out.append("const qr_unicode_stand_in qr_unicode_stand_ins[] = {")
    found = stand_ins(general, flags[0], flags[1], flags[2])
    out.append("    " + ",".join("{%d,%d,%d,%d}" % row for row in found))
    out.append("};")
    out.append("const uint32_t qr_unicode_stand_in_count = %d;" % len(found))
    with open(sys.argv[1], "w", encoding="ascii") as file:
        file.write("\n".join(out) + "\n")
    print("records", len(numbers), "nfd", len(nfd), "nfkd", len(nfkd), "lower", len(lower), "pairs", len(composed),
          "marks", len(ccc), "classes", len(set(ccc.values())), "scripts", len(set(script.values())))


if __name__ == "__main__":
    main()
