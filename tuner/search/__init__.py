"""The search for the best plan: pure, asked and told."""

from tuner.search.machine import Search
from tuner.search.proposal import Proposal, Proven, Standing, Untried

__all__ = ["Proposal", "Proven", "Search", "Standing", "Untried"]
