"""What differs between two runs: predictions, scores, embeddings and maps, with effects and corrected p-values."""
