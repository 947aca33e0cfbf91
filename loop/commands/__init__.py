"""What the command `retake` can do, a module for each kind of command; loop/cli.py names them."""
