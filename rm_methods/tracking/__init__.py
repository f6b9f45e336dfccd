"""Exports finished runs to MLflow.  Training never talks to MLflow; everything here can be repeated and filled in
later."""
