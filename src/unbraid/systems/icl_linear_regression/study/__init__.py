"""The study: theory without training, trainings of every head count, lengths, covariances, tasks, activations."""
