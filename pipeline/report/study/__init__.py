"""The report of a study: methods by metrics, what wins, whether metrics agree, and maps side by side."""
