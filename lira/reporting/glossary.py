"""What each attack is, in a sentence, and which one to report."""

__all__ = ["GLOSSARY", "WHICH"]

WHICH = (
    "The headline attack, declared before any result was seen: with models trained on and without each example "
    "lira_online_fixed below 64 models and lira_online from there on; their offline forms where no model was trained on the "
    "attacked examples; global_threshold without shadow models. The strongest of many attacks is picked by chance too, so it "
    "is named with how many were tried, and never alone. Report the pooled rate at 0.1 % false alarms with its interval, the "
    "number of models, and the models' accuracy; averages such as AUC hide the few examples that are given away."
)

GLOSSARY = {
    "lira_online": "LiRA: how much likelier the model's confidence is under models trained on the example than under "
    "models trained without it, a Gaussian fitted to each side of each example (Carlini et al. 2022).",
    "lira_online_fixed": "LiRA with one variance a side for all examples: better where models are few.",
    "lira_online_multivariate": "LiRA with the answers to all queries as one multivariate Gaussian.",
    "lira_online_trajectory": "The multivariate form over answers at several stages of training.",
    "lira_offline": "LiRA without models that were trained on the example: how unusual the confidence is among models "
    "that were not.",
    "lira_offline_fixed": "The offline form with one variance for all examples.",
    "bavaria_online": "BaVarIA: LiRA with each example's means and variances drawn towards those of all examples.",
    "bavaria_offline": "The same without models that were trained on the example.",
    "pmia_global_fixed": "PMIA: what a trained model would answer is guessed from all other examples.",
    "pmia_class": "PMIA, guessed from examples of the same class, a variance for each example.",
    "pmia_class_fixed": "PMIA, guessed from examples of the same class, one variance a side.",
    "pmia_neighbours_fixed": "PMIA, guessed from the most similar examples.",
    "rmia_online": "RMIA: how many other examples the model prefers less, relative to reference models "
    "(Zarifzadeh et al. 2024). Its scores are ranks within one target.",
    "rmia_offline": "RMIA without reference models that were trained on the example.",
    "informia_online": "InfoRMIA: RMIA's comparison as an average of log-ratios.",
    "informia_offline": "InfoRMIA without reference models that were trained on the example.",
    "base": "BASE: the loss against the average likelihood of reference models.",
    "difficulty_calibration": "The loss against that of models not trained on the example, so that hard examples are "
    "not taken for strangers.",
    "difficulty_calibration_both": "The loss against what models trained on the example and models not trained on it say.",
    "attack_r": "Attack-R: the rank of the confidence among models that were not trained on the example.",
    "attack_p": "Attack-P: the rank of the confidence among other examples of the same model.",
    "shadow_logistic": "A logistic regression that learns from shadow models what answers about members look like.",
    "shadow_svc": "The same with a support-vector machine.",
    "quantile_regression": "A regression of the confidence that an example like this has without being trained on.",
    "global_threshold": "One threshold on the model's confidence for all examples: the attack to beat, and all that is "
    "possible without shadow models.",
    "loss_threshold": "One threshold on the loss.",
    "confidence_threshold": "One threshold on the probability of the label.",
    "entropy_threshold": "One threshold on how undecided the model is, whatever the label.",
    "modified_entropy_threshold": "The same with the label taken into account (Song and Mittal 2021).",
    "lt_iqr": "The spread of an example's losses over training: ranks members by vulnerability, and is no guess of who is "
    "one.",
}
