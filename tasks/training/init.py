"""Stage `init`: the untrained network, so that every phase starts from a file."""

from __future__ import annotations

from dataclasses import replace

from tasks import stage
from tasks.files import read_json
from tasks.recipe import INIT, Recipe
from tasks.workspace import Workspace


def init(workspace: Workspace, recipe: Recipe) -> None:
    """Write checkpoints/init: the network of the recipe with random weights.

    The seed is the recipe's; the vocabulary's size is the tokenizer's own, which may be smaller
    than the recipe asks where the text could not fill it.
    """
    import torch

    from model import Transformer, count_parameters
    from tasks.training import checkpoint

    vocab_size = read_json(workspace.tokenizer / "report.json")["vocab_size"]
    config = replace(recipe.model, vocab_size=vocab_size)
    torch.manual_seed(recipe.seed)
    network = Transformer(config)
    state = {"phase": INIT, "step": 0, "tokens": 0, "samples": 0, "updates": 0, "ema_updates": 0}
    checkpoint.save(
        workspace.checkpoint(INIT),
        {"model": dict(network.state_dict())},
        {"state": state, "config": {"phasewise": config.to_dict()}},
    )
    parameters = count_parameters(config)
    print(
        f"    {parameters['total']:,} parameters ({parameters['non_embedding']:,} not embedding), "
        f"vocabulary {vocab_size:,}"
    )


if __name__ == "__main__":
    stage.main(init)
