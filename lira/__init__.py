"""LiRA at scale: shadow models trained in stacks, likelihood-ratio scores, ROC curves at low false-positive rates."""
