"""The search for the best plan: pure, asked and told."""

from tuner.search.machine import Search
from tuner.search.proposal import Known, Proposal, Proven, Standing, Untried

__all__ = ["Known", "Proposal", "Proven", "Search", "Standing", "Untried"]
