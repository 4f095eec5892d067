"""The Faust application: from clickstream topics to predictions, exactly once."""
