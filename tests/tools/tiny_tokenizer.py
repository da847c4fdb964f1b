"""Small working tokenizer.json and tokenizer_config.json files in the forms that the model families publish.

Trained by the `tokenizers` package on text made up here, so nothing is copied from a published vocabulary;
the frame around the vocabulary (normalizer, pre-tokenizer, post-processor, decoder, added tokens, flags) is
what the families' files hold. Chat templates are our own short Jinja texts that render the families' formats.

Forms: smollm (Digits + ByteLevel), llama3 (regex Split, digits in threes, ignore_merges, bos from a template
post-processor), qwen (NFC, regex Split, digits one by one; some added tokens are not special), llama2
(SentencePiece-style, normalizer Prepend + Replace, byte fallback), mistral (the same with Metaspace instead).

Every id below `size` has a token: what training does not fill are reserved special tokens, as in Llama 3.
"""

import collections
import functools
import json
import random
import re

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

# (?i:...) for contractions, one optional non-letter before a word, up to three digits, punctuation with line
# ends.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BOS_DEEPSEEK, EOS_DEEPSEEK = (
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
USER_DEEPSEEK, ASSISTANT_DEEPSEEK = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"
HUGE_LENGTH = 1000000000000000019884624838656  # what published files say for "no limit"; larger than 64 bits


# ---------------------------------------------------------------------------------------------- training text


@functools.lru_cache(maxsize=1)
def training_text():
    """About 120 kB: made-up words with Zipf's frequencies in sentences, numbers, code, a little of other
    scripts."""
    rng = random.Random(20)
    onsets = "b br c ch cl d dr f fl g gr h j k l m n p pl pr qu r s sh sl st t th tr v w wh y z".split()
    vowels = "a e i o u ai ea ee ie oo ou".split()
    codas = ["", "", "n", "r", "s", "t", "l", "d", "nd", "ng", "st", "ck", "ly", "er", "ing", "ed", "tion"]
    common = (
        "the of and to in a is that it was for on are with as be at by this have from or an but not".split()
    )
    words = common + [
        "".join(rng.choice(onsets) + rng.choice(vowels) + rng.choice(codas) for _ in range(rng.randint(1, 3)))
        for _ in range(3000)
    ]
    weights = [1.0 / (rank + 3) for rank in range(len(words))]
    foreign = "naïve café über straße Ελλάδα Москва привет 你好 世界 東京 שלום مرحبا 한국어 हिन्दी".split()
    foreign += "😀 👍🏽 — “ ” …".split()
    out = []
    for _ in range(1500):
        line = rng.choices(words, weights, k=rng.randint(4, 14))
        line[0] = line[0].capitalize()
        kind = rng.random()
        if kind < 0.2:
            line.insert(rng.randrange(len(line)), str(rng.randrange(10 ** rng.randint(1, 7))))
        elif kind < 0.3:
            line.insert(rng.randrange(len(line)), rng.choice(foreign))
        elif kind < 0.35:
            line.append("it's don't we'll they've I'm")
        out.append(" ".join(line) + rng.choice([".", ".", "?", "!", ";\n", ":\n\n", ".  "]))
        if kind > 0.9:
            name = rng.choice(words)
            out.append(
                f"def {name}(x, y):\n    if x != y:\n        return {name}[x] * 2  # {line[1]}\n"
                "\treturn 0\n\n"
            )
    return " ".join(out)


def byte_alphabet():
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def train(words, size, alphabet):
    """(tokens, merges) learned on a list of ready-made chunks, most frequent first; at most size tokens."""
    tok = tokenizers.Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )
    tok.train_from_iterator(words, trainer)
    model = json.loads(tok.to_str())["model"]
    return list(model["vocab"]), [
        tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]
    ]


# ---------------------------------------------------------------------------------------------- frames


def added(i, content, special=True, **flags):
    token = {
        "id": i,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }
    token.update(flags)
    return token


def bpe_model(vocab, merges, as_pairs, **flags):
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
    }
    model.update(flags)
    model["vocab"] = vocab
    # files written by older and newer versions of the package differ in this one point
    model["merges"] = [list(m) for m in merges] if as_pairs else [" ".join(m) for m in merges]
    return model


def byte_level(prefix=False, trim=True, regex=True):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim, "use_regex": regex}


def split_then_bytes(digits, trim):
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": SPLIT % digits}, "behavior": "Isolated", "invert": False},
            byte_level(trim=trim, regex=False),
        ],
    }


def bos_template(bos, i):
    part = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [{"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "type": "TemplateProcessing",
        "single": part,
        "pair": part + pair,
        "special_tokens": {bos: {"id": bos, "ids": [i], "tokens": [bos]}},
    }


def frame(added_tokens, normalizer, pre_tokenizer, post_processor, decoder, model):
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": model,
    }


def byte_bpe(pre_tokenizer, size):
    """Vocabulary of at most `size` tokens and merges, trained through the given pre-tokenizer."""
    probe = tokenizers.Tokenizer.from_str(
        json.dumps(frame([], None, pre_tokenizer, None, None, bpe_model({}, [], False)))
    )
    pieces = [piece for piece, _ in probe.pre_tokenizer.pre_tokenize_str(training_text())]
    return train(pieces, size, byte_alphabet())


def reserve(first, count):
    return [f"<|reserved_special_token_{n}|>" for n in range(first, first + count)]


def least_size(form):
    return {"smollm": 280, "llama3": 280, "qwen": 280, "llama2": 320, "mistral": 330}[form]


# ---------------------------------------------------------------------------------------------- one form each


def make_smollm(size, deepseek):
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"]
    pre = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level()]}
    base, merges = byte_bpe(pre, size - len(special))
    special += reserve(0, size - len(special) - len(base))
    vocab = {text: i for i, text in enumerate(special + base)}
    names = {
        "bos": "<|im_start|>",
        "eos": "<|im_end|>",
        "pad": "<|im_end|>",
        "unk": "<|endoftext|>",
        "end": None,
    }
    return (
        frame(
            [added(i, text) for i, text in enumerate(special)],
            None,
            pre,
            None,
            byte_level(),
            bpe_model(vocab, merges, False, ignore_merges=False),
        ),
        names,
    )


def make_llama3(size, deepseek):
    if deepseek:
        special = [BOS_DEEPSEEK, EOS_DEEPSEEK, USER_DEEPSEEK, ASSISTANT_DEEPSEEK, "<think>", "</think>"]
        names = {"bos": BOS_DEEPSEEK, "eos": EOS_DEEPSEEK, "pad": EOS_DEEPSEEK, "unk": None, "end": None}
    else:
        special = [
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eom_id|>",
            "<|eot_id|>",
        ]
        names = {
            "bos": "<|begin_of_text|>",
            "eos": "<|eot_id|>",
            "pad": None,
            "unk": None,
            "end": "<|end_of_text|>",
        }
    pre = split_then_bytes("{1,3}", True)
    base, merges = byte_bpe(pre, size - len(special))
    special += reserve(0, size - len(special) - len(base))
    tokens = [
        added(len(base) + n, text, text not in ("<think>", "</think>")) for n, text in enumerate(special)
    ]
    post = {
        "type": "Sequence",
        "processors": [byte_level(True, False, True), bos_template(special[0], len(base))],
    }
    model = bpe_model({text: i for i, text in enumerate(base)}, merges, False, ignore_merges=True)
    return frame(tokens, None, pre, post, byte_level(True, True, True), model), names


def make_qwen(size, deepseek):
    special = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<tool_call>",
        "</tool_call>",
        "<think>",
        "</think>",
    ]
    names = {"bos": None, "eos": "<|im_end|>", "pad": "<|endoftext|>", "unk": None, "end": "<|endoftext|>"}
    if deepseek:
        special = [EOS_DEEPSEEK, USER_DEEPSEEK, ASSISTANT_DEEPSEEK, BOS_DEEPSEEK, "<think>", "</think>"]
        names = {"bos": BOS_DEEPSEEK, "eos": EOS_DEEPSEEK, "pad": EOS_DEEPSEEK, "unk": None, "end": None}
    pre = split_then_bytes("", False)
    base, merges = byte_bpe(pre, size - len(special))
    special += reserve(0, size - len(special) - len(base))
    plain = ("<tool_call>", "</tool_call>", "<think>", "</think>")
    tokens = [added(len(base) + n, text, text not in plain) for n, text in enumerate(special)]
    post = byte_level(False, False, False)
    if deepseek:
        post = {"type": "Sequence", "processors": [post, bos_template(BOS_DEEPSEEK, len(base) + 3)]}
    model = bpe_model(
        {text: i for i, text in enumerate(base)},
        merges,
        True,
        continuing_subword_prefix="",
        end_of_word_suffix="",
        ignore_merges=False,
    )
    return frame(tokens, {"type": "NFC"}, pre, post, byte_level(False, False, False), model), names


def sentencepiece(size, control):
    """Vocabulary in SentencePiece's order (control, bytes, merged pieces, characters) and the merges."""
    fixed = control + [f"<0x{b:02X}>" for b in range(256)]
    room = size - len(fixed)
    # Merges stay within a word and its leading blank, within a run of blanks, and never take two digits
    # together.
    text = (
        training_text().replace("\n", " ") + " " + "".join(f" word{' ' * n}x" for n in (2, 4, 8, 16)) * 40
    )
    chunks = [c.replace(" ", "\u2581") for c in re.findall(r" (?=\S)[^\s\d]*|\d| +|[^\s\d]+", text)]
    # The characters beyond the most frequent ones fall back to bytes, as rare ones do in real files. Chosen
    # here because the trainer's own limit breaks ties differently from run to run.
    counts = collections.Counter("".join(chunks))
    alphabet = sorted(sorted(counts, key=lambda c: (-counts[c], c))[: min(90, room * 2 // 3)])
    outside = "[^" + re.escape("".join(alphabet)) + "]"
    chunks = [part for chunk in chunks for part in re.split(outside, chunk) if part]
    vocab, merges = train(chunks, room, alphabet)
    merged = list(dict.fromkeys(a + b for a, b in merges))
    singles = sorted(set(vocab) - set(merged))
    pieces = fixed + merged + singles
    pieces += reserve(0, size - len(pieces))
    return pieces, merges


def make_spm(size, control, metaspace, as_pairs):
    pieces, merges = sentencepiece(size, control)
    tokens = [
        added(i, text)
        for i, text in enumerate(pieces)
        if i < len(control) or text.startswith("<|reserved_special_token_")
    ]
    blank = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, blank]}
    pre = None
    if metaspace:
        normalizer, pre = None, {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": "first",
            "split": False,
        }
    decoder = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    model = bpe_model(
        {text: i for i, text in enumerate(pieces)},
        merges,
        as_pairs,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    names = {"bos": "<s>", "eos": "</s>", "pad": None, "unk": "<unk>", "end": None}
    return frame(tokens, normalizer, pre, bos_template("<s>", 1), decoder, model), names


def make_llama2(size, deepseek):
    return make_spm(size, ["<unk>", "<s>", "</s>"], metaspace=False, as_pairs=False)


def make_mistral(size, deepseek):
    control = [
        "<unk>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[TOOL_CALLS]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
    ]
    return make_spm(size, control, metaspace=True, as_pairs=True)


FORMS = {
    "smollm": make_smollm,
    "llama3": make_llama3,
    "qwen": make_qwen,
    "llama2": make_llama2,
    "mistral": make_mistral,
}


@functools.lru_cache(maxsize=32)
def build(form, size, deepseek=False):
    """(text of tokenizer.json, {"bos": token or None, "eos", "pad", "unk", "end": a second end-of-text
    token})."""
    if size < least_size(form):
        raise ValueError(
            f"vocab {size} is too small for a {form} tokenizer: at least {least_size(form)}, or none"
        )
    if deepseek and form not in ("llama3", "qwen"):
        raise ValueError(
            f"the deepseek-r1 chat format goes with the llama3 and qwen tokenizers, not with {form}"
        )
    value, names = FORMS[form](size, deepseek)
    return json.dumps(value, ensure_ascii=False, indent=1), names


# ---------------------------------------------------------------------------------------------- chat formats


def chatml(default_system):
    head = ""
    if default_system:
        head = (
            "{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\\n"
            + default_system
            + "<|im_end|>\\n' }}{% endif %}"
        )
    return (
        "{% for message in messages %}"
        + head
        + "{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
        " + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


LLAMA3_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role']"
    " + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

LLAMA2_CHAT = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set lead = '<<SYS>>\\n' +"
    " messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{% else %}"
    "{% set rest = messages %}{% set lead = '' %}{% endif %}"
    "{% for message in rest %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + "
    "((lead if loop.first else '') + message['content']) | trim + ' [/INST]' }}{% else %}"
    "{{ ' ' + message['content'] | trim + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)

MISTRAL_CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}"
    "{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)

DEEPSEEK_CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '"
    + USER_DEEPSEEK
    + "' + message['content'] }}{% else %}{{ '"
    + ASSISTANT_DEEPSEEK
    + "' + message['content'].split('</think>')[-1] + '"
    + EOS_DEEPSEEK
    + "' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '" + ASSISTANT_DEEPSEEK + "<think>\\n' }}{% endif %}"
)

CHATS = {
    "chatml": chatml("You are a helpful assistant."),
    "chatml-plain": chatml(None),
    "llama2": LLAMA2_CHAT,
    "llama3": LLAMA3_CHAT,
    "mistral": MISTRAL_CHAT,
    "deepseek-r1": DEEPSEEK_CHAT,
}


def make_config(form, text, names, chat, context):
    """tokenizer_config.json for the text of a tokenizer.json."""
    tokens = {
        str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in json.loads(text)["added_tokens"]
    }
    deepseek = chat == "deepseek-r1"
    config = {
        "added_tokens_decoder": tokens,
        "chat_template": CHATS[chat],
        "clean_up_tokenization_spaces": False,
        "bos_token": names["bos"],
        "eos_token": names["eos"],
        "pad_token": names["pad"],
        "unk_token": names["unk"],
        "model_max_length": context,
    }
    if form in ("llama2", "mistral"):
        config.update(
            add_bos_token=True,
            add_eos_token=False,
            legacy=form == "llama2",
            sp_model_kwargs={},
            use_default_system_prompt=False,
            model_max_length=HUGE_LENGTH,
            tokenizer_class="LlamaTokenizer",
        )
    elif form == "llama3":
        config.update(
            tokenizer_class="LlamaTokenizerFast" if deepseek else "PreTrainedTokenizerFast",
            model_input_names=["input_ids", "attention_mask"],
        )
    elif form == "qwen":
        config.update(
            add_bos_token=deepseek,
            add_prefix_space=False,
            errors="replace",
            split_special_tokens=False,
            tokenizer_class="LlamaTokenizerFast" if deepseek else "Qwen2Tokenizer",
        )
    else:
        config.update(add_prefix_space=False, tokenizer_class="GPT2Tokenizer")
    if form == "llama2":
        # older files hold whole token objects where newer ones hold strings
        for key in ("bos_token", "eos_token", "unk_token"):
            config[key] = {
                "__type": "AddedToken",
                "content": config[key],
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
            }
    return config
