"""Diagnosis of training runs: observers, rules and root causes."""
