"""What dev.py is made of. Standard library only, so that it runs before anything is installed."""
