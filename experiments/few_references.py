"""Few shadow models: RMIA beside LiRA with 1, 2 and 4 reference models, from one run.

Command:   python experiments/few_references.py RUN
Duration:  a minute on 2 CPU cores for 64 models, 10,000 examples.
Expected:  RMIA above LiRA, as its authors say. Measured: experiments/README.md.

A run is cut into disjoint pools of 4, 6 and 10 models, which leave 1, 2 and 4 models a side once a target's pair is
left out. Figures are pooled over all targets, with 95 % intervals over sub-pools.
"""

import sys
import warnings

from lira import Run, attacks
from lira.metrics import learning_curve

NAMES = (
    *("rmia_online", "rmia_offline", "lira_online_fixed", "lira_offline_fixed"),
    *("bavaria_online", "bavaria_offline", "base"),
)

warnings.simplefilter("ignore", attacks.FewModelsWarning)
run = Run.open(sys.argv[1])
print(f"{'attack':20} references      TPR at 0.1 % FPR       AUC")
for name in NAMES:
    for point in learning_curve(getattr(attacks, name), run.phi, run.keep, [4, 6, 10]):
        tpr = point.tpr
        print(
            f"{name:20} {point.num_models // 2 - 1:10}   {100 * tpr.tpr:5.2f} % [{100 * tpr.low:5.2f}, {100 * tpr.high:5.2f}]"
            f"   {point.auc.value:.3f} [{point.auc.low:.3f}, {point.auc.high:.3f}]"
        )
