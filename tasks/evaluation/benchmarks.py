"""Stage `benchmark`: the released model on tasks of lm-evaluation-harness, beside pure chance.

    exports/<phase> -> harness.HarnessModel -+
    evaluation.benchmarks: names, files     -+-> lm_eval.evaluator -> evaluation/benchmarks.json

The tasks are the harness's own, which it fetches from the hub, or files of JSON lines
(local_tasks.py), with which nothing is fetched. Chance is what a guess gets right on average: 1 /
choices, over the examples that were scored.
"""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import stage
from tasks.errors import NO_INPUT, UNAVAILABLE, UserError, nearest
from tasks.files import write_json
from tasks.recipe import Recipe
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from tasks.release.sampler import Sampler

BATCH_SIZE = 16
# Which of a task's metrics stands for it, where it has several.
LEADING = ("acc", "exact_match", "f1", "em", "mcc", "bits_per_byte", "word_perplexity")
_RESAMPLES = 1000  # of the standard errors that have no formula


@dataclass(frozen=True)
class Result:
    """A model on one task.

    ``se`` is the standard error; ``chance`` the score of guessing, None where there is nothing to
    choose from; ``shots`` the solved examples before each; ``others`` more metrics of the task,
    each a value and its standard error; ``data`` the SHA-256 of the task's file, None for a task of
    the harness.
    """

    task: str
    metric: str
    value: float
    se: float | None
    chance: float | None
    n: int
    harness: str
    shots: int = 0
    others: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    data: str | None = None

    def record(self) -> dict[str, Any]:
        """As it stands in evaluation/benchmarks.json under the task's name."""
        others = {name: {"value": value, "se": se} for name, (value, se) in self.others.items()}
        return {
            "metric": self.metric,
            "value": self.value,
            "se": self.se,
            "chance": self.chance,
            "n": self.n,
            "harness": self.harness,
            "shots": self.shots,
            "others": others,
            "data": self.data,
        }


def benchmark(workspace: Workspace, recipe: Recipe) -> None:
    """Write evaluation/benchmarks.json: task -> figures; no task where the recipe names none.

    Raises UserError as `run` does, and where the export is missing or was changed.
    """
    plan, results = recipe.evaluation.benchmarks, []
    if plan.tasks:
        from tasks.release.sampler import Sampler

        folder = workspace.root / plan.tasks_from if plan.tasks_from else None
        sampler = Sampler.open(workspace.export(recipe.release.phase), device="auto")
        results = run(sampler, plan.tasks, folder, limit=plan.limit)
    write_json(
        workspace.benchmarks,
        {result.task: result.record() for result in results},
    )
    print(table(results) if results else "    none: evaluation.benchmarks.tasks is empty")


def run(
    sampler: Sampler,
    tasks: Sequence[str],
    folder: Path | None = None,
    *,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> list[Result]:
    """Put a model to tasks; results in their order.

    Args:
        tasks: names; a name that stands for several of the harness's tasks gives all of them.
        folder: of JSON lines, one file a task; None: the harness's own tasks, from the hub.
        limit: the first so many examples of each; None: all.
        batch_size: requests at once. In fp32 the scores do not depend on it.

    Raises UserError where lm-eval is not installed, a task is unknown or would run code, a file is
    damaged, or (exit code 69) the hub cannot be reached.
    """
    version = _installed()
    with _quiet():
        from lm_eval.evaluator import evaluate

        from tasks.evaluation.harness import HarnessModel

        loaded, sums = _local(folder, tasks) if folder else (_from_hub(tasks), {})
        found = evaluate(
            lm=HarnessModel(sampler, batch_size),
            task_dict={"tasks": loaded, "groups": {}, "group_map": {}},
            limit=limit,
            bootstrap_iters=_RESAMPLES,
            log_samples=False,
        )
    assert found is not None  # it is where another process has the results
    return [
        _result(
            task,
            found["results"][name],
            {
                "task": name,
                "chance": chance(task, limit),
                "n": int(found["n-samples"][name]["effective"]),
                "harness": f"lm-eval {version}",
                "data": sums.get(name),
            },
        )
        for name, task in loaded.items()
    ]


def chance(task: Any, limit: int | None = None) -> float | None:
    """What a guess scores on a task of the harness; None where there are no choices."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    shares = [1 / len(task.doc_to_choice(row)) for row in islice(task.eval_docs, limit)]
    return sum(shares) / len(shares)


def table(results: Sequence[Result]) -> str:
    """The results as lines of text, a line a metric."""
    width = max(len(result.task) for result in results)
    lines = [f"    {'':<{width}} {'metric':<12} {'score':>16} {'chance':>7} {'n':>7} {'shots':>5}"]
    for result in results:
        metrics = {result.metric: (result.value, result.se), **result.others}
        for name, (value, se) in metrics.items():
            score = f"{value:.4f}" + ("" if se is None else f" ± {se:.4f}")
            guess = "" if result.chance is None else f"{result.chance:.4f}"
            lines.append(
                f"    {result.task:<{width}} {name:<12} {score:>16} {guess:>7} {result.n:>7,} "
                f"{result.shots:>5}"
            )
    return "\n".join([*lines, f"    {results[0].harness}; ± one standard error"])


def _installed() -> str:
    """The harness's version. Raises UserError where it is not installed."""
    try:
        import lm_eval
    except ImportError:
        raise UserError(
            "benchmarks need lm-evaluation-harness, which is not installed",
            hint="pip install 'phasewise[benchmarks]'",
        ) from None
    return str(lm_eval.__version__)


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness without its bars, its log and processes of its own, for the life of the block."""
    import lm_eval.api.task as contexts

    logger, bar = logging.getLogger("lm_eval"), contexts.tqdm
    level, processes = logger.level, os.environ.get("DISABLE_MULTIPROC")
    logger.setLevel(logging.ERROR)
    contexts.tqdm = partial(bar, disable=True)
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with redirect_stdout(io.StringIO()):  # it prints among what may be JSON
            yield
    finally:
        logger.setLevel(level)
        contexts.tqdm = bar
        os.environ.pop("DISABLE_MULTIPROC")
        if processes is not None:
            os.environ["DISABLE_MULTIPROC"] = processes


def _local(folder: Path, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Tasks from files, and the SHA-256 of each file."""
    from lm_eval.api.task import ConfigurableTask

    from tasks.evaluation.local_tasks import local_task

    made = {name: local_task(folder, name) for name in names}
    tasks = {name: ConfigurableTask(config=config) for name, (config, _) in made.items()}
    return tasks, {name: digest for name, (_, digest) in made.items()}


def _from_hub(names: Sequence[str]) -> dict[str, Any]:
    """The harness's own tasks. Errors as of `run`."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    for name in names:
        if name not in manager.all_tasks:
            guess = nearest(name, manager.all_tasks)
            raise UserError(
                f"no task {name!r}",
                where="lm-evaluation-harness",
                hint=(f"did you mean {guess!r}? " if guess else "")
                + f"there are {len(manager.all_tasks):,}: lm_eval ls tasks",
                exit_code=NO_INPUT,
            )
    try:
        tasks = dict(manager.load(list(names))["tasks"])
    except OSError as error:  # the hub's errors are among them, whichever library asked
        raise UserError(
            f"the data of {', '.join(names)} cannot be fetched: {error}",
            where="the hub",
            hint="try again online, or take files: --tasks-from FOLDER",
            exit_code=UNAVAILABLE,
        ) from None
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(f"{name} runs code that the model writes", hint="take another task")
        if task.config.num_fewshot is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(seed=0)
    return tasks


def _result(task: Any, found: dict[str, Any], about: dict[str, Any]) -> Result:
    """The harness's figures of one task: ``acc,none``, ``acc_stderr,none`` and others like them."""
    metrics: dict[str, tuple[float, float | None]] = {}
    for key, value in found.items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or _finite(value) is None:
            continue
        label = metric if filtered == "none" else f"{metric} ({filtered})"
        metrics[label] = float(value), _finite(found.get(f"{metric}_stderr,{filtered}"))
    order = {metric: place for place, metric in enumerate(LEADING)}
    first = min(metrics, key=lambda label: order.get(label.partition(" ")[0], len(order)))
    value, se = metrics.pop(first)
    shots = task.config.num_fewshot or 0
    return Result(metric=first, value=value, se=se, shots=shots, others=metrics, **about)


def _finite(value: Any) -> float | None:
    """A number, or None for what is none: the harness writes "N/A" where it has no error."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


if __name__ == "__main__":
    stage.main(benchmark)
