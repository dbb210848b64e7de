"""The parts of dev.py. Standard library only, so that it runs before anything is installed."""
