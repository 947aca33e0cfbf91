"""The shipped YAML files; a package so that an installed retake finds them by name."""
