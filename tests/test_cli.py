"""The command `phasewise`: what it prints, and what it does with bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import ROOT


def phasewise(
    *arguments: str, cwd: Path = ROOT, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from tasks.cli import main; main()", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"} | environment,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what a clone holds, without its history."""
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    shutil.copy(ROOT / "recipes/demo.yaml", tmp_path / "params.yaml")
    return tmp_path


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom tasks.cli import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'mlflow', 'prefect', 'dvc', 'datasets', 'transformers', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "recipes" in done.stdout and "doctor" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        "check",
        "plan",
        "doctor",
        "generate",
        "quantize",
        "pull",
        "sync",
        "show",
        "demo",
        "recipes",
    ],
)
def test_every_command_has_help(command: str) -> None:
    done = phasewise(command, "--help")
    assert done.returncode == 0 and "Usage:" in done.stdout


def test_recipes_are_listed_with_their_sizes(project: Path) -> None:
    out = phasewise("recipes", "list", cwd=project).stdout
    assert "54,599,040" in out and "62,334,784" in out
    assert (
        next(line for line in out.splitlines() if line.lstrip().startswith("*")).split()[1]
        == "demo"
    )


def test_a_recipe_is_taken_into_force_and_edits_are_not_lost(project: Path) -> None:
    assert phasewise("recipes", "use", "haipai-50m", cwd=project).returncode == 0
    taken = (project / "params.yaml").read_text()
    assert taken == (project / "recipes/haipai-50m.yaml").read_text()
    (project / "params.yaml").write_text(taken.replace("seed: 42", "seed: 43"))
    refused = phasewise("recipes", "use", "demo", cwd=project)
    assert refused.returncode == 2 and "edits that are in no recipe" in refused.stderr
    assert "seed: 43" in (project / "params.yaml").read_text()
    assert phasewise("recipes", "use", "demo", "--force", cwd=project).returncode == 0
    assert "seed: 43" in (project / "params.yaml.bak").read_text()


@pytest.mark.parametrize("name", ["haipai-5m", "../params", "nothing-like-it"])
def test_an_unknown_recipe_lists_those_there_are(project: Path, name: str) -> None:
    done = phasewise("recipes", "show", name, cwd=project)
    assert done.returncode == 66
    assert (
        "chaya-62m, demo, h64lm-249m, haipai-50m" in done.stderr and "Traceback" not in done.stderr
    )


def test_the_nearest_recipe_is_named(project: Path) -> None:
    assert (
        "did you mean 'haipai-50m'?" in phasewise("recipes", "use", "haipai-5m", cwd=project).stderr
    )


def test_check_passes_a_good_recipe_and_explains_a_bad_one(project: Path) -> None:
    assert "valid recipe" in phasewise("check", cwd=project).stdout
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("warmup_tokens", "warmup_token"))
    done = phasewise("check", cwd=project)
    assert done.returncode == 2
    assert "training.warmup_token: unknown key; did you mean 'warmup_tokens'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_plan_gives_the_figures_as_json(project: Path) -> None:
    done = phasewise("plan", "chaya-62m", "--json", "--no-measure", cwd=project)
    made = json.loads(done.stdout)
    assert made["parameters"]["total"] == made["parameters"]["active"] == 62_334_784
    assert made["phases"]["phase1"]["steps"] == 69_092
    assert made["phases"]["phase2"]["sources"]["openwebtext"]["weight"] == pytest.approx(35 / 99)
    assert made["phases"]["phase1"]["flops"] == pytest.approx(2.7e17, rel=0.05)
    assert made["disk"]["free"] > 0 and made["memory"]["total"] > made["parameters"]["total"] * 16


def test_plan_reads_like_a_page(project: Path) -> None:
    out = phasewise("plan", cwd=project).stdout
    for word in ("phase1", "phase2", "stdlib", "memory", "disk", "FLOPs", "time"):
        assert word in out


def test_outside_a_project_the_commands_say_where_to_go(tmp_path: Path) -> None:
    done = phasewise("check", cwd=tmp_path)
    assert done.returncode == 66 and "cd into the clone" in done.stderr


def test_generate_wants_a_prompt_and_sound_settings(tmp_path: Path) -> None:
    folder = str(tmp_path)
    done = phasewise("generate", "--model", folder)
    assert done.returncode == 2 and "no prompt on stdin" in done.stderr
    for option, value in (("--temperature", "-1"), ("--top-p", "0"), ("--max-new-tokens", "0")):
        done = phasewise("generate", "--model", folder, "--prompt", "a", option, value)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr and option.strip("-").replace("-", "_") in done.stderr


def test_a_setting_that_cannot_be_is_named(project: Path) -> None:
    done = phasewise("plan", cwd=project, PHASEWISE_DEVICE="gpu")
    assert done.returncode == 2 and "PHASEWISE_DEVICE" in done.stderr


def test_the_doctor_looks_at_everything(project: Path) -> None:
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=project, check=True)
    (project / "runs/phase1/step-000000005").mkdir(parents=True)
    out = phasewise("doctor", cwd=project).stdout
    for word in (
        "python",
        "torch",
        "disk",
        "recipe",
        "hub",
        "prefect",
        "mlflow",
        "dvc",
        "git",
        "telemetry",
    ):
        assert f"  {word} " in out, out
    assert "phase1 is unfinished, at step-000000005" in out
    assert "go on: dvc repro train@phase1" in out
    assert "BAD" not in out
