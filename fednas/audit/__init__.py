"""The audit: attack the code that a site runs, bound what it leaks from below, and show that it notices."""

from fednas.audit.findings import LAYERS, Check, Finding, Game, Layer
from fednas.audit.subject import Subject

__all__ = ["LAYERS", "Check", "Finding", "Game", "Layer", "Subject"]
