"""generate, info, tokenize, recordings and every refusal, as a user meets them."""

import json
import os
import re
import shutil
import signal
import subprocess

import pytest

import cli
from tools import tiny_model


def generate(model, *words, **options):
    return cli.run("generate", "--model", model, *words, **options)


def test_generates_text_and_a_summary(real_model):
    done = generate(real_model, "--prompt", "The capital of France is", "--max-tokens", "8")
    assert done.returncode == 0
    assert "Paris" in done.stdout.decode()
    summary = done.stderr.decode().strip().splitlines()[-1]
    for word in ("8 tokens", "tokens/s", "first token", "exposure"):
        assert word in summary


def test_prompt_sources_are_one(real_model, tmp_path):
    text = "Once upon a time"
    (tmp_path / "p").write_text(text)
    first = generate(real_model, "--prompt", text, "--max-tokens", "6").stdout
    assert generate(real_model, "--prompt-file", tmp_path / "p", "--max-tokens", "6").stdout == first
    assert generate(real_model, "--max-tokens", "6", stdin=text).stdout == first
    assert generate(real_model, "--prompt", "-", "--max-tokens", "6", stdin=text).stdout == first


def test_chat_and_two_ranks(real_model):
    words = ("--chat", "--prompt", "Say hello.", "--max-tokens", "12", "--kv-dtype", "f32", "--threads", "1")
    one, two = generate(real_model, *words), generate(real_model, *words, ranks=2)
    assert one.returncode == two.returncode == 0
    assert one.stdout == two.stdout and "ello" in one.stdout.decode()


def test_seeds(real_model):
    words = ("--prompt", "My favourite colour", "--max-tokens", "16", "--temperature", "1", "--top-p", "0.95")
    a, b, c = (generate(real_model, *words, "--seed", s).stdout for s in ("7", "7", "8"))
    assert a == b != c


def test_stop_ends_before_the_text(real_model):
    words = ("--prompt", "1, 2, 3, 4, 5,", "--max-tokens", "40")
    whole = generate(real_model, *words).stdout.decode()
    assert " 9" in whole
    cut = generate(real_model, *words, "--stop", " 9", "--stop", "zzz")
    assert cut.stdout.decode() == whole[: whole.index(" 9")]
    assert "finished: stop" in cut.stderr.decode()


def test_record_and_replay(real_model, tmp_path):
    words = ("--prompt", "Water is", "--max-tokens", "12", "--window", "4", "--temperature", "0.7")
    file = tmp_path / "steps"
    assert generate(real_model, *words, "--record", file).returncode == 0
    again = generate(real_model, "--replay", file, "--window", "4")
    assert again.returncode == 0 and b"every result has the same bits" in again.stdout
    other = generate(real_model, "--replay", file, "--window", "4", "--kv-dtype", "f32")
    assert other.returncode == 0 and b"differ" in other.stdout
    file.write_bytes(file.read_bytes()[:-5])
    cli.one_line(generate(real_model, "--replay", file, "--window", "4"), 2, "--replay", "cut off")


def test_replay_refuses_what_it_would_ignore(tiny, tmp_path):
    model, file, config = tiny(family="llama3"), tmp_path / "steps", tmp_path / "conf"
    assert generate(model, "--prompt", "a", "--max-tokens", "4", "--record", file).returncode == 0
    for words in (["--chat"], ["--chat", "--system", "x"], ["--max-tokens", 4], ["--max-context", 64], ["--stop", "x"],
                  ["--ignore-eos"], ["--temperature", 1], ["--top-k", 1], ["--top-p", 0.5], ["--min-p", 0.5],
                  ["--repetition-penalty", 2], ["--seed", 1]):
        cli.one_line(generate(model, "--replay", file, *words), 2, f"{words[0]} and --replay")
    config.write_text("max-tokens = 9\ntemperature = 1\nstop = x\n")  # of all runs
    assert generate(model, "--replay", file, "--config", config).returncode == 0


def test_info(real_model):
    done = cli.run_ok("info", "--model", real_model, "--tp", 2, "--json")
    info = json.loads(done.stdout)
    assert (info["family"], info["layers"], info["heads"], info["kv_heads"]) == ("llama", 30, 9, 3)
    assert info["parameters"] == 134515008 and info["chat"] == "chatml"
    assert [s["kv_heads"] for s in info["shards"]] == [[0, 2], [2, 1]]
    assert b"9 query heads" in cli.run_ok("info", "--model", real_model).stdout


def test_tokenize_there_and_back(real_model):
    from tokenizers import Tokenizer

    text = "Grüße, 世界!  x = 42\n\t<|im_start|>user\n"
    ids = cli.run_ok("tokenize", "--model", real_model, stdin=text).stdout
    assert list(map(int, ids.split())) == Tokenizer.from_file(str(real_model / "tokenizer.json")).encode(text).ids
    assert cli.run_ok("tokenize", "--model", real_model, "--decode", "--keep-special", stdin=ids).stdout.decode() == text


def test_tokenize_takes_everything_or_refuses(tiny):
    words = ("tokenize", "--model", tiny(family="llama3"))
    cli.one_line(cli.run(*words, "--decode", stdin=b"1 2 \0 3"), 2, "entry 3")
    cli.one_line(cli.run(*words, "--decode", stdin=b"1 2\0"), 2, "entry 3")
    cli.one_line(cli.run(*words, "--decode", "--no-special", stdin="1"), 2, "--no-special.*--decode")
    cli.one_line(cli.run(*words, "--keep-special", stdin="a"), 2, "--keep-special: needs --decode")


def test_help_names_every_option():
    text = cli.run_ok("generate", "--help").stdout.decode()
    for name in ("--policy", "--kv-budget", "--repetition-penalty", "--stop", "--page-size"):
        assert name in text
    assert "--dump-logits" not in text and "--dump-logits" in cli.run_ok("eval", "--help").stdout.decode()


def test_help_of_a_first_word_names_its_second_ones():
    for words in (["bench", "--help"], ["bench", "-h"], ["help", "bench"]):
        text = cli.run_ok(*words).stdout.decode()
        assert all(f"  bench {w} " in text for w in ("decode", "prefill", "serve")) and "generate" not in text


def test_help_of_nothing_is_refused():
    cli.one_line(cli.run("help", "genrate"), 2, "genrate: no such command")
    for words in (["bench"], ["bench", "--json"], ["help", "bench", "encode"]):
        cli.one_line(cli.run(*words), 2, "bench needs a second word: decode")
    assert cli.run_ok("help", "bench", "decode").stdout and cli.run_ok("help").stdout


def test_output_that_cannot_be_written_is_no_success(tiny):
    """Whatever a command prints into a full disk is lost: it says so and does not end with 0."""
    model = tiny(family="llama3")
    for words in (["--help"], ["help", "config"], ["--version"], ["info", "--help"], ["info", "--model", model],
                  ["plan", "--model", model], ["doctor", "--json"], ["check", "--model", model, "--steps", 1],
                  ["generate", "--model", model, "--prompt", "a", "--max-tokens", 2], ["tokenize", "--model", model]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([cli.RETRO, *map(str, words)], input=b"a", stdout=full, stderr=subprocess.PIPE)
        cli.one_line(done, 2, "standard output: could not be written")


@pytest.mark.parametrize(
    "words, pattern",
    [
        (["--prompt", "x", "--polcy", "retro"], "--polcy"),
        (["--prompt", "x", "--window", "0"], "--window 0.*1\\.\\.64"),
        (["--prompt", "x", "--window", "two"], "--window two.*number"),
        (["--prompt", "x", "--kv-budget", "1.5"], "--kv-budget"),
        (["--prompt", "x", "--page-size", "12"], "--page-size 12.*4, 8, 16 or 32"),
        (["--prompt", "x", "--block-size", "24", "--page-size", "16"], "--block-size 24"),
        (["--prompt", "x", "--policy", "sparse"], "dense\\|quest\\|retro\\|streaming"),
        (["--prompt", "x", "--prompt", "y"], "--prompt.*twice"),
        (["--prompt", "x", "--tp", "2"], "--tp 2.*mpirun -n 2"),
        (["--prompt", "x", "--dp", "2"], "--dp.*not an option of this command"),
        (["--prompt", "x", "--max-tokens"], "--max-tokens.*value"),
        (["--prompt", "x", "--dump-logits", "f"], "--dump-logits.*not an option of this command"),
        (["--prompt", "x", "--config", "/nonexistent/file"], "--config.*No such file"),
        (["--prompt", "x", "--prompt-file", "y"], "give one of them"),
        (["--prompt", ""], "empty"),
        (["stray"], "stray"),
    ],
)
def test_bad_options_are_one_line(real_model, words, pattern):
    cli.one_line(generate(real_model, *words), 2, pattern)


def test_a_failure_file_that_cannot_be_written_is_refused(tiny, tmp_path):
    words = (tiny(family="llama3"), "--prompt", "a", "--max-tokens", "1", "--failure-file")
    for ranks in (1, 2):
        done = generate(*words, tmp_path / "nowhere" / "f.json", ranks=ranks)
        cli.one_line(done, 2, "--failure-file .*f.json: No such file")
    cli.one_line(generate(*words, tmp_path), 2, "--failure-file .*: is not a regular file")
    assert generate(*words, tmp_path / "f.json").returncode == 0
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "failure.json").mkdir()
    cli.one_line(generate(*words[:-1], "--log-dir", tmp_path), 2, "--failure-file .*/failure.json: is not a regular file")


def test_bad_folders_exit_with_3(real_model, tmp_path):
    def broken(change):
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(real_model, folder)
        change(folder)
        return generate(folder, "--prompt", "x", ranks=2)

    def cut(name, n):
        return lambda f: (f / name).write_bytes((f / name).read_bytes()[:n])

    def edit(**fields):
        def change(f):
            config = json.loads((f / "config.json").read_text())
            (f / "config.json").write_text(json.dumps({**config, **fields}))

        return change

    cli.one_line(broken(cut("model.safetensors", 1000)), 3, "model.safetensors")
    cli.one_line(broken(cut("model.safetensors", 200_000_000)), 3, "model.safetensors")
    cli.one_line(broken(cut("config.json", 50)), 3, "config.json")
    cli.one_line(broken(cut("tokenizer.json", 500)), 3, "tokenizer.json")
    cli.one_line(broken(lambda f: (f / "config.json").unlink()), 3, "config.json")
    cli.one_line(broken(edit(architectures=["GPTBigCodeForCausalLM"])), 3, "GPTBigCodeForCausalLM")
    cli.one_line(broken(edit(hidden_size=577)), 3, "hidden_size|q_proj|embed_tokens|num_attention_heads")
    cli.one_line(broken(edit(num_hidden_layers=31)), 3, "layers.30")
    cli.one_line(broken(edit(hidden_act="gelu")), 3, "hidden_act")
    cli.one_line(generate(tmp_path / "nowhere", "--prompt", "x"), 3, "nowhere")


def add_tensors(folder, names):
    """Writes scalars of these names behind the others of a folder of one file."""
    raw = (folder / "model.safetensors").read_bytes()
    n = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + n]), raw[8 + n :]
    for name in names:
        header[name] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
        data += b"\0\0\0\0"
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_tensors_that_are_not_used_are_told(tiny, tmp_path):
    """Biases that config.json does not speak of were left out unnoticed. What folders often hold beside is no news."""

    def warnings(folder, ranks=1):
        for words in (["generate", "--prompt", "a", "--max-tokens", "1"], ["info"]):
            done = cli.run_ok(words[0], "--model", folder, *words[1:], ranks=ranks)
            yield [line for line in done.stderr.decode().splitlines() if "not used" in line]

    def copy(name, **options):
        shutil.copytree(tiny(**options), tmp_path / name)
        return tmp_path / name

    biased = copy("biased", family="llama3", attention_bias=True)
    assert list(warnings(biased)) == [[], []]
    config = json.loads((biased / "config.json").read_text())
    (biased / "config.json").write_text(json.dumps({**config, "attention_bias": False}))
    n = 4 * config["num_hidden_layers"]
    for ranks in (1, 2):
        for (line,) in warnings(biased, ranks):
            assert f"{n} tensors of the model folder are not used" in line
            assert re.search(r"first model\.layers\.0\.self_attn\.\w_proj\.bias", line), line
    tied = copy("tied", family="smollm")
    add_tensors(tied, ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"])
    assert list(warnings(tied)) == [[], []]
    add_tensors(tied, ["model.layers.1.self_attn.q_norm.weight"])
    for (line,) in warnings(tied):
        assert "1 tensor of the model folder is not used, first model.layers.1.self_attn.q_norm.weight" in line


def test_logits_that_are_no_numbers_are_no_text(tiny, tmp_path):
    """Weights of NaN, as a damaged file or an overflow leaves them: refused, greedy or drawn, on any rank."""
    folder = tmp_path / "model"
    shutil.copytree(tiny(family="llama3", dtype="f32"), folder)
    tiny_model.spoil(folder)
    for words in ((), ("--temperature", "1"), ("--temperature", "1", "--top-k", "5")):
        for ranks in (1, 2):
            done = generate(folder, "--prompt", "a", "--max-tokens", "4", *words, ranks=ranks)
            cli.one_line(done, 3, "the logits after 2 tokens are not finite")
            assert done.stdout == b""


@pytest.mark.skipif(os.environ.get("RETRO_REAL_GPU") == "1", reason="a GPU is here")
def test_no_gpu_here(real_model):
    """Built without CUDA, or with it on a machine without a GPU: one line either way."""
    for ranks in (1, 2):
        done = generate(real_model, "--prompt", "x", "--device", "cuda", ranks=ranks)
        cli.one_line(done, 2, "--device cuda: .*use --device cpu")


@pytest.mark.parametrize("ranks", [0, 1, 2])
def test_interrupted(tiny, ranks):
    """SIGUSR1, which mpirun hands on: run it again."""
    job = subprocess.Popen([*cli.DIES_WITH_US, *(["mpirun", "-n", str(ranks)] if ranks else []), str(cli.RETRO), "generate", "--model",
                            str(tiny(context=65536)), "--prompt", "x", "--max-tokens", "60000", "--ignore-eos"], stdout=subprocess.PIPE,
                           stderr=subprocess.DEVNULL, env={**os.environ, **cli.MPI_ENV})
    assert job.stdout.read(20)
    job.send_signal(signal.SIGUSR1)
    job.communicate(timeout=60)
    assert job.returncode == 75


def test_a_world_smaller_than_slurms_is_refused(tiny, monkeypatch):
    """srun without an MPI plugin: each task believes to be alone. What mpirun starts within a step is not that."""
    words = (tiny(family="llama3"), "--prompt", "a b", "--max-tokens", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    cli.one_line(generate(*words), 2, "Slurm started 4 tasks but each one sees a world of 1 rank", "srun --mpi=pmix")
    alone = generate(*words, ranks=2)
    assert alone.returncode == 0, alone.stderr
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert generate(*words).returncode == 0


def test_more_ranks_than_heads(tiny):
    folder = tiny(family="llama3", heads=2, kv_heads=1, hidden=32)
    cli.one_line(generate(folder, "--prompt", "x", ranks=3), 2, "3 ranks.*2 query heads")


def test_what_does_not_fit_is_refused_before_loading(tiny):
    """32 KiB of KV a token, two million tokens: 61 GiB."""
    folder = tiny(family="llama3", hidden=64, heads=8, kv_heads=8, head_dim=64, layers=8, context=2_000_000)
    done = generate(folder, "--prompt", "one two", "--max-tokens", "1900000", "--kv-dtype", "f32")
    cli.one_line(done, 4, "GiB.*--max-context")


def test_context_limit(real_model):
    done = generate(real_model, "--prompt", "x", "--max-context", "9000")
    cli.one_line(done, 2, "--max-context 9000.*8192")
    done = generate(real_model, "--prompt", "word " * 300, "--max-context", "200")
    cli.one_line(done, 2, "the prompt has .* tokens.*200")
