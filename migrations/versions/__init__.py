"""Revisions, named by the release that brought them."""
