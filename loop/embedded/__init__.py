"""The embedded default: a small world of moving shapes, its pixel oracle and tiny shipped weights."""
