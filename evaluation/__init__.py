"""Numbers from arrays: separability, detection metrics, figures, reports, and all that talks to MLflow."""
