"""How well the gate's metrics tell harmless treatments of a model that draws from harmful ones.

python -m benchmarks.quality collect calibration     # and held-out; resumes where it was
python -m benchmarks.quality thresholds              # the rule, and held-out verdicts
python -m benchmarks.quality plots                   # needs the extra [bench]
python -m benchmarks.quality grids
"""
