"""Who proposes configurations: a grid, random draws or Optuna. The only package that imports optuna."""

from sweeps.search.make import make_searcher
from sweeps.search.optuna_search import OptunaSearch
from sweeps.search.samplers import check_installed, sampler_faults
from sweeps.search.searcher import GridSearch, Learner, Outcome, RandomSearch, Searcher
from sweeps.search.study_file import STUDY_NAME, write_study

__all__ = [
    "STUDY_NAME",
    "GridSearch",
    "Learner",
    "OptunaSearch",
    "Outcome",
    "RandomSearch",
    "Searcher",
    "check_installed",
    "make_searcher",
    "sampler_faults",
    "write_study",
]
