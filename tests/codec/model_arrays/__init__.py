"""Arrays of models and optimizers."""
