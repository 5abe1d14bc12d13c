"""The recipe: config, TrainingPipeline, logger choice, callbacks, resume."""
