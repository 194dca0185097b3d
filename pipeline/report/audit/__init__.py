"""The report of a night: one page that needs no network, the same as tables, and as Prometheus gauges."""
