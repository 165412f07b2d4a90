#!/usr/bin/env python3
"""Compares Quire's tokenizer with the PyPI package `tokenizers` on random Unicode.

    python3 differential.py libquire.so [--count N] [--parts N] [--seed S] [--shared DIR] [--only NAME] [--jobs N]

Families: every tokenizer.json of the shared data (when there), --count texts each, and small ones made here that use
every normalizer, pre-tokenizer, model and decoder, --parts texts each.  Each text is encoded with or without special
tokens; its ids, or random ones, are decoded.  Prints a row a family; exits 1 when one differs, with the first texts and
both answers.  The shared data's broken files have to be refused, with a reason.
"""
import argparse
import array
import ctypes
import glob
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the families share the machine's cores instead

from tokenizers import AddedToken, Regex, Tokenizer, __version__, decoders, models, normalizers, pre_tokenizers  # noqa: E402

BATCH = 1000


class Options(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("add_special_tokens", ctypes.c_bool), ("parse_special", ctypes.c_bool),
                ("truncate_and_pad", ctypes.c_bool)]


class Error(ctypes.Structure):
    _fields_ = [("status", ctypes.c_int), ("message", ctypes.c_char * 252)]


class Quire:
    """The public functions of quire.h over ctypes."""

    def __init__(self, library, folder):
        self.lib, self.handle, self.error = library, ctypes.c_void_p(), Error()
        if library.qr_tokenizer_open(folder.encode(), ctypes.byref(self.handle), ctypes.byref(self.error)):
            raise ValueError(self.error.message.decode())
        self.options = [Options(ctypes.sizeof(Options), special, True, True) for special in (False, True)]

    def encode(self, text, special):
        data, ids, count = text.encode(), ctypes.c_void_p(), ctypes.c_size_t()
        if self.lib.qr_tokenizer_encode(self.handle, data, len(data), ctypes.byref(self.options[special]),
                                        ctypes.byref(ids), ctypes.byref(count), ctypes.byref(self.error)):
            return "error: " + self.error.message.decode()
        out = array.array("i", ctypes.string_at(ids, 4 * count.value)).tolist() if count.value else []
        self.lib.qr_ids_free(ids)
        return out

    def decode(self, ids, skip):
        packed, text, size = array.array("i", ids).tobytes(), ctypes.c_void_p(), ctypes.c_size_t()
        if self.lib.qr_tokenizer_decode(self.handle, packed, len(ids), skip, ctypes.byref(text), ctypes.byref(size),
                                        ctypes.byref(self.error)):
            return "error: " + self.error.message.decode()
        out = ctypes.string_at(text, size.value).decode()
        self.lib.qr_string_free(text)
        return out

    def close(self):
        self.lib.qr_tokenizer_close(self.handle)


def open_library(path):
    library = ctypes.CDLL(os.path.abspath(path))
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.qr_tokenizer_open.argtypes = [ctypes.c_char_p, pointer, pointer]
    library.qr_tokenizer_encode.argtypes = [pointer, ctypes.c_char_p, size, pointer, pointer, pointer, pointer]
    library.qr_tokenizer_decode.argtypes = [pointer, ctypes.c_char_p, size, ctypes.c_bool, pointer, pointer, pointer]
    for name in ("qr_tokenizer_close", "qr_ids_free", "qr_string_free"):
        getattr(library, name).argtypes = [pointer]
    return library


WORDS = ("the of and Hello World don't I'll WE'VE you're it's IT'S can't 'ſ ſ's naïve café Zürich fiancée 你好 世界 日本語 "
         "ひらがな カタカナ 한국어 Привет мир مرحبا שלום हिन्दी ไทย ∑∫ 1234567 3.14 ½ ② Ⅷ ٣٤ 🙂 👩‍👩‍👧 🇩🇪🇫🇷 👍🏽 ... -- == () [] {} // "
         "\\n foo_bar camelCase HTTPServer <b> </b> http://a.b/c?d=e İstanbul Straße ﬁ ﬃ Å Å é é ǆ ǅ σς Σ ﷺ ㍿ ㎏ "
         "\u200b \u200d \ufeff \u00ad \u2028 \u0085 \u00a0 \u3000 \u180e a\u0301\u0323 q\u0307\u0323 \U0001d400 𝒳").split(" ")
SPACES = [" ", "  ", "   ", "\n", "\r\n", "\t", "\n\n", " \n ", "\u00a0", "\u3000", "\u2003", "\u2028", "\x85", "\x0b", "\f", "▁", "▁▁"]


def random_text(rng, specials, parts_max=14):
    parts = []
    for _ in range(rng.randrange(1, parts_max)):
        kind = rng.random()
        if kind < 0.35:
            parts.append(rng.choice(WORDS))
        elif kind < 0.55:
            parts.append(rng.choice(SPACES))
        elif kind < 0.65:
            parts.append("".join(chr(rng.randrange(32, 127)) for _ in range(rng.randrange(1, 8))))
        elif kind < 0.75:
            low, high = rng.choice([(0x80, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x780), (0x900, 0xE00), (0x1100, 0x1200),
                                    (0x1E00, 0x2000), (0x2000, 0x2400), (0x3000, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4),
                                    (0xF900, 0x10000), (0x1F000, 0x1FB00), (0x10000, 0x12000), (0x1D000, 0x1E000)])
            parts.append("".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 6))))
        elif kind < 0.85:
            while True:
                c = rng.randrange(0x110000)
                if not 0xD800 <= c < 0xE000:
                    break
            parts.append(chr(c))
        elif kind < 0.93 and specials:
            parts.append(rng.choice(specials))
        else:
            parts.append(rng.choice("'\"!?,.;:-_#$%&*+/<>=@^`|~") * rng.randrange(1, 4))
    return "".join(parts)


def made_families():
    """Small tokenizers that between them use every component."""
    alphabet = sorted(set("".join(WORDS) + "".join(map(chr, range(32, 127))) + "▁Ġ"))
    vocab = {"<unk>": 0}
    for c in alphabet:
        vocab.setdefault(c, len(vocab))
    merges = []
    for pair in ("t h", "th e", "i n", "e r", "H e", "l l", "o o", "▁ t", "▁t he", "▁ a", "1 2", "' s", "Ã ¼", "Ġ t", "Ġt h"):
        a, b = pair.split(" ")
        if a in vocab and b in vocab and a + b not in vocab:
            vocab[a + b] = len(vocab)
            merges.append((a, b))
    words = dict(vocab)
    for w in WORDS + ["##s", "##ing", "##e", "##o", "##a", "[UNK]"]:
        words.setdefault(w, len(words))
    pieces = [("<unk>", 0.0)] + [(w, -1.0 - (i * 7919 % 97) / 10) for i, w in enumerate(words) if w != "<unk>"]
    bpe = lambda **k: models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", **k)  # noqa: E731
    for name, normalizer in {
            "NFC": normalizers.NFC(), "NFD": normalizers.NFD(), "NFKC": normalizers.NFKC(), "NFKD": normalizers.NFKD(),
            "Lowercase": normalizers.Lowercase(), "Strip": normalizers.Strip(), "StripLeft": normalizers.Strip(True, False),
            "NFD-StripAccents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
            "Bert": normalizers.BertNormalizer(), "BertCased": normalizers.BertNormalizer(lowercase=False),
            "BertAccents": normalizers.BertNormalizer(True, True, True, False), "Nmt": normalizers.Nmt(),
            "Prepend": normalizers.Prepend("▁"), "Replace": normalizers.Replace("o", "0"),
            "ReplaceRegex": normalizers.Replace(Regex(r"\s{2,}|[aeiou]+"), "_"), "ByteLevel": normalizers.ByteLevel()}.items():
        tokenizer = Tokenizer(bpe())
        tokenizer.normalizer = normalizer
        yield "normalizer " + name, tokenizer
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    steps = {"Whitespace": pre_tokenizers.Whitespace(), "WhitespaceSplit": pre_tokenizers.WhitespaceSplit(),
             "Bert": pre_tokenizers.BertPreTokenizer(), "Digits": pre_tokenizers.Digits(False), "Digit": pre_tokenizers.Digits(True),
             "Scripts": pre_tokenizers.UnicodeScripts(), "Delimiter": pre_tokenizers.CharDelimiterSplit("e"),
             "FixedLength": pre_tokenizers.FixedLength(3), "ByteLevel": pre_tokenizers.ByteLevel(False),
             "ByteLevelPrefix": pre_tokenizers.ByteLevel(True), "ByteLevelRaw": pre_tokenizers.ByteLevel(True, False),
             "MetaspaceAlways": pre_tokenizers.Metaspace("▁", "always"), "MetaspaceFirst": pre_tokenizers.Metaspace("▁", "first"),
             "MetaspaceNever": pre_tokenizers.Metaspace("▁", "never", split=False),
             "SplitThenMeta": pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", "first")]),
             "PunctThenBytes": pre_tokenizers.Sequence([pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(True)])}
    for behavior in ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"):
        steps["Punctuation " + behavior] = pre_tokenizers.Punctuation(behavior)
        steps["Split " + behavior] = pre_tokenizers.Split(Regex(r"\p{L}+|\s"), behavior)
        steps["SplitInvert " + behavior] = pre_tokenizers.Split(Regex(r"[\p{Lu}\p{M}]+|\d{1,2}+|[^\w\s]"), behavior, True)
        steps["SplitString " + behavior] = pre_tokenizers.Split("e", behavior)
    for i, expression in enumerate([gpt2, r"\w+|\W", r"[\p{Han}]+|(?i:s|k)|\p{P}", r"(?<!\S)\S", r"$|^", r"[[:punct:]]+", r"\h+",
                                    r"[\p{L}&&[^\p{Han}]]+", r"[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+", r"\p{Lo}|\p{So}+|\p{Cf}|\p{Cn}"]):
        steps["Expression %d" % i] = pre_tokenizers.Split(Regex(expression), "isolated")
    for name, step in steps.items():
        tokenizer = Tokenizer(models.WordLevel(words, "<unk>") if "Byte" not in name else bpe())
        tokenizer.pre_tokenizer = step
        yield "pre_tokenizer " + name, tokenizer
    decoders_ = [decoders.ByteLevel(), decoders.WordPiece(), decoders.Metaspace(), decoders.BPEDecoder("e"), decoders.CTC("e", "o"),
                 decoders.Fuse(), decoders.Strip("e", 1, 0), decoders.Replace("e", "E"), decoders.ByteFallback(),
                 decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])]
    for i, decoder in enumerate(decoders_):
        tokenizer = Tokenizer(models.WordPiece(words, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.decoder = decoder
        yield "decoder %d" % i, tokenizer
    yield "bpe plain", Tokenizer(bpe())
    yield "bpe fuse", Tokenizer(bpe(fuse_unk=True))
    yield "bpe prefix", Tokenizer(models.BPE(vocab={**vocab, "##e": len(vocab), "he": len(vocab) + 1}, merges=[("h", "##e")],
                                             unk_token="<unk>", continuing_subword_prefix="##"))
    yield "bpe suffix", Tokenizer(models.BPE(vocab={**vocab, "e</w>": len(vocab), "he</w>": len(vocab) + 1},
                                             merges=merges + [("h", "e</w>")], unk_token="<unk>", end_of_word_suffix="</w>"))
    byte_vocab = dict(vocab)
    for b in range(256):
        byte_vocab.setdefault("<0x%02X>" % b, len(byte_vocab))
    yield "bpe fallback", Tokenizer(models.BPE(vocab=byte_vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    yield "unigram", Tokenizer(models.Unigram(pieces, 0, False))
    yield "unigram fallback", Tokenizer(models.Unigram(pieces + [("<0x%02X>" % b, -9.0) for b in range(256)], 0, True))
    tokenizer = Tokenizer(bpe())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_tokens([AddedToken("HELLO"), AddedToken("[l]", lstrip=True), AddedToken("[r]", rstrip=True, normalized=False),
                          AddedToken("word", single_word=True), AddedToken("[lr]", lstrip=True, rstrip=True), AddedToken("  ")])
    tokenizer.add_special_tokens(["<s>", "<s><s>", AddedToken("<m>", lstrip=True, rstrip=True, single_word=True)])
    yield "added tokens", tokenizer


def random_texts(seed, count):
    """Short ones mostly: what differs shows in a few characters."""
    rng = random.Random("texts %s" % seed)
    return [random_text(rng, [], 7 if i % 4 else 20) for i in range(count)]


def with_special(rng, text, specials):
    if not specials or rng.random() > 0.2:
        return text
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice(specials) + text[at:]


def shared_paths(shared):
    return sorted(glob.glob(shared + "/data/tokenizers/*/tokenizer.json") + glob.glob(shared + "/data/weights/*/*/tokenizer.json"))


class Report:
    """The rows of one family; the first differences are shown."""

    def __init__(self, name):
        self.name, self.texts, self.decoded, self.wrong, self.lines, self.started = name, 0, 0, 0, [], time.monotonic()

    def differ(self, *lines):
        self.wrong += 1
        if self.wrong <= 3:
            self.lines += lines

    def row(self):
        return "%-36s %7d %9d %8d %6.1f s" % (self.name, self.texts, self.decoded, self.wrong, time.monotonic() - self.started)


def reference_encode(tokenizer, texts, special):
    """None for a text that the reference itself refuses."""
    try:
        return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=special)]
    except Exception:  # pylint: disable=broad-except
        out = []
        for text in texts:
            try:
                out.append(tokenizer.encode(text, add_special_tokens=special).ids)
            except Exception:  # pylint: disable=broad-except
                out.append(None)
        return out


def can_be_decoded(tokenizer, ids, changed, random_ids):
    """Where the reference is wrong, or ours differs on purpose."""
    if changed.intersection(ids):  # tokenizers forgets that an added token is special, and its spelling, when it is `normalized`
        return False
    if not random_ids:
        return True
    # Runs of byte tokens that are no UTF-8: the reference takes back whole characters of the run, a stream cannot
    # (detokenizer.c). Texts never give such runs.
    return not any("<0x" in (tokenizer.id_to_token(token) or "") for token in ids)


def compare_batch(report, ours, tokenizer, texts, special, rng, top, changed):
    wants = reference_encode(tokenizer, texts, special)
    ids, random_kinds = [], []
    for i, (text, want) in enumerate(zip(texts, wants)):
        if want is None:
            continue
        report.texts += 1
        got = ours.encode(text, special)
        if got != want:
            report.differ("  %s text %r special %s" % (report.name, text, special), "   got %s" % got, "  want %s" % want)
            continue
        use_random = i % 2 == 0
        decoded = [rng.randrange(top) for _ in range(rng.randrange(1, 12))] if use_random else want
        if can_be_decoded(tokenizer, decoded, changed, use_random):
            ids.append(decoded)
            random_kinds.append(use_random)
    for one, want in zip(ids, tokenizer.decode_batch(ids, skip_special_tokens=special)):
        report.decoded += 1
        got = ours.decode(one, special)
        if got != want:
            report.differ("  %s ids %s skip %s" % (report.name, one, special), "   got %r" % got, "  want %r" % want)


def compare(library, name, tokenizer, texts, seed):
    report = Report(name)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder + "/tokenizer.json")
        with open(folder + "/tokenizer.json", encoding="utf-8") as file:
            added = json.load(file)["added_tokens"]
        try:
            ours = Quire(library, folder)
        except ValueError as problem:
            report.differ("  %s is refused: %s" % (name, problem))
            return report
    specials = [token["content"] for token in added][:40]
    changed = {token["id"] for token in added if token["normalized"]}
    top = max(list(tokenizer.get_vocab(True).values()) or [0]) + 1
    rng = random.Random("%s %s" % (seed, name))
    for begin in range(0, len(texts), BATCH):
        batch = [with_special(rng, text, specials) for text in texts[begin:begin + BATCH]]
        compare_batch(report, ours, tokenizer, batch, begin // BATCH % 2 == 1, rng, top, changed)
    ours.close()
    return report


STATE = {}  # of the worker processes, by fork: library, texts, options, made families


def work(job):
    kind, key = job
    options = STATE["options"]
    if kind == "made":
        name, tokenizer = STATE["made"][key]
        texts = STATE["texts"][:options.parts]
    else:
        name, texts = "/".join(key.split("/")[-3:-1]), STATE["texts"]
        try:
            tokenizer = Tokenizer.from_file(key)
        except Exception as problem:  # pylint: disable=broad-except
            return None, ["%-36s the reference refuses it: %s" % (name, problem)], 0
    report = compare(STATE["library"], name, tokenizer, texts, options.seed)
    return report.row(), report.lines, report.wrong


def broken_files_are_refused(library, shared):
    wrong = 0
    for path in sorted(glob.glob(shared + "/data/tokenizers/broken/*")):
        with tempfile.TemporaryDirectory() as folder:
            with open(path, "rb") as source, open(folder + "/tokenizer.json", "wb") as target:
                target.write(source.read())
            try:
                Quire(library, folder).close()
                print("%s: taken, though it is broken" % os.path.basename(path))
                wrong += 1
            except ValueError as problem:
                print("%s: refused: %s" % (os.path.basename(path), str(problem).replace(folder + "/", "")))
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--count", type=int, default=100000)
    parser.add_argument("--parts", type=int, default=5000)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--shared", default=os.environ.get("QR_SHARED_DIR", "../shared"))
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    library, started = open_library(options.library), time.monotonic()
    STATE.update(options=options, library=library, made=[pair for pair in made_families() if options.only in pair[0]],
                 texts=random_texts(options.seed, max(options.count, options.parts)))
    jobs = [("shared", path) for path in shared_paths(options.shared) if options.only in path]
    if not jobs:
        print("no tokenizers under %s: only the small ones made here are compared" % options.shared)
    jobs += [("made", index) for index in range(len(STATE["made"]))]
    print("tokenizers %s, seed %s\n%-36s %7s %9s %8s" % (__version__, options.seed, "family", "texts", "decodes", "differ"), flush=True)
    wrong = 0
    with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
        for row, lines, differ in pool.imap(work, jobs, 1):
            print("\n".join(lines + [row] if row else lines), flush=True)
            wrong += differ
    wrong += broken_files_are_refused(library, options.shared)
    print("%d families, %d differences, %.0f s" % (len(jobs), wrong, time.monotonic() - started))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
