"""Models that other code trained: files of confidences, foreign directories, audits."""
