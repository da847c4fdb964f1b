"""The service with the real model, in bf16 as it is used."""

import cli
import service


def test_same_text_as_generate_among_sixteen_others(real_model):
    """Greedy, of all policies: alone in `retro generate`, and beside fifteen others."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(real_model / "tokenizer.json"))
    text = (cli.LICENSES / "GPL-3").read_text(encoding="utf-8")
    policies = ({"policy": "retro", "window": 2}, {"policy": "dense"}, {"policy": "quest"}, {"policy": "retro", "window": 4})
    texts = [text[700 * i : 700 * i + 300 + 90 * (i % 5)] for i in range(16)]
    requests = [{"prompt": tokenizer.encode(t).ids, "max_tokens": 16, "ignore_eos": True, **policies[i % 4]}
                for i, t in enumerate(texts)]
    options = ("--window", "4", "--kv-budget", "0.3", "--page-size", "4", "--threads", "2")
    results, stats = service.run(real_model, requests, slots=16, context=256, options=options)
    assert stats["rows_revised"] > 0
    for i in (0, 1, 2, 3):
        words = cli.flags({"max_tokens": 16, "window": 1, "kv_budget": 0.3, "page_size": 4, **policies[i]})
        done = cli.run_ok("generate", "--model", real_model, "--ignore-eos", "--threads", 2, *words, "--prompt", texts[i])
        assert done.stdout.decode() == results[i]["choices"][0]["text"], i
