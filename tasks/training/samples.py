"""Continuations of the recipe's prompts while training: the first thing a person looks at."""

from __future__ import annotations

import contextlib
import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tasks.recipe import Recipe
from tasks.training.parallel import is_shared
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from tasks.tokens.text import TextTokenizer
    from tasks.training.state import TrainState

MOST_TOKENS = 64  # of a continuation here; the evaluation draws as many as the recipe says
PATIENCE = 3  # failures after which no more are drawn


class Samples:
    """Draws with the average of the weights where there is one, always with the recipe's seed.

    A failure here is told and costs no training: after ``PATIENCE`` of them nothing is drawn.
    """

    def __init__(self, workspace: Workspace, recipe: Recipe, state: TrainState) -> None:
        self.workspace, self.recipe, self.state = workspace, recipe, state
        self._failures = 0

    def draw(self) -> list[dict[str, Any]]:
        """Fields of history records of kind ``sample``, one a prompt; none on other ranks."""
        if (
            self._failures >= PATIENCE
            or not self.state.world.is_main
            or any(map(is_shared, self.state.model.parameters()))
        ):
            return []
        try:
            return self._draw()
        except Exception as error:  # a sample is not worth a run
            self._failures += 1
            print(f"\n    warning: no samples were drawn ({error!r})", file=sys.stderr)
            return []

    @cached_property
    def _tokenizer(self) -> TextTokenizer:
        from tasks.tokens.text import load_tokenizer

        return load_tokenizer(self.workspace.tokenizer)

    def _draw(self) -> list[dict[str, Any]]:
        from model.sampling import SamplingOptions
        from tasks.release.sampler import Sampler

        evaluation, state = self.recipe.evaluation, self.state
        most = min(MOST_TOKENS, evaluation.sampling.max_new_tokens)
        chosen = evaluation.sampling.keywords() | {"max_new_tokens": most}
        options = SamplingOptions(**chosen, seed=self.recipe.seed)
        lent = state.ema.swapped(state.model) if state.ema else contextlib.nullcontext()
        weights = "ema" if state.ema else "raw"
        with lent:  # in the weights' own precision, as after release
            drawn = Sampler(state.model, self._tokenizer).sample(
                evaluation.prompts, options, len(evaluation.prompts)
            )
            return [{"prompt": one.prompt, "text": one.text, "weights": weights} for one in drawn]
