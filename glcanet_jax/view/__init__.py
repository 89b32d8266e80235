"""Scenes, maps and labels in a browser: a server for this machine alone, and a page that needs nothing else."""
