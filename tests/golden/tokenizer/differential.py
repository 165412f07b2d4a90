#!/usr/bin/env python3
"""Compares Quire's tokenizer with the PyPI package `tokenizers` on random Unicode.

    python3 differential.py libquire.so [--count N] [--seed S] [--shared DIR] [--only NAME]

Families: every tokenizer.json of the shared data (when there) and small ones made here that use every
normalizer, pre-tokenizer, model and decoder.  Prints a line a family; exits 1 on the first differences, with
the seed, the text and both answers.
"""
import argparse
import ctypes
import glob
import json
import os
import random
import sys
import tempfile

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers


class Options(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("add_special_tokens", ctypes.c_bool), ("parse_special", ctypes.c_bool),
                ("truncate_and_pad", ctypes.c_bool)]


class Error(ctypes.Structure):
    _fields_ = [("status", ctypes.c_int), ("message", ctypes.c_char * 252)]


class Quire:
    """The public functions of quire.h over ctypes."""

    def __init__(self, library, folder):
        self.lib, self.handle = library, ctypes.c_void_p()
        error = Error()
        if library.qr_tokenizer_open(folder.encode(), ctypes.byref(self.handle), ctypes.byref(error)):
            raise ValueError(error.message.decode())

    def encode(self, text, special):
        data, ids, count, error = text.encode(), ctypes.POINTER(ctypes.c_int32)(), ctypes.c_size_t(), Error()
        options = Options(ctypes.sizeof(Options), special, True, True)
        if self.lib.qr_tokenizer_encode(self.handle, data, ctypes.c_size_t(len(data)), ctypes.byref(options),
                                        ctypes.byref(ids), ctypes.byref(count), ctypes.byref(error)):
            return "error: " + error.message.decode()
        out = ids[:count.value]
        self.lib.qr_ids_free(ids)
        return out

    def decode(self, ids, skip):
        array, text, size, error = (ctypes.c_int32 * max(1, len(ids)))(*ids), ctypes.c_void_p(), ctypes.c_size_t(), Error()
        if self.lib.qr_tokenizer_decode(self.handle, array, ctypes.c_size_t(len(ids)), skip, ctypes.byref(text),
                                        ctypes.byref(size), ctypes.byref(error)):
            return "error: " + error.message.decode()
        out = ctypes.string_at(text, size.value).decode()
        self.lib.qr_string_free(text)
        return out

    def close(self):
        self.lib.qr_tokenizer_close(self.handle)


WORDS = ("the of and Hello World don't I'll WE'VE you're it's IT'S can't 'ſ ſ's naïve café Zürich fiancée 你好 世界 日本語 "
         "ひらがな カタカナ 한국어 Привет мир مرحبا שלום हिन्दी ไทย ∑∫ 1234567 3.14 ½ ② Ⅷ ٣٤ 🙂 👩‍👩‍👧 🇩🇪🇫🇷 👍🏽 ... -- == () [] {} // "
         "\\n foo_bar camelCase HTTPServer <b> </b> http://a.b/c?d=e İstanbul Straße ﬁ ﬃ Å Å é é ǆ ǅ σς Σ ﷺ ㍿ ㎏ "
         "\u200b \u200d \ufeff \u00ad \u2028 \u0085 \u00a0 \u3000 \u180e a\u0301\u0323 q\u0307\u0323 \U0001d400 𝒳").split(" ")
SPACES = [" ", "  ", "   ", "\n", "\r\n", "\t", "\n\n", " \n ", "\u00a0", "\u3000", "\u2003", "\u2028", "\x85", "\x0b", "\f", "▁", "▁▁"]


def random_text(rng, specials):
    parts = []
    for _ in range(rng.randrange(1, 14)):
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


def shared_families(shared):
    for path in sorted(glob.glob(shared + "/data/tokenizers/*/tokenizer.json") +
                       glob.glob(shared + "/data/weights/*/*/tokenizer.json")):
        try:
            yield "/".join(path.split("/")[-3:-1]), Tokenizer.from_file(path)
        except Exception as problem:  # pylint: disable=broad-except
            print("%-36s the reference refuses it: %s" % (path, problem))


def compare(library, name, tokenizer, count, seed):
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder + "/tokenizer.json")
        config = json.load(open(folder + "/tokenizer.json", encoding="utf-8"))
        try:
            ours = Quire(library, folder)
        except ValueError as problem:
            print("%-36s REFUSED: %s" % (name, problem))
            return 1
    specials = [t["content"] for t in config["added_tokens"]][:40]
    top = max(list(tokenizer.get_vocab(True).values()) or [0]) + 1
    # tokenizers 0.23 forgets that an added token is special, and its spelling, when it is `normalized`.
    changed = {t["id"] for t in config["added_tokens"] if t["normalized"]}
    rng, wrong = random.Random("%s %s" % (seed, name)), 0
    for i in range(count):
        text, special = random_text(rng, specials), rng.random() < 0.5
        try:
            want = tokenizer.encode(text, add_special_tokens=special).ids
        except Exception:  # pylint: disable=broad-except
            continue
        got = ours.encode(text, special)
        if got != want:
            wrong += 1
            if wrong <= 3:
                print("  %s text %r\n   got %s\n  want %s" % (name, text, got, want))
            continue
        ids = want if i % 2 else [rng.randrange(top) for _ in range(rng.randrange(1, 12))]
        if changed.intersection(ids):
            continue
        if any("<0x" in (tokenizer.id_to_token(t) or "") for t in ids) and i % 2 == 0:
            continue  # runs of bytes that are no UTF-8: see detokenizer.c
        want_text, got_text = tokenizer.decode(ids, skip_special_tokens=special), ours.decode(ids, special)
        if want_text != got_text:
            wrong += 1
            if wrong <= 3:
                print("  %s ids %s\n   got %r\n  want %r" % (name, ids, got_text, want_text))
    ours.close()
    print("%-36s %6d texts %4d differ" % (name, count, wrong), flush=True)
    return wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--shared", default=os.environ.get("QR_SHARED_DIR", "../shared"))
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    library = ctypes.CDLL(os.path.abspath(options.library))
    library.qr_tokenizer_close.argtypes = [ctypes.c_void_p]
    library.qr_string_free.argtypes = [ctypes.c_void_p]
    wrong = 0
    for families in (made_families(), shared_families(options.shared)):
        for name, tokenizer in families:
            if options.only in name:
                wrong += compare(library, name, tokenizer, options.count, options.seed)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
