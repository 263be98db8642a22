"""The protocol of an unlearning: models before, retrained and unlearned, in one directory."""
