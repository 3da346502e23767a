"""What was made, told on pages: the report, its Markdown and JSON, comparisons of runs."""
