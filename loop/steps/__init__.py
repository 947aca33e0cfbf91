"""The stage functions: each turns committed artefacts into one new artefact."""
