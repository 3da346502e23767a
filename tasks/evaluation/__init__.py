"""How good a model is: on held-out text, beside baselines, in what it says, and against another."""
