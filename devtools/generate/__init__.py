"""Generators of workflows, locales, help images and art. Run one: ``python -m devtools.generate.locales``."""
