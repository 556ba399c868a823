"""Analytic derivatives against numeric ones, each with a measured error."""
