"""Plans for people who want to see, or keep, the code: a plain diffusers script."""

from tuner.export.script import diffusers_script

__all__ = ["diffusers_script"]
