"""Search of hyperparameters: many trainings, chosen between by retrieval on a validation set."""
