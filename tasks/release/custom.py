"""The export of a network that no class of transformers computes: its own code goes along.

The files of `model/` lie beside config.json, as transformers' remote code wants them, with two thin
files over them. Their relative imports work there as they do here. Whoever opens the folder in
transformers must agree to run them: ``trust_remote_code=True``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import model
from model import ModelConfig
from tasks.files import write_text

CLASS = "PhasewiseForCausalLM"
_ENTRANCES = ("configuration_phasewise", "modeling_phasewise")
_TEMPLATES = Path(__file__).parent / "remote"


def custom_config(config: ModelConfig) -> dict[str, Any]:
    """config.json of a folder that brings its own code."""
    return {
        "architectures": [CLASS],
        "model_type": "phasewise",
        "auto_map": {
            "AutoConfig": "configuration_phasewise.PhasewiseConfig",
            "AutoModelForCausalLM": f"modeling_phasewise.{CLASS}",
        },
        "vocab_size": config.vocabulary,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "max_position_embeddings": config.max_seq_len,
        # The network looks up its own table twice: there is no second one to tie.
        "tie_word_embeddings": False,
        "use_cache": True,
        "phasewise": config.to_dict(),
    }


def bundle_code(folder: Path) -> None:
    """Write the files of `model/` and the two entrances into ``folder``."""
    sources = sorted(Path(model.__file__).parent.glob("*.py"))
    siblings = {path.stem: path.read_text("utf-8") for path in sources if path.stem != "__init__"}
    for stem, text in siblings.items():
        write_text(folder / f"{stem}.py", text)
    for stem in _ENTRANCES:
        assert stem not in siblings
        text = (_TEMPLATES / f"{stem}.py").read_text("utf-8").replace("from model.", "from .")
        if stem == "modeling_phasewise":
            text += _named(list(siblings))
        write_text(folder / f"{stem}.py", text)


def _named(siblings: list[str]) -> str:
    """Imports that do nothing but name files: transformers copies those that a file names."""
    lines = [f"from .{stem} import __name__ as _{stem}  # noqa: E402, F401" for stem in siblings]
    return "\n# transformers brings the files that are named here.\n" + "\n".join(lines) + "\n"
