"""From a finished phase to a registered model: export, evaluate, register, report."""
