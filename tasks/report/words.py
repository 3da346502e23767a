"""What the report says in sentences and in commands: the same in HTML and in Markdown."""

from __future__ import annotations

import json

from tasks.report.tables import Facts, released_scores

MOST_SETS = 3  # named in one sentence


def verdict(facts: Facts) -> str:
    """One sentence: what is registered, and how good it is."""
    found, phase = facts.get("registration"), facts["released"]["phase"]
    weights, scores = facts["released"]["weights"], released_scores(facts)
    values = {name: score["bits_per_byte"] for name, score in scores.items()}
    if len(values) <= MOST_SETS:
        figures = ", ".join(f"{value:.4f} on {name}" for name, value in values.items())
        figures = figures.replace(" on", " bits per byte on", 1)
    else:
        mean = sum(values.values()) / len(values)
        figures = f"{mean:.4f} bits per byte on average of {len(values)} held-out sets"
    shown = "EMA" if weights == "ema" else weights
    name = f"{facts['name']} (not registered)"
    if found:
        alias = f" (@{found['alias']})" if found.get("alias") else ""
        name = f"{found['name']} version {found['version']}{alias}"
    return f"{name}, the {shown} weights after {phase}: {figures}"


def gate(facts: Facts) -> str:
    """What the gate said of the version, and why; empty where there was none."""
    found = facts.get("registration", {})
    if not found.get("reason"):
        return ""
    alias, best = found.get("verdict"), facts["settings"]["release"]["alias"]
    kept = f" (version {found['champion']} keeps it)" if found.get("champion") else ""
    verdict = f"It has @{best}" if alias == best else f"It was not given @{best}{kept}"
    return f"{verdict}: {found['reason']}."


def loading(facts: Facts) -> dict[str, str]:
    """Program -> the lines that open the released model with it."""
    found = facts.get("registration", {})
    folder = facts["name"]
    prompt = json.dumps(_prompt(facts), ensure_ascii=False)
    known: dict[str, str] = {}
    source = f"exports/{facts['released']['phase']}"
    if uri := found.get("uri"):
        known["phasewise"] = (
            f"phasewise generate --model {uri} --prompt {prompt}\nphasewise pull {uri} {folder}"
        )
        known["mlflow"] = (
            f'import mlflow\n\nmodel = mlflow.pyfunc.load_model("{uri}")\n'
            f"print(model.predict([{prompt}]))"
        )
        source = folder
    else:
        known["phasewise"] = f"phasewise generate --model {source} --prompt {prompt}"
    trust = "" if facts["lineage"].get("native", True) else ", trust_remote_code=True"
    known["transformers"] = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{source}")\n'
        f'model = AutoModelForCausalLM.from_pretrained("{source}"{trust})\n'
        f'inputs = tokenizer({prompt}, return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**inputs)[0]))"
    )
    if facts["lineage"].get("llama_cpp"):
        model = found.get("uri", source)
        known["llama.cpp, where it has this tokenizer too"] = f"phasewise gguf {model}"
    return known


def _prompt(facts: Facts) -> str:
    prompts: list[str] = facts["settings"]["evaluation"]["prompts"]
    return prompts[0]
