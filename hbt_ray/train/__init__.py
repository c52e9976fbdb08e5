"""The training loop on DeepSpeed and Ray Train."""
