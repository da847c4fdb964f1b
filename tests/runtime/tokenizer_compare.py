"""runtime/tokenizer.h against the `tokenizers` package: ids, decoded text and streamed text, equal on every text.

    pytest tests/runtime/tokenizer_compare.py

The C side is tests/tools/tokenize_tool.c, compiled here with the tokenizer's sources (RETRO_TOKENIZE_TOOL names a
ready one). Tokenizers: one trained per style that the supported families publish, some made to reach rare branches,
and SmolLM2's own when scripts/fetch-model has made it (RETRO_MODEL_DIR moves that).

Two differences are known, both from the age of Unicode tables, and test_tables bounds them:
  * PCRE2 10.42 classifies by Unicode 14, the package by a newer one. A character assigned since is unassigned (Cn) to
    PCRE2 and may be split off where the package keeps a word together.
  * The package's NFC knows combining classes up to about Unicode 9, utf8proc 2.8 those of Unicode 15. Marks assigned
    in between keep their place in the package and are sorted here, where they stand beside another mark.
Texts are made without those characters; test_newer_characters shows that with them only ids may differ: the text
survives encode and decode.
"""
import functools
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors,
                        trainers)

ROOT = Path(__file__).resolve().parents[2]
MODEL = Path(os.environ.get("RETRO_MODEL_DIR", ROOT / "models/SmolLM2-135M-Instruct"))
SOURCES = ("addedtokens bpe bpe_model buffer decoder fields normalizer pattern pretokenizer tokenizer "
           "tokenizer_config tokenizer_encode tokenizer_stream utf8 vocab base/die base/status")

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
NEMO = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


# ---------------------------------------------------------------------------------------------- the C side
@pytest.fixture(scope="session")
def program(tmp_path_factory):
    ready = os.environ.get("RETRO_TOKENIZE_TOOL")
    if ready:
        return ready
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    out = tmp_path_factory.mktemp("tool") / "tokenize_tool"
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "jansson", "libpcre2-8", "libutf8proc"], check=True,
                           capture_output=True, text=True).stdout.split()
    sources = [str(ROOT / "runtime" / (name + ".c")) for name in SOURCES.split()]
    subprocess.run([compiler, "-std=gnu11", "-O2", "-g", "-DRETRO_HAVE_UTF8PROC", f"-I{ROOT}",
                    str(ROOT / "tests/tools/tokenize_tool.c"), *sources, *flags, "-o", str(out)], check=True)
    return str(out)


class Tool:
    """One process of tests/tools/tokenize_tool.c."""

    def __init__(self, program, path):
        self.process = subprocess.Popen([program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE)

    def ask(self, op, flag, n, payload):
        try:
            self.process.stdin.write(struct.pack("<cBI", op, flag, n) + payload)
            self.process.stdin.flush()
            status, n = struct.unpack("<BI", self.process.stdout.read(5))
        except (BrokenPipeError, struct.error):
            raise AssertionError(self.process.stderr.read().decode()) from None
        answer = self.process.stdout.read(n if status or op in b"ds" else 4 * n)
        if status:
            raise ValueError(answer.decode())
        return answer

    def encode(self, text, special=False, op=b"e"):
        data = text if isinstance(text, bytes) else text.encode()
        answer = self.ask(op, special, len(data), data)
        return list(struct.unpack(f"<{len(answer) // 4}i", answer))

    def decode(self, ids, skip=False, op=b"d"):
        return self.ask(op, skip, len(ids), struct.pack(f"<{len(ids)}i", *ids)).decode()

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.stderr.close()
        self.process.wait()


@pytest.fixture
def opened(program, tmp_path):
    """open(tokenizer or JSON text) -> Tool; closed at the end."""
    tools = []

    def open_tool(tokenizer):
        path = tmp_path / f"{len(tools)}.json"
        path.write_text(tokenizer if isinstance(tokenizer, str) else tokenizer.to_str(), encoding="utf-8")
        tools.append(Tool(program, path))
        return tools[-1]

    yield open_tool
    for tool in tools:
        tool.close()


# ---------------------------------------------------------------------------------------------- training
@functools.cache
def training_text():
    """About 200 kB of everything: made-up words, this repository's sources and documents, other scripts, emoji."""
    rng = random.Random(7)
    words = ["".join(rng.choice("bcdfghklmnprstvwz") + rng.choice(["a", "e", "i", "o", "u", "ea", "ou", "th"])
                     for _ in range(rng.randint(1, 4))) for _ in range(3000)]
    lines = [" ".join(rng.choices(words, [1 / (k + 3) for k in range(3000)], k=12)) + rng.choice([".", ",\n", "!  "])
             for _ in range(1200)]
    lines += ["it's we're they'll I'm you've he'd DON'T", "x = 12345 + 0x1f; // 3.14159", "\tif (a[i] == '\\n') {\n",
              "Straße naïve café Ελλάδα Москва привет 你好世界 東京都 こんにちは 한국어 हिन्दी ไทย שלום مرحبا 👍🏽 😀",
              "    indented\n        more\r\n\r\n  ", "1,000,000.00 ½ Ⅻ ٣٤٥"] * 40
    for path in sorted((ROOT / "runtime").glob("*.h"))[:20]:
        lines.append(path.read_text(encoding="utf-8")[:4000])
    return lines


def bpe_trainer(size, **more):
    return trainers.BpeTrainer(vocab_size=size, show_progress=False, min_frequency=2, **more)


def byte_level(pre, size=2000, specials=(), **more):
    tokenizer = Tokenizer(models.BPE(**more))
    tokenizer.pre_tokenizer = pre
    tokenizer.train_from_iterator(training_text(), bpe_trainer(
        size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=list(specials)))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def after(*stages):
    return pre_tokenizers.Sequence(list(stages))


BYTES = dict(add_prefix_space=False, use_regex=False)


def smollm():
    tokenizer = byte_level(after(pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)),
                           specials=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return tokenizer


def gpt2():
    tokenizer = byte_level(pre_tokenizers.ByteLevel(True), specials=["<|endoftext|>"])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def llama3():
    tokenizer = byte_level(after(split(LLAMA3), pre_tokenizers.ByteLevel(**BYTES)), ignore_merges=True)
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|eot_id|>"])
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A $B",
                                      special_tokens=[("<|begin_of_text|>", begin)])])
    return tokenizer


def qwen(pattern=QWEN2):
    tokenizer = byte_level(after(split(pattern), pre_tokenizers.ByteLevel(**BYTES)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False, special=False), AddedToken("<think>")])
    return tokenizer


def deepseek():
    """The R1 distills of Qwen: their own specials, bos by template, odd added tokens."""
    tokenizer = qwen()
    tokenizer.add_special_tokens(["<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"])
    begin = tokenizer.token_to_id("<｜begin▁of▁sentence｜>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<｜begin▁of▁sentence｜> $A", pair="$A $B", special_tokens=[("<｜begin▁of▁sentence｜>", begin)])
    return tokenizer


def nemo():
    tokenizer = byte_level(after(split(NEMO), pre_tokenizers.ByteLevel(**BYTES)), ignore_merges=True,
                           specials=["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="$A $B", special_tokens=[("<s>", 1)])
    return tokenizer


def pieces(normalizer, pre, decoder, size=1600, normalized=False, **more):
    """SentencePiece-style: <unk>, <s>, </s>, 256 byte tokens, then characters and merges."""
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    settings = dict(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    settings.update(more)
    trained = Tokenizer(models.BPE(**settings))
    if normalizer:
        trained.normalizer = normalizer
    # Training wants words; the published files then have no pre-tokenizer, or one that does not split.
    trained.pre_tokenizer = pre or pre_tokenizers.Metaspace(split=True)
    trained.train_from_iterator(training_text(), bpe_trainer(size, special_tokens=specials, limit_alphabet=400))
    data = json.loads(trained.to_str())
    data["added_tokens"] = []
    data["pre_tokenizer"] = json.loads(pre.__getstate__()) if pre else None
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken(s, normalized=normalized, special=True) for s in specials[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    return tokenizer


def piece_decoder(strip=True):
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if strip else []))


def prepend():
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def llama2():
    return pieces(prepend(), None, piece_decoder())


def llama2_normalized():
    """Older files mark the special tokens as normalized: they are then found behind the prepended mark only."""
    return pieces(prepend(), None, piece_decoder(), normalized=True)


def mistral_first():
    return pieces(None, pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False),
                  piece_decoder())


def metaspace_always():
    return pieces(None, pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True),
                  decoders.Metaspace(replacement="▁", prepend_scheme="always"))


def metaspace_never():
    return pieces(None, pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=True),
                  decoders.Metaspace(replacement="▁", prepend_scheme="never"), byte_fallback=False, fuse_unk=False)


def fused_unknown():
    return pieces(None, pre_tokenizers.Metaspace(split=True), piece_decoder(False), byte_fallback=False)


def some_fallback():
    """Half of the byte tokens are missing, so both byte_fallback and the unknown token happen in one word."""
    data = json.loads(pieces(prepend(), None, piece_decoder()).to_str())
    kept = {t: i for t, i in data["model"]["vocab"].items() if not (t.startswith("<0x") and int(t[3:5], 16) % 3 == 0)}
    data["model"]["vocab"] = {t: k for k, t in enumerate(kept)}
    data["post_processor"] = None
    data["added_tokens"] = [t | {"id": data["model"]["vocab"][t["content"]]} for t in data["added_tokens"]]
    return Tokenizer.from_str(json.dumps(data))


def joined():
    """No decoder: tokens joined by blanks. No unknown token: characters without a token vanish."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = after(split(r"\s+", "removed"), pre_tokenizers.Digits(False))
    tokenizer.train_from_iterator(training_text(), bpe_trainer(900, limit_alphabet=120))
    return tokenizer


def options():
    """Added tokens with every option, normalized and not."""
    tokenizer = qwen()
    for name, option in (("L", dict(lstrip=True)), ("R", dict(rstrip=True)), ("B", dict(lstrip=True, rstrip=True)),
                         ("W", dict(single_word=True)), ("WLR", dict(single_word=True, lstrip=True, rstrip=True))):
        tokenizer.add_special_tokens([AddedToken(f"<{name}>", normalized=False, **option)])
        tokenizer.add_tokens([AddedToken(f"[{name}é]", normalized=True, **option)])
    tokenizer.add_tokens(["word", "words", "rd", "  ", "é", "日本"])
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("quick", single_word=True)])
    tokenizer.add_tokens([AddedToken("\t\t", lstrip=True, rstrip=True, normalized=False)])
    return tokenizer


def odd_splits():
    return byte_level(after(pre_tokenizers.Split("ab", "merged_with_next"), split(r"[,;.]+", "merged_with_previous"),
                            split(r"\s", "contiguous"), split(r"\p{Lu}\p{Ll}*", "merged_with_next"),
                            split(r"\d+|\w+", "merged_with_previous", True), split("x*", "isolated"),
                            split(r"(?<=q)u|^-|-$", "isolated"), pre_tokenizers.Split("e", "isolated", invert=True),
                            pre_tokenizers.ByteLevel(True)))


def removed_splits():
    return byte_level(after(split(r"[^a-z]+|zz", "removed"), split(r"[aeiou]+", "removed", invert=True),
                            pre_tokenizers.ByteLevel(**BYTES)))


STYLES = dict(smollm=smollm, gpt2=gpt2, llama3=llama3, qwen=qwen, qwen3=functools.partial(qwen, QWEN2),
              deepseek=deepseek, nemo=nemo, llama2=llama2, llama2_normalized=llama2_normalized,
              mistral_first=mistral_first, metaspace_always=metaspace_always, metaspace_never=metaspace_never,
              fused_unknown=fused_unknown, some_fallback=some_fallback, joined=joined, options=options,
              odd_splits=odd_splits, removed_splits=removed_splits)
del STYLES["qwen3"]  # its tokenizer.json is Qwen2's


@functools.cache
def made(style):
    if style == "smollm2":
        return Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    return STYLES[style]()


def all_styles():
    missing = pytest.mark.skipif(not (MODEL / "tokenizer.json").exists(), reason="scripts/fetch-model has not run")
    return [*STYLES, pytest.param("smollm2", marks=missing)]


# ---------------------------------------------------------------------------------------------- texts
def everything():
    return [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]


@functools.cache
def newer_classes(program, folder):
    """Characters that are unassigned to PCRE2: what is left of all characters when a Split removes \\p{Cn}."""
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))},
                                     merges=[]))
    tokenizer.pre_tokenizer = after(split(r"\p{Cn}", "removed"), pre_tokenizers.ByteLevel(**BYTES))
    tokenizer.decoder = decoders.ByteLevel()
    path = Path(folder) / "known.json"
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    tool = Tool(program, path)
    text = "".join(everything())
    ours = set(tool.decode(tool.encode(text)))
    tool.close()
    theirs = set(tokenizer.decode(tokenizer.encode(text).ids))
    return frozenset(theirs - ours), frozenset(ours - theirs), frozenset(set(text) - ours)


@functools.cache
def newer_marks():
    """Combining marks whose class the package's NFC does not know: they stay behind U+0345, the highest class but
    one, where a known lower class would move before it."""
    nfc = normalizers.NFC()
    return frozenset(c for c in everything()
                     if unicodedata.category(c) in ("Mn", "Mc") and unicodedata.combining(c)
                     and nfc.normalize_str("a\u0345" + c) != unicodedata.normalize("NFC", "a\u0345" + c))


@pytest.fixture(scope="session")
def characters(program, tmp_path_factory):
    """All assigned characters that both sides know alike."""
    _, _, unassigned = newer_classes(program, str(tmp_path_factory.mktemp("known")))
    return [c for c in everything() if c not in unassigned and c not in newer_marks()]


def block_texts(characters):
    """Every character: in runs of its block, between letters, and behind a blank, an apostrophe and a digit."""
    for at in range(0, len(characters), 512):
        run = characters[at:at + 512]
        yield "".join(run)
        yield " ".join(run)
        yield "a".join(run)
        yield "".join(f" {c}'{c}1{c}\n" for c in run[::7])


WORDS = ("the quick brown fox it's we're HE'LL don't naïve café Straße 12345 007 3.14 x==y foo_bar() {} -> && "
         "Ελλάδα Москва 你好 世界 東京 こんにちは 한국어 हिन्दी ไทย שלום مرحبا 👍🏽 👨‍👩‍👧‍👦 🇩🇪 e\u0301 a\u0308\u0323 ſ 'ſ 'S K \u212a ﬁ "
         "\u1100\u1161\u11a8 각 \u0344 \u2126 word words quick abab q,u;. zz aaa é e\u0301 ²<W> <W>² \u200d<W> Ⓐ<W> ▁ ▁▁ <0x41> <0x0A> �").split(" ")
BLANKS = [" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n ", "\u00a0", "\u3000", "\u2028", "\u180e", "\u200b",
          "\u0085", "\v", "\f", "\x1c", ""]
SPECIALS = ("<|endoftext|> <|im_start|> <|im_end|> <|begin_of_text|> <|eot_id|> <tool_call> <think> <｜User｜> <s> </s> "
            "<unk> [INST] [/INST] <L> <R> <B> <W> <WLR> [Lé] [Ré] [Bé] [Wé] [WLRe\u0301] <|im_ <|im_start| ▁<s> ▁</s> "
            "word words rd quick 日本 \n\n").split(" ")


def mixed_texts(rng, n, characters):
    for _ in range(n):
        parts = []
        for _ in range(rng.randint(0, 24)):
            kind = rng.random()
            if kind < 0.45:
                parts.append(rng.choice(WORDS))
            elif kind < 0.7:
                parts.append(rng.choice(BLANKS) * rng.choice([1, 1, 1, 2, 7]))
            elif kind < 0.85:
                parts.append(rng.choice(SPECIALS))
            else:
                parts.append("".join(rng.choices(characters, k=rng.randint(1, 6))))
        yield "".join(parts)


def fixed_texts():
    yield from ("", " ", "  ", "\n", "a", " a", "a ", "é", "e\u0301", "\u0301", "▁", "<s>", "<s> ", " <s>", "\0", "a\0b",
                "x" * 5000, " " * 5000, "ab" * 3000, "\n" * 3000, "0123456789" * 300, "!?" * 2000, "é" * 3000,
                "日" * 2000, "👍" * 700, "a\u0301\u0323\u0308" * 500, "a" + "\u0301\u0323" * 1500, "\u1100\u1161" * 900)
    yield (" " * 999 + "\n") * 5 + " x"
    yield training_text()[0] * 50
    yield "".join(training_text()[:300])
    for path in sorted((ROOT / "runtime").glob("*.c"))[:12]:
        yield path.read_text(encoding="utf-8")


def check(tool, tokenizer, text, special=False):
    theirs = tokenizer.encode(text, add_special_tokens=special).ids
    ours = tool.encode(text, special)
    if ours != theirs:
        at = next(k for k in range(len(ours) + 1) if ours[k:k + 1] != theirs[k:k + 1])
        raise AssertionError(f"{text[:200]!r}...: ids differ at {at}: {ours[max(0, at - 3):at + 6]} is not "
                             f"{theirs[max(0, at - 3):at + 6]}; behind "
                             f"{tokenizer.decode(theirs[:at], skip_special_tokens=False)[-60:]!r}")
    check_decode(tool, tokenizer, ours)


def check_decode(tool, tokenizer, ids):
    for skip in (False, True):
        theirs = tokenizer.decode(ids, skip_special_tokens=skip)
        assert tool.decode(ids, skip) == theirs
        assert tool.decode(ids, skip, b"s") == theirs


# ---------------------------------------------------------------------------------------------- tests
@pytest.mark.sampled
@pytest.mark.parametrize("style", all_styles())
def test_blocks(style, opened, characters):
    tool, tokenizer = opened(made(style)), made(style)
    for text in block_texts(characters):
        check(tool, tokenizer, text)


@pytest.mark.parametrize("style", all_styles())
def test_fixed(style, opened):
    tool, tokenizer = opened(made(style)), made(style)
    for text in fixed_texts():
        check(tool, tokenizer, text)
        check(tool, tokenizer, text, True)


@pytest.mark.sampled
@pytest.mark.parametrize("style", all_styles())
def test_mixed(style, opened, characters):
    tool, tokenizer = opened(made(style)), made(style)
    rng = random.Random(style)
    for n, text in enumerate(mixed_texts(rng, 1500, characters)):
        check(tool, tokenizer, text, n % 2 == 1)


@pytest.mark.sampled
@pytest.mark.parametrize("style", all_styles())
def test_long_mixed(style, opened, characters):
    """Long enough for the table of words, with normalized stretches between added tokens."""
    tool, tokenizer = opened(made(style)), made(style)
    rng = random.Random(style)
    for _ in range(12):
        check(tool, tokenizer, " ".join(mixed_texts(rng, 150, characters)))


@pytest.mark.sampled
@pytest.mark.parametrize("style", all_styles())
def test_random_ids(style, opened):
    """Ids that no text gives: halves of characters, byte tokens in any order, specials in between."""
    tool, tokenizer = opened(made(style)), made(style)
    rng = random.Random(style)
    ids = [i for i in range(tokenizer.get_vocab_size()) if tokenizer.id_to_token(i) is not None]
    short = [i for i in ids if len(tokenizer.id_to_token(i)) <= 2 or tokenizer.id_to_token(i).startswith("<0x")]
    for _ in range(1200):
        check_decode(tool, tokenizer, rng.choices(rng.choice([ids, short]), k=rng.randint(0, 12)))


@pytest.mark.sampled
@pytest.mark.parametrize("style", all_styles())
def test_random_utf8(style, opened, characters):
    """Random bytes that happen to be UTF-8, without the characters that the two sides know differently."""
    tool, tokenizer = opened(made(style)), made(style)
    rng = random.Random(style)
    known = set(characters)
    for _ in range(700):
        data = bytes(rng.choices([rng.randrange(128), rng.randrange(0xC2, 0xF5), *range(0x80, 0xC0)], k=40))
        text = "".join(c for c in data.decode("utf-8", "ignore") if c in known)
        check(tool, tokenizer, text)


@pytest.mark.parametrize("style", all_styles())
def test_no_difference_of_others_is_hidden(style, opened):
    """The harness itself: a wrong id, a lost token and another text are seen."""
    tool, tokenizer = opened(made(style)), made(style)
    class Wrong:
        def __init__(self, change):
            self.change = change
        def encode(self, text, special=False):
            return self.change(tool.encode(text, special))
        def decode(self, ids, skip=False, op=b"d"):
            return tool.decode(ids, skip, op) + ("" if op == b"d" else "x")
    text = "the quick brown fox"
    for change in (lambda ids: [ids[0] + 1, *ids[1:]], lambda ids: ids[:-1], lambda ids: ids):
        with pytest.raises(AssertionError):
            check(Wrong(change), tokenizer, text)


# What other published files split by, and corners of the dialect: Oniguruma reads them in the package, PCRE2 here.
PATTERNS = [
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "[一-龥\u0800-\u4e00]+", r"\p{N}{1,3}", r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"\w+|[^\w\s]+", r"[\w.]+", r"\W",
    r"\d+|\D", r"[\d\S]", r"[^\S\n]+", r"^\S|\S$", r"(?<=\n)\S", r"(?<!a)b|a(?=b)", r"\v|\f|\t|\x41|\x{65e5}|\u00e9", r"x*",
    r"\p{Han}+|\p{Hiragana}+|\P{Latin}", r"\p{^L}", r"(?i)k|ſ", r"(?>a|ab)c|.", r"(a)(b)?", r"[\-\]a]", r"a{2}|a{1,}b",
    r"(?i:\p{Lu})", r"\p{Sc}|\p{Zs}|\p{Cf}|\p{Cc}|\p{Co}",
]


def is_ideograph(c):
    return 0x3400 <= c < 0xA000 or 0xAC00 <= c < 0xD7A4 or 0x12000 <= c < 0x18D00 or c >= 0x20000


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(pattern, opened, characters):
    """Boundaries are seen by the blank that ByteLevel puts before every piece."""
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = after(split(pattern), pre_tokenizers.ByteLevel(True, use_regex=False))
    tokenizer.decoder = decoders.ByteLevel()
    tool = opened(tokenizer)
    few = [c for n, c in enumerate(characters) if n % 61 == 0 or not is_ideograph(ord(c))]
    texts = [*block_texts(few), *mixed_texts(random.Random(pattern), 200, few), "aab\nab\n\nabc\n", "kKK ſsS"]
    for text in texts:
        theirs = tokenizer.encode(text).ids
        if tool.encode(text) != theirs:
            ours = tool.decode(tool.encode(text))
            theirs = tokenizer.decode(theirs)
            at = next(k for k in range(len(ours) + 1) if ours[k:k + 1] != theirs[k:k + 1])
            raise AssertionError(f"{ours[max(0, at - 9):at + 9]!r} is not {theirs[max(0, at - 9):at + 9]!r}")


def test_tables(program, tmp_path_factory):
    """How far apart the two sides' Unicode tables are, so that the excluded characters stay few."""
    newer, older, _ = newer_classes(program, str(tmp_path_factory.mktemp("known")))
    assert not older, "PCRE2 knows characters that the package does not: the exclusions must be turned around"
    assert len(newer) < 20000
    assert len(newer_marks()) < 200
    assert not any(ord(c) < 0x7F0 for c in newer | newer_marks()), "no common script is touched"


@pytest.mark.parametrize("style", ["llama3", "qwen", "smollm", "llama2"])
def test_newer_characters(style, opened, program, tmp_path_factory):
    newer, _, _ = newer_classes(program, str(tmp_path_factory.mktemp("known")))
    tool = opened(made(style))
    for c in sorted(newer)[::97]:
        text = f"a{c}b {c}{c} 1{c}"
        assert tool.decode(tool.encode(text)) == text
    for c in sorted(newer_marks()):
        text = f"a\u0345{c} x"
        want = unicodedata.normalize("NFC", text) if style == "qwen" else text
        assert tool.decode(tool.encode(text)) == want


def test_every_pair_of_bytes_is_refused_or_equal(opened):
    """Input that is no UTF-8 is refused with the offset of its first wrong byte."""
    tool = opened(made("smollm"))
    for a in range(256):
        for b in range(0, 256, 5):
            data = b"ok " + bytes([a, b])
            try:
                data.decode()
            except UnicodeDecodeError as e:
                with pytest.raises(ValueError, match=f"byte {e.start} is 0x{data[e.start]:02x}"):
                    tool.encode(data)
            else:
                assert tool.decode(tool.encode(data)) == data.decode()


@pytest.mark.sampled
@pytest.mark.parametrize("style", ["smollm", "llama3", "qwen", "nemo", "llama2", "mistral_first"])
@pytest.mark.parametrize("unit", ["a", " ", "!", "1", "\n", "ab", "é", "\u0301", "\u0301\u0323", "日", "<", "<|im_"])
def test_eight_megabytes(style, unit, opened):
    """One word of 8 MiB, or as near as the pattern allows: quadratic work would take hours."""
    tool = opened(made(style))
    text = (unit * (8 << 20))[:(8 << 20) // len(unit.encode())]
    [us] = tool.encode("x" + text + "y", op=b"t")
    assert us < 60e6


def test_speed(opened):
    """At least 5 MB/s on English with byte-level BPE; usually far more."""
    tool = opened(made("smollm2" if (MODEL / "tokenizer.json").exists() else "llama3"))
    text = " ".join(training_text()[:1200]) * 20
    speed = max(len(text.encode()) / tool.encode(text, op=b"t")[0] for _ in range(3))
    print(f"{speed:.1f} MB/s")
    assert speed > 5


def field(data, path, value):
    """A copy of the JSON object with data[path[0]][path[1]]... = value."""
    data = json.loads(json.dumps(data))
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return json.dumps(data)


REFUSED = [
    (["model", "type"], "Unigram"), (["model", "dropout"], 0.1), (["model", "continuing_subword_prefix"], "##"),
    (["model", "end_of_word_suffix"], "</w>"), (["truncation"], {"max_length": 5}), (["padding"], {}),
    (["version"], "2.0"), (["normalizer"], {"type": "Lowercase"}), (["normalizer"], {"type": "NFKC"}),
    (["pre_tokenizer"], {"type": "Whitespace"}), (["pre_tokenizer"], {"type": "BertPreTokenizer"}),
    (["decoder"], {"type": "WordPiece", "prefix": "##", "cleanup": True}), (["decoder"], {"type": "CTC"}),
    (["post_processor"], {"type": "BertProcessing", "sep": ["a", 0], "cls": ["a", 0]}),
    (["pre_tokenizer"], {"type": "Split", "pattern": {"Regex": r"(a)\1"}, "behavior": "Isolated", "invert": False}),
    (["pre_tokenizer"], {"type": "Split", "pattern": {"Regex": r"\bx"}, "behavior": "Isolated", "invert": False}),
    (["pre_tokenizer"], {"type": "Split", "pattern": {"Regex": r"a{2}+"}, "behavior": "Isolated", "invert": False}),
    (["pre_tokenizer"], {"type": "Split", "pattern": {"Regex": r"[a&&[b]]"}, "behavior": "Isolated", "invert": False}),
    (["decoder"], {"type": "Strip", "content": " ", "start": 0, "stop": 1}),
    (["decoder"], {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]}),
]


@pytest.mark.parametrize("path,value", REFUSED, ids=lambda v: v[-1] if isinstance(v, list) else str(v)[:40])
def test_refused_by_name(path, value, opened):
    data = json.loads(made("smollm").to_str())
    tool = opened(field(data, path, value))
    error = tool.process.stderr.read().decode()
    assert path[-1] in error or (isinstance(value, dict) and value.get("type", "-") in error), error
    assert error.count("\n") == 1 and tool.process.wait() == 2


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q", *sys.argv[1:]]))
