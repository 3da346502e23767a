"""Which checkpoint of a phase is the best, and when there is no point in going on."""

from __future__ import annotations

from typing import Any

from tasks.recipe import Phase


class Selection:
    """Follows one held-out set (``select_on``), by bits per byte of the average where there is one.

    Its whole state is ``record()``, which belongs beside every running checkpoint.
    """

    def __init__(self, settings: Phase, record: dict[str, Any] | None = None) -> None:
        self.settings = settings
        record = record or {"step": None, "bits_per_byte": None, "without_better": 0}
        self.step: int | None = record["step"]
        self.bits_per_byte: float | None = record["bits_per_byte"]
        self.without_better: int = record["without_better"]

    def record(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "bits_per_byte": self.bits_per_byte,
            "without_better": self.without_better,
        }

    def see(self, step: int, validation: list[dict[str, Any]]) -> bool:
        """Take the records of one validation; whether this step is the best so far."""
        weights = "ema" if self.settings.ema_decay else "raw"
        found = [
            r["bits_per_byte"]
            for r in validation
            if r["set"] == self.settings.select_on and r["weights"] == weights
        ]
        if not found:
            return False
        better = self.bits_per_byte is None or found[0] < self.bits_per_byte
        if better:
            self.step, self.bits_per_byte, self.without_better = step, found[0], 0
        else:
            self.without_better += 1
        return better

    @property
    def gave_up(self) -> bool:
        """Whether ``patience`` validations brought nothing better."""
        patience = self.settings.patience
        return patience is not None and self.without_better >= patience

    @property
    def chosen(self) -> int | None:
        """Step of the checkpoint that the phase ends with; None: its last."""
        return self.step if self.settings.select == "best" else None
