"""Our own versions."""

from __future__ import annotations

__version__ = "0.1.0"

APPLY_ENGINE = 2
"""Raised whenever applying one plan would give another pipeline than before."""
