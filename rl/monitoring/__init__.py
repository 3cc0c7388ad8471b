"""A run's numbers in Prometheus and Grafana: which panels there are, and a Prometheus brought up beside runs."""
