"""Worker processes: one for each loaded model, outliving the coordinator that started it."""
