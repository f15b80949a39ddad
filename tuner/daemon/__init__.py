"""The daemon: watches this machine, and tunes again when it changes."""
